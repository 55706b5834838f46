"""Hand-written kernels: one folder each, with reference.py as the specification."""

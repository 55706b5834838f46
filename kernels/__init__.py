"""Hand-written kernels: one folder each, reference.py the specification, NAME.cu for a device."""

"""A CUDA device through cuda-python: its kernels, and receptions that stay on it."""

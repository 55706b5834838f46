"""A CUDA device through cuda-python: kernels compiled where they run, cached, and started."""

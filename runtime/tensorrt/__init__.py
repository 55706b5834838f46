"""TensorRT: what `jscc.runtime.backends.tensorrt` builds, keeps, loads and runs engines with."""

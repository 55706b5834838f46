"""Engine names: what a command line can ask for; nothing is imported to know them."""

AUTO = "auto"  # what `jscc choose` kept for the bundle
DEFAULT = "onnxruntime"
OPENVINO = {"openvino": "f32", "openvino-bf16": "bf16"}  # and the precision of each
TENSORRT = "tensorrt"
ENGINES = (DEFAULT, *OPENVINO, TENSORRT)
EXACT = tuple(name for name in ENGINES if OPENVINO.get(name) != "bf16")  # round no more than asked

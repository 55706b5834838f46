"""Classifier: does a picture still mean the same, to a network that the user names?

The ONNX file has one input, float32[batch, 3, height, width], and as its first output one score a
class, float[batch, classes]. Where height and width are numbers, the largest central square of the
picture is resized to them; where they are names, the whole picture goes in. Values are RGB in
[0, 1], or, with ``imagenet``, standardised by ImageNet's mean and deviation.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
from PIL import Image as Pillow

from jscc.calibration.metrics import Image
from jscc.runtime.errors import DataError

RANGES = ("unit", "imagenet")
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)


class Classifier:
    """The class that a network sees in a picture.

    Args:
        file: The ONNX file.
        values: One of `RANGES`.
        threads: Of the engine; None for all.

    Raises:
        DataError: ``E_TASK``, the file is no such network.
    """

    def __init__(self, file: Path, values: str = RANGES[0], threads: int | None = None) -> None:
        self._name = file.name
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(
                str(file), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime raises types of its own for every kind of fault
            raise self._refusal(str(error).splitlines()[0]) from error
        inputs = self._session.get_inputs()
        ports = [f"{port.type}{port.shape}" for port in inputs]
        first = inputs[0]
        if len(inputs) != 1 or first.type != "tensor(float)" or len(first.shape) != 4:
            raise self._refusal(f"inputs {', '.join(ports)}")
        if first.shape[1] != 3:
            raise self._refusal(f"input {ports[0]}")
        self._input = first.name
        height, width = first.shape[2:]
        fixed = isinstance(height, int) and isinstance(width, int)
        self._size = (height, width) if fixed else None
        self._imagenet = values == "imagenet"

    def __call__(self, image: Image) -> int:
        """Number of the class with the highest score."""
        scores = self._session.run(None, {self._input: self._fed(image)})[0]
        if scores.ndim != 2 or len(scores) != 1:
            raise self._refusal(f"scores {list(scores.shape)}")
        return int(np.argmax(scores[0]))

    def _fed(self, image: Image) -> npt.NDArray[np.float32]:
        pixels = image if self._size is None else _fitted(image, self._size)
        values = pixels.astype(np.float32) / 255
        if self._imagenet:
            values = (values - MEAN) / DEVIATION
        return np.ascontiguousarray(values.transpose(2, 0, 1)[None])

    def _refusal(self, got: str) -> DataError:
        return DataError(
            "E_TASK",
            f"--task {self._name!r}: got {got}, expected an ONNX network with one input "
            "float32[batch,3,height,width] and scores [batch,classes]. Export it so.",
        )


def _fitted(image: Image, size: tuple[int, int]) -> Image:
    """The largest central part of the proportions of `size`, resized to it."""
    height, width = image.shape[:2]
    share = min(height / size[0], width / size[1])
    tall, wide = share * size[0], share * size[1]
    top, left = (height - tall) / 2, (width - wide) / 2
    resized = Pillow.fromarray(image).resize(
        (size[1], size[0]),
        Pillow.Resampling.BILINEAR,
        box=(left, top, left + wide, top + tall),
    )
    return np.asarray(resized)

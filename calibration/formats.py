"""Formats: the eight bits that a converted layer's numbers are written in."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Final

import ml_dtypes
import numpy as np
import numpy.typing as npt

from jscc.calibration.ranges import LEVELS
from jscc.runtime.backends.quantised import FLOAT8_ZERO_POINT, ZERO_POINT


@dataclass(frozen=True)
class Format:
    """Numbers of eight bits, symmetric around 0, times a scale.

    Attributes:
        name: As in ``--precision``.
        dtype: Of the stored numbers.
        largest: The largest of them.
        zero_point: What the zero point of all activations is called in the graph.
        outputs: Whether what a convolution returns is rounded too.
        largest_weight: The largest stored number of a weight.
    """

    name: str
    dtype: np.dtype[Any]
    largest: float
    zero_point: str
    outputs: bool
    largest_weight: float

    @property
    def nothing(self) -> float:
        """Magnitude up to which a scale would be no normal float32."""
        return self.largest * float(np.finfo(np.float32).tiny)

    def round(self, scaled: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The nearest stored numbers; ties go to even, what lies beyond to the largest."""
        inside = np.clip(scaled, -self.largest, self.largest)
        whole = np.round(inside) if self.dtype == np.int8 else inside
        return np.asarray(whole, self.dtype)


# ONNX Runtime keeps integers from layer to layer only where a convolution's output is rounded.
INT8: Final = Format(
    "int8", np.dtype(np.int8), float(LEVELS), ZERO_POINT, outputs=True, largest_weight=float(LEVELS)
)
# Two products of 255 and it fit into 16 bits, in which x86 without VNNI adds them.
REDUCED_INT8: Final = dataclasses.replace(INT8, largest_weight=63.0)
# E4M3 of Paulius Micikevicius et al., "FP8 Formats for Deep Learning", arXiv 2209.05433, table 1.
FP8: Final = Format(
    "fp8",
    np.dtype(ml_dtypes.float8_e4m3fn),
    448.0,
    FLOAT8_ZERO_POINT,
    outputs=False,
    largest_weight=448.0,
)

"""Npy: arrays read from the bytes of a ``.npy`` file, with no surprise and no copy.

NumPy's own reader evaluates the header as Python and accepts objects, structures, foreign byte
orders and trailing bytes; this one accepts what NumPy writes for plain arrays and nothing else.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from jscc.runtime.errors import BundleError, DataError

MAGIC = b"\x93NUMPY\x01\x00"
HEADER_LIMIT = 1024  # bytes
RANK = 8

_DTYPES: Mapping[str, str] = {
    "<f4": "float32",
    "<f2": "float16",
    "<i8": "int64",
    "<i4": "int32",
    "|u1": "uint8",
    "|b1": "bool",
    "<c8": "complex64",
    "<f8": "float64",
    "<c16": "complex128",
}
_HEADER = re.compile(
    rb"\s*\{\s*'descr':\s*'([<>|=]?[a-z][0-9]{1,2})',\s*'fortran_order':\s*(True|False),"
    rb"\s*'shape':\s*\(([0-9, ]*)\),?\s*\}\s*"
)
_LENGTH = re.compile(r"[0-9]{1,15}")


def read_npy(
    data: npt.NDArray[np.uint8],
    where: str,
    *,
    dtypes: tuple[str, ...],
    error: type[DataError] = BundleError,
) -> npt.NDArray[Any]:
    """The array that the bytes of a ``.npy`` file hold: a read-only view of `data`.

    Args:
        data: The whole file.
        where: Its name, for messages.
        dtypes: NumPy names of the dtypes that are accepted.
        error: Class of the error.

    Raises:
        DataError: ``E_NPY``, of class `error`.
    """

    def refuse(got: str, expected: str) -> DataError:
        return error("E_NPY", f"{where}: got {got}, expected {expected}. Save it with numpy.save.")

    descr, shape, start = _header(data, refuse)
    dtype = _DTYPES.get(descr)
    if dtype is None or dtype not in dtypes:
        raise refuse(f"dtype {descr!r}", f"little-endian {' or '.join(dtypes)}")
    body = data[start:]
    expected = math.prod(shape) * np.dtype(dtype).itemsize
    if len(body) != expected:
        raise refuse(f"{len(body)} bytes of data", f"{expected} for {dtype}{list(shape)}")
    if dtype == "bool" and body.size and body.max() > 1:
        raise refuse("a bool that is neither 0 nor 1", "0 or 1")
    array = body.view(descr).reshape(shape)
    if not array.flags.aligned:
        array = array.copy()
    array.flags.writeable = False
    return array


def _header(
    data: npt.NDArray[np.uint8], refuse: Callable[[str, str], DataError]
) -> tuple[str, tuple[int, ...], int]:
    """The dtype as it is written, the shape, and where the data begin."""
    head = data[:10].tobytes()
    if head[:8] != MAGIC or len(head) < 10:
        raise refuse(f"{head[:8]!r} at its head", f"{MAGIC!r}, .npy version 1.0")
    length = int.from_bytes(head[8:10], "little")
    if length > HEADER_LIMIT:
        raise refuse(f"a header of {length} bytes", f"at most {HEADER_LIMIT}")
    header = data[10 : 10 + length].tobytes()
    match = _HEADER.fullmatch(header)
    if match is None or len(header) < length:
        raise refuse(f"the header {header[:60]!r}", "descr, fortran_order and shape of an array")
    descr, order, lengths = (part.decode("ascii") for part in match.groups())
    if order == "True":
        raise refuse("fortran_order True", "rows in C order")
    shape = _shape(lengths)
    if shape is None:
        raise refuse(f"shape ({lengths[:60]})", f"at most {RANK} lengths")
    return descr, shape, 10 + length


def _shape(lengths: str) -> tuple[int, ...] | None:
    """``"1, 77, "`` as lengths; None where it is not a list of them."""
    parts = [part.strip() for part in lengths.split(",")]
    if parts[-1] == "":
        parts.pop()
    elif len(parts) == 1:
        return None  # "(3)" is no tuple
    if len(parts) > RANK or not all(_LENGTH.fullmatch(part) for part in parts):
        return None
    return tuple(int(part) for part in parts)

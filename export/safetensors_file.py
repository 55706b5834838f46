"""Safetensors files: the tensors of a ``.safetensors`` file, found from its header.

Layout: length of the header (uint64), the header (JSON), the elements back to back.
NOTE: read here and not with the library, which maps the file; see `tensor_file`.
"""

import json
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch

from jscc.export.tensor_file import Extent, OpenFile, StoredTensor, check_entry, form
from jscc.runtime.errors import CheckpointError

MAX_HEADER = 100_000_000  # bytes; the library's own limit
DTYPES = MappingProxyType(
    {
        "F64": torch.float64,
        "F32": torch.float32,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "F8_E4M3": torch.float8_e4m3fn,
        "F8_E5M2": torch.float8_e5m2,
        "C64": torch.complex64,
        "I64": torch.int64,
        "I32": torch.int32,
        "I16": torch.int16,
        "I8": torch.int8,
        "U64": torch.uint64,
        "U32": torch.uint32,
        "U16": torch.uint16,
        "U8": torch.uint8,
        "BOOL": torch.bool,
    }
)


def read_safetensors(file: OpenFile) -> Mapping[str, StoredTensor]:
    """The tensors of a safetensors file by name.

    Raises:
        CheckpointError: ``E_CKPT_TRUNCATED``, the file ends before the last tensor;
            ``E_CKPT_FORMAT``, the header is malformed, or leaves gaps or overlaps.
    """
    length = int.from_bytes(file.read(0, 8), "little")
    if length > MAX_HEADER:
        raise _malformed(file, f"a header of {length} bytes")
    if 8 + length > file.size:
        raise _truncated(file, 8 + length)
    header = _parse(file, file.read(8, length))
    header.pop("__metadata__", None)
    entries = {name: _entry(file, name, entry, 8 + length) for name, entry in header.items()}
    end = 8 + length
    for name, entry in sorted(entries.items(), key=lambda item: _place(item[1])):
        if entry.extent.begin != end:
            raise _malformed(file, f"tensor {name!r} at {entry.extent.begin} instead of {end}")
        end += entry.extent.size
    if end > file.size:
        raise _truncated(file, end)
    if end < file.size:
        raise _malformed(file, f"{file.size - end} bytes behind the last tensor")
    return entries


def read_metadata(file: OpenFile) -> Mapping[str, str]:
    """What a file that `read_safetensors` accepts says beside its tensors; only text by name."""
    header = _parse(file, file.read(8, int.from_bytes(file.read(0, 8), "little")))
    stated = header.get("__metadata__")
    pairs = stated.items() if isinstance(stated, dict) else ()
    return {name: text for name, text in pairs if isinstance(text, str)}


def encode_header(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> bytes:
    """The bytes in front of the elements of `tensors`, which follow in the same order.

    Raises:
        CheckpointError: ``E_CKPT_FORMAT``, safetensors has no name for an element type.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    names = {dtype: name for name, dtype in DTYPES.items()}
    end = 0
    for name in tensors:
        shape, dtype = form(tensors, name)
        if dtype not in names:
            raise CheckpointError(
                "E_CKPT_FORMAT",
                f"tensor {name!r}: got {dtype}, expected one of {', '.join(map(str, names))}. "
                "Convert it before it is saved.",
            )
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": names[dtype], "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _parse(file: OpenFile, data: bytes) -> dict[str, Any]:
    try:
        header = json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise _malformed(file, f"a header that is no JSON ({type(error).__name__})") from None
    if not isinstance(header, dict):
        raise _malformed(file, "a header that is no object")
    return header


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("duplicate names")
    return found


def _refuse(constant: str) -> Any:
    raise ValueError(constant)


def _entry(file: OpenFile, name: str, entry: Any, base: int) -> StoredTensor:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _malformed(file, f"no description of tensor {name!r}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if type(dtype) is not str or dtype not in DTYPES:
        raise _malformed(file, f"tensor {name!r} of type {str(dtype)[:20]!r}")
    if not (_is_counts(shape) and _is_counts(offsets) and len(offsets) == 2):
        raise _malformed(file, f"tensor {name!r} with malformed numbers")
    size = math.prod(shape) * DTYPES[dtype].itemsize
    if offsets[1] - offsets[0] != size:
        raise _malformed(file, f"tensor {name!r} of {size} bytes at {offsets}")
    stride = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    extent = Extent(base + offsets[0], size)
    stored = StoredTensor(file, DTYPES[dtype], tuple(shape), tuple(stride), 0, extent)
    return check_entry(name, stored)


def _is_counts(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= 32
        and all(type(number) is int and 0 <= number < 1 << 48 for number in value)
    )


def _place(entry: StoredTensor) -> tuple[int, int]:
    return entry.extent.begin, entry.extent.size


def _truncated(file: OpenFile, expected: int) -> CheckpointError:
    return CheckpointError(
        "E_CKPT_TRUNCATED",
        f"{str(file.path)!r}: got {file.size} bytes, expected {expected}. Fetch the file again; "
        "the download may have stopped early.",
    )


def _malformed(file: OpenFile, got: str) -> CheckpointError:
    return CheckpointError(
        "E_CKPT_FORMAT",
        f"{str(file.path)!r}: got {got}, expected a safetensors file. Fetch it again.",
    )

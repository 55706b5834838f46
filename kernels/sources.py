"""Sources: each kernel's CUDA C++ as one text that needs no other file.

The same text goes to a device's compiler, to nvcc and to a host's compiler, and its hash names what
was made of it. Lines keep the number that they have in their own file.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Final

FOLDER: Final = Path(__file__).resolve().parent
KERNELS: Final = ("advance", "null_space", "philox_normal", "to_uint8", "unpack")
THREADS: Final = 256  # of a block, at most: arithmetic.cuh says so to the compiler

# Rounding is written into the source; this is the second lock. C++17 has hexadecimal floats.
OPTIONS: Final = ("--std=c++17", "--fmad=false")

_INCLUDE = re.compile(r'#include "([a-z0-9_]+(?:/[a-z0-9_]+)?\.cuh)"')
_ENTRY = re.compile(r"^JSCC_KERNEL ([a-z0-9_]+)\(([^)]*)\)", re.MULTILINE)
_KINDS = {"float": "float32", "jscc::u32": "uint32", "jscc::u64": "uint64"}


@dataclass(frozen=True)
class Parameter:
    """One argument of an entry, by position.

    Attributes:
        name: As the source calls it.
        kind: ``pointer`` or a numpy dtype: ``float32``, ``uint32`` or ``uint64``.
    """

    name: str
    kind: str


@cache
def source_of(kernel: str) -> str:
    """The text of one kernel with what it includes in place.

    Raises:
        LookupError: No kernel has that name.
    """
    if kernel not in KERNELS:
        raise LookupError(f"kernel: got {kernel!r}, expected one of {', '.join(KERNELS)}.")
    return "\n".join(_lines(f"{kernel}/{kernel}.cu", set())) + "\n"


@cache
def entries_of(kernel: str) -> Mapping[str, tuple[Parameter, ...]]:
    """The functions that a device starts, with their arguments, in the order of the file."""
    found = _ENTRY.findall(source_of(kernel))
    entries = {name: tuple(map(_parameter, arguments.split(","))) for name, arguments in found}
    return MappingProxyType(entries)


def _parameter(declaration: str) -> Parameter:
    type_name, name = declaration.rsplit(maxsplit=1)
    if name.startswith("*"):
        return Parameter(name[1:], "pointer")
    return Parameter(name, _KINDS[type_name.strip()])


def _lines(name: str, seen: set[str]) -> Iterator[str]:
    """Lines of a file; each file that it includes stands where it is named first."""
    seen.add(name)
    yield f'#line 1 "{name}"'
    text = (FOLDER / name).read_text(encoding="utf-8")
    for number, line in enumerate(text.splitlines(), 1):
        include = _INCLUDE.fullmatch(line)
        if include is None:
            yield line
        elif include[1] not in seen:
            yield from _lines(include[1], seen)
            yield f'#line {number + 1} "{name}"'
        else:
            yield ""

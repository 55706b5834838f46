"""Port: name, dtype and symbolic shape of one tensor at a stage's edge.

A dimension is an integer, a symbol (``"batch"``) or a symbol divided by an integer
(``"height/8"``). ``height`` and ``width`` are those of the padded image, so a port's shape tells
how its spatial axes scale with the image; tiling reads nothing else.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from jscc.runtime.errors import DataError

Array = npt.NDArray[np.generic]
Dim = int | str

RATE, PLANES = "rate", "planes"
DTYPES = ("float32", "float16", "int64", "int32", "uint8", "bool")


@dataclass(frozen=True)
class Port:
    """Name, dtype and symbolic shape of one tensor.

    Attributes:
        name: Name in the graph and among the program's tensors.
        dtype: One of `DTYPES`.
        shape: Dimensions, outermost first.
    """

    name: str
    dtype: str
    shape: tuple[Dim, ...]

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(str(dim) for dim in self.shape)}]"


def split_dim(dim: str) -> tuple[str, int]:
    """Split ``"height/8"`` into ``("height", 8)``; a bare symbol divides by 1."""
    symbol, _, divisor = dim.partition("/")
    return symbol, int(divisor) if divisor else 1


def resolve(port: Port, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The concrete shape of `port` where the symbols have the given `sizes`."""
    shape = []
    for dim in port.shape:
        if isinstance(dim, int):
            shape.append(dim)
        else:
            symbol, divisor = split_dim(dim)
            shape.append(sizes[symbol] // divisor)
    return tuple(shape)


def describe(array: object) -> str:
    """``float64[1,3,250,256]``: how an array prints in a message, like a port."""
    if not isinstance(array, np.ndarray):
        return type(array).__name__
    return f"{array.dtype}[{','.join(map(str, array.shape))}]"


def check_ports(stage: str, ports: Iterable[Port], arrays: Mapping[str, Array]) -> dict[str, int]:
    """Hold `arrays` to `ports` and return the sizes that their symbols take.

    The value of a port ``rate`` is the size of the symbol ``planes``.

    Raises:
        DataError: ``E_PORT``, an array is missing, or its dtype or shape breaks the contract.
    """
    sizes: dict[str, int] = {}
    for port in ports:
        where = f"stage {stage!r}, port {port.name!r}"
        if port.name not in arrays:
            raise DataError("E_PORT", f"{where}: got nothing, expected {port}. Feed this port.")
        array = arrays[port.name]
        if str(array.dtype) != port.dtype or not _fits(port, array.shape, sizes):
            raise DataError(
                "E_PORT", f"{where}: got {describe(array)}, expected {port}. Check the caller."
            )
        if port.name == RATE and array.size:
            sizes.setdefault(PLANES, int(array.flat[0]))
    return sizes


def _fits(port: Port, shape: tuple[int, ...], sizes: dict[str, int]) -> bool:
    """Whether `shape` fits; symbols seen for the first time are added to `sizes`."""
    if len(shape) != len(port.shape):
        return False
    for dim, size in zip(port.shape, shape, strict=True):
        if isinstance(dim, int):
            if dim != size:
                return False
            continue
        symbol, divisor = split_dim(dim)
        if sizes.setdefault(symbol, size * divisor) != size * divisor:
            return False
    return True

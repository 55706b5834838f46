"""Host sides: side inputs that the receiving end itself gives, from files.

A file holds an input as the receiver takes it, float32 with a batch axis in front (.npy), or a map
of the picture, one number per pixel: a .npy of float32[height, width], or a gray picture, black 0
and white 1. Maps are as large as the picture that was sent; they are enlarged and padded like it.
"""

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from jscc.runtime.commands.engine import read_picture
from jscc.runtime.errors import SymbolsError, UsageError
from jscc.runtime.manifest import Manifest
from jscc.runtime.npy import read_npy
from jscc.runtime.ports import Array
from jscc.runtime.preprocess import geometry_of, pad_map
from jscc.runtime.sides import host_sides, side_port
from jscc.runtime.terminal import Parser
from jscc.runtime.trust import Asset, open_regular, read_span, size_of

Floats = npt.NDArray[np.float32]

MAX_SIDE_BYTES = 2**26
NPY = ".npy"
MAP = ("batch", 1, "height", "width")
_SIDES = Asset(SymbolsError, "E_SIDE", "Name a .npy file of float32")


@dataclass(frozen=True)
class HostSides:
    """The host's side inputs of one bundle, for images of any size.

    Attributes:
        arrays: As the receiver takes them.
        maps: One number per pixel of the picture.
    """

    arrays: Mapping[str, Array] = field(default_factory=dict)
    maps: Mapping[str, Floats] = field(default_factory=dict)

    def of(self, manifest: Manifest, size: tuple[int, int] | None) -> dict[str, Array]:
        """What to give for a picture of `size` (height, width); None where nobody knows it.

        Raises:
            UsageError: ``E_SIDE``, a map has another size.
        """
        placed = {name: _place(name, plane, manifest, size) for name, plane in self.maps.items()}
        return {**self.arrays, **placed}


def _place(name: str, plane: Floats, manifest: Manifest, size: tuple[int, int] | None) -> Floats:
    """A map of a picture of `size` as the receiver takes it."""
    if size is None or plane.shape != size:
        wanted = "the size of the picture to be known" if size is None else f"{size[0]}x{size[1]}"
        raise UsageError(
            "E_SIDE",
            f"side {name!r}: got a map of {plane.shape[0]}x{plane.shape[1]} pixels, expected "
            f"{wanted}. {'Give --size HxW' if size is None else 'Scale it to the picture'}.",
        )
    geometry = geometry_of(size, manifest.image, manifest.image.max_pixels)
    return pad_map(plane, geometry)[None, None]


def add_sides(parser: Parser) -> None:
    """``--side`` and ``--context``."""
    add_side(parser)
    parser.add_argument(
        "--context",
        type=Path,
        metavar="FILE.npy",
        help="the side input of a bundle that has one only, without its name: float32 in the shape "
        "that jscc inspect shows, a mask in that of the padded picture",
    )


def add_side(parser: argparse.ArgumentParser) -> None:
    """``--side``."""
    parser.add_argument(
        "--side",
        action="append",
        default=[],
        dest="sides",
        type=side_file,
        metavar="NAME=FILE",
        help="a side input of the bundle, see jscc inspect: .npy of float32 in its shape, or, of a "
        "map such as mask, a gray picture (white is 1, what was received is kept) or .npy of "
        "float32[height,width] as large as the picture that was sent; may be repeated",
    )


def side_file(text: str) -> tuple[str, Path]:
    """``NAME=FILE``."""
    name, _, path = text.partition("=")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or not path:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected NAME=FILE such as mask=mask.png")
    return name, Path(path)


def read_sides(
    manifest: Manifest, context: Path | None, named: Sequence[tuple[str, Path]]
) -> HostSides:
    """Read the host's side inputs.

    Args:
        manifest: Of the bundle that takes them.
        context: File of the only one there is.
        named: Names and files.

    Raises:
        UsageError: ``E_SIDE``, a file for an input that the bundle does not take from its host, or
            two for one.
        SymbolsError: ``E_SIDE_…``, ``E_NPY``, ``E_SIDE_NONFINITE``: a file cannot be used.
        ImageError: ``E_IMG_…``, a picture cannot be used.
        StorageError: ``E_IO``, reading failed.
    """
    wanted = host_sides(manifest)
    files = list(named)
    if context is not None:
        if len(wanted) != 1:
            raise UsageError(
                "E_SIDE",
                f"--context: got a file, expected a bundle with one side input; this one has "
                f"{', '.join(wanted) or 'none'}. Leave it out, or give --side NAME=FILE.",
            )
        files.append((wanted[0], context))
    check_names([name for name, _ in files], wanted)
    arrays: dict[str, Array] = {}
    maps: dict[str, Floats] = {}
    for name, path in files:
        array = _read(manifest, path, name)
        if array.ndim == 2 and _takes_map(manifest, name):
            maps[name] = array
        else:
            arrays[name] = array
    return HostSides(arrays, maps)


def check_names(names: Sequence[str], wanted: Sequence[str]) -> None:
    """Hold the names of side inputs to those that are `wanted`, each once.

    Raises:
        UsageError: ``E_SIDE``, one is unknown or there twice.
    """
    for name in names:
        if name not in wanted or names.count(name) > 1:
            times = " twice" if name in wanted else ""
            once = f"each of {', '.join(wanted)} once" if wanted else "none: nothing takes it"
            raise UsageError(
                "E_SIDE",
                f"--side: got {name!r}{times}, expected {once}. Correct the name or leave it out.",
            )


def _takes_map(manifest: Manifest, name: str) -> bool:
    port = side_port(manifest, name)
    return port is not None and port.shape == MAP


def _read(manifest: Manifest, path: Path, name: str) -> Floats:
    if path.suffix.lower() == NPY:
        return _read_array(path)
    if not _takes_map(manifest, name):
        raise UsageError(
            "E_SIDE",
            f"--side {name}: got {path.name!r}, expected a {NPY} file: this input is no map of the "
            "picture. Save it as float32.",
        )
    pixels = read_picture(path, manifest.image.max_pixels)
    return np.asarray(pixels.mean(axis=2, dtype=np.float32) / np.float32(255))


def _read_array(path: Path) -> Floats:
    with open_regular(path.resolve(), asset=_SIDES) as descriptor:
        size = size_of(descriptor)
        if size > MAX_SIDE_BYTES:
            raise _SIDES.refuse("SIZE", str(path), f"{size} bytes", f"at most {MAX_SIDE_BYTES}")
        data, _ = read_span(descriptor, str(path), 0, size, asset=_SIDES)
    array = read_npy(data, str(path), dtypes=("float32",), error=SymbolsError)
    if not np.isfinite(array).all():
        raise _SIDES.refuse("NONFINITE", str(path), "values that are not finite", "finite ones")
    return array

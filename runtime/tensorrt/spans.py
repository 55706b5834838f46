"""Span: the sizes that one optimisation profile of an engine takes.

An engine is compiled for ranges of sizes and tuned for one size in each. A few narrow ranges make a
faster engine than a wide one, and none at all the fastest: a size alone is a range of itself.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from jscc.runtime.errors import ImageError, UsageError
from jscc.runtime.manifest import ImageContract, Manifest, StageEntry
from jscc.runtime.ports import PLANES, Port, resolve, split_dim
from jscc.runtime.preprocess import geometry_of

Range = tuple[int, int, int]
Shape = tuple[int, ...]

AXES = ("batch", "height", "width")
UNTILED = 512  # pixels; edge of the images that an engine is built for where a bundle says nothing
_SIZE = r"(?:([0-9]{1,4})x)?([0-9]{1,6})x([0-9]{1,6})"


@dataclass(frozen=True)
class Span:
    """Sizes of each symbol in a stage's ports: the least, the one to tune for, and the most.

    Attributes:
        ranges: Symbol and its range, sorted by symbol.
    """

    ranges: tuple[tuple[str, Range], ...] = ()

    @classmethod
    def of(cls, ranges: Mapping[str, Range]) -> "Span":
        """The span of `ranges` by symbol."""
        return cls(tuple(sorted(ranges.items())))

    @classmethod
    def exactly(cls, sizes: Mapping[str, int]) -> "Span":
        """The span of one size of each symbol."""
        return cls.of({symbol: (size, size, size) for symbol, size in sizes.items()})

    def covers(self, sizes: Mapping[str, int]) -> bool:
        """Whether an engine of this span takes `sizes`."""
        ranges = dict(self.ranges)
        return set(sizes) <= set(ranges) and all(
            ranges[symbol][0] <= size <= ranges[symbol][2] for symbol, size in sizes.items()
        )

    def includes(self, other: "Span") -> bool:
        """Whether an engine of this span takes all that one of the other does."""
        ends = ({symbol: sizes[end] for symbol, sizes in other.ranges} for end in (0, 2))
        return all(self.covers(sizes) for sizes in ends)

    @property
    def reach(self) -> float:
        """How wide it is: sizes are served by the narrowest span that covers them."""
        product = 1.0
        for _, (least, _, most) in self.ranges:
            product *= most * most / least
        return product

    def shapes(self, port: Port) -> tuple[Shape, Shape, Shape]:
        """The least, best and largest shape of `port`."""
        least, best, most = (
            resolve(port, {symbol: sizes[index] for symbol, sizes in self.ranges})
            for index in range(3)
        )
        return least, best, most

    def values(self, symbol: str) -> Range:
        """The range of one symbol."""
        return dict(self.ranges)[symbol]

    def __str__(self) -> str:
        parts = []
        for symbol, (least, best, most) in self.ranges:
            text = str(best) if least == most else f"{least}..{most}, best {best}"
            parts.append(f"{symbol} {text}")
        return ", ".join(parts) or "one shape"


def symbols_of(entry: StageEntry) -> tuple[str, ...]:
    """The symbols in the shapes of a stage's inputs."""
    dims = (dim for port in entry.inputs for dim in port.shape if isinstance(dim, str))
    return tuple(sorted({split_dim(dim)[0] for dim in dims}))


def parse_shapes(text: str) -> tuple[Span, ...]:
    """Images as a command line names them: ``[Bx]HxW``, or ``LEAST-MOST`` of two, by commas.

    Engines are tuned for the most.

    Raises:
        UsageError: ``E_SHAPES``.
    """
    return tuple(_parse_span(part) for part in text.split(","))


def _parse_span(text: str) -> Span:
    found = re.fullmatch(f"{_SIZE}(?:-{_SIZE})?", text)
    if found is None:
        raise _refuse(text, "[BATCHx]HEIGHTxWIDTH or two of them with a dash between")
    least = [int(each or 1) for each in found.groups()[:3]]
    most = least if found[6] is None else [int(each or 1) for each in found.groups()[3:]]
    if any(not 0 < low <= high for low, high in zip(least, most, strict=True)):
        raise _refuse(text, "sizes of 1 or more, the least first")
    pairs = zip(AXES, least, most, strict=True)
    return Span.of({axis: (low, high, high) for axis, low, high in pairs})


def _refuse(text: str, expected: str) -> UsageError:
    return UsageError(
        "E_SHAPES",
        f"--shapes: got {text!r}, expected {expected}. Write 512x768 or 1x64x64-4x512x768.",
    )


def usual_images(manifest: Manifest) -> tuple[Span, ...]:
    """The images that an engine is built for where nobody says.

    They are the self-test's, and those with edges from half a tile to a whole one, or to the
    largest square that the bundle takes.
    """
    contract = manifest.image
    most = math.isqrt(contract.max_pixels) // contract.multiple * contract.multiple
    edge = min(contract.tile or UNTILED, most or contract.multiple)
    edges = (-(-edge // 2), edge, edge)
    images = [Span.of({"batch": (1, 1, 1), "height": edges, "width": edges})]
    tested = selftest_size(manifest)
    if tested is not None:
        images.insert(0, Span.exactly({"batch": 1, "height": tested[0], "width": tested[1]}))
    return tuple(dict.fromkeys(images))


def selftest_size(manifest: Manifest) -> tuple[int, int] | None:
    """(height, width) of the self-test's padded image; None where the bundle has none."""
    if manifest.selftest is None:
        return None
    rows, columns = manifest.tensors[manifest.selftest.symbols].shape[-2:]
    return manifest.signal.stride * rows, manifest.signal.stride * columns


def stage_spans(images: Iterable[Span], entry: StageEntry, manifest: Manifest) -> tuple[Span, ...]:
    """What a stage sees of `images`: padded, cut into tiles where it is tiled, each once.

    Raises:
        UsageError: ``E_SHAPES``, more pixels than the bundle takes.
    """
    symbols = symbols_of(entry)
    spans = []
    for image in images:
        ranges = _seen(image, entry, manifest.image)
        ranges[PLANES] = _planes(manifest)
        spans.append(Span.of({each: ranges[each] for each in symbols if each in ranges}))
    return tuple(dict.fromkeys(spans))


def _seen(image: Span, entry: StageEntry, contract: ImageContract) -> dict[str, Range]:
    edges = []
    for index in range(3):
        sizes = {symbol: each[index] for symbol, each in image.ranges}
        size = (sizes["height"], sizes["width"])
        try:
            padded = geometry_of(size, contract, contract.max_pixels).padded
        except ImageError as error:
            raise UsageError(
                "E_SHAPES",
                f"--shapes: got {size[0]}x{size[1]}, expected at most {contract.max_pixels} pixels "
                "after padding. Write smaller ones.",
            ) from error
        tile = contract.tile if entry.tiled and contract.tile else max(padded)
        edges.append((min(padded[0], tile), min(padded[1], tile)))
    heights, widths = zip(*edges, strict=True)
    return {"batch": image.values("batch"), "height": heights, "width": widths}


def _planes(manifest: Manifest) -> Range:
    """How many planes are sent, where the transmitter has a choice."""
    rates = manifest.signal.rates or (manifest.signal.planes,)
    return rates[0], rates[-1], rates[-1]

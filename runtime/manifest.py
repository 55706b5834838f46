"""Manifest: what a bundle's ``manifest.json`` says, read strictly.

The dataclasses below are formats 1 to 3; fields made by `added` say since when. Units stand in the
names (``_db``); shapes are symbolic as in `jscc.runtime.ports`. The runtime never branches on
`Manifest.system`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from jscc.runtime.declared import Check, added, needed_format, read, refuse, shown, write
from jscc.runtime.errors import BundleError
from jscc.runtime.manifest_fields import FileName, Name, Ports, Sha256, Span, Text, within
from jscc.runtime.manifest_loops import Descent, Loop, LoopStep
from jscc.runtime.ports import DTYPES
from jscc.runtime.trust import strict_json

FORMAT = 3  # the newest that is read; a bundle says the least that can express it
MANIFEST = "manifest.json"
SEAL = "manifest.sha256"  # its hash, as sha256sum writes it
MANIFEST_LIMIT = 1_000_000  # bytes
TENSOR_DTYPES = (*DTYPES, "complex64")
FILE_LIMIT = 1 << 36  # bytes; 64 GiB


@dataclass(frozen=True)
class NetworkSource:
    """Where the weights of one network among several come from."""

    name: Text
    sha256: Sha256
    licence: Text


@dataclass(frozen=True)
class Source:
    """Where the weights come from.

    Attributes:
        name: File name of the checkpoint.
        sha256: Its hash; of several, that of the lines ``ROLE HASH``, sorted.
        licence: Licence of the weights, in the words of their authors.
        overrides: Checks that the exporter was told to pass over.
        networks: The single checkpoints of a system of several networks, by role.
    """

    name: Text
    sha256: Sha256
    licence: Text
    overrides: tuple[Text, ...] = ()
    networks: Mapping[Name, NetworkSource] = added(2, {})


@dataclass(frozen=True)
class FileEntry:
    """Hash and size (bytes) of one file of the bundle."""

    sha256: Sha256
    size: Annotated[int, within(0, FILE_LIMIT)]


@dataclass(frozen=True)
class Signal:
    """What is on the air.

    Attributes:
        planes: Real planes C; C/2 complex symbols per grid position.
        stride: Image pixels per grid position, along height and width.
        packing: ``halves``: the first C/2 planes are the real parts, the others the imaginary.
        power: ``unit_per_image``: unit mean power over all symbols of one image.
        snr_db_range: What the networks were trained on.
        snr_db_default: Where nothing else is said.
        csi_inputs: What the receiver's graphs are told of the channel.
        transmitter_csi: Whether the transmitter needs `Csi` too.
        equalisation: What the receiver does with the gain before its graphs.
        power_range: Mean power of received symbols that is decoded at all.
        rates: How many planes the transmitter may choose to send, the last one all of them; empty
            where it has no choice. ``planes`` is then a dimension of ports, and ``rate`` [batch]
            an input of ``encode``: how many planes it is to make.
    """

    planes: Annotated[int, within(2, 4096), Check(lambda planes: planes % 2 == 0, "an even number")]
    stride: Annotated[int, within(1, 1024)]
    packing: Literal["halves"]
    power: Literal["unit_per_image"]
    snr_db_range: Span
    snr_db_default: float
    csi_inputs: tuple[Literal["snr_db", "gain"], ...]
    transmitter_csi: bool
    equalisation: Literal["none", "zero_forcing"]
    power_range: Annotated[Span, Check(lambda span: span[0] > 0.0, "powers above 0")]
    rates: Annotated[
        tuple[Annotated[int, within(2, 4096)], ...],
        Check(
            lambda rates: list(rates) == sorted({rate for rate in rates if rate % 2 == 0}),
            "even numbers, ascending",
        ),
    ] = added(2, ())


@dataclass(frozen=True)
class ImageContract:
    """What images are accepted and how they are cut, in pixels.

    Attributes:
        multiple: Height and width are padded to a multiple of this.
        short_edge: Images with a shorter short edge are enlarged to it; 0 never enlarges.
        rounding: How [0, 1] becomes 0..255 in the end.
        tile: Edge of a tile; 0 never tiles.
        overlap: What neighbouring tiles share.
        max_pixels: Largest padded image.
        padding: What is put at the bottom and at the right: ``zeros``, or the image's reflection.
    """

    multiple: Annotated[int, within(1, 1024)]
    short_edge: Annotated[int, within(0, 8192)]
    rounding: Literal["truncate", "nearest"]
    tile: Annotated[int, within(0, 16384)]
    overlap: Annotated[int, within(0, 8192)]
    max_pixels: Annotated[int, within(1, 1 << 28)]
    padding: Literal["zeros", "reflect"] = added(2, "zeros")


@dataclass(frozen=True)
class StageEntry:
    """One graph, its ports, and whether it may run tile by tile."""

    graph: FileName
    opset: Annotated[int, within(1, 64)]
    tiled: bool
    inputs: Ports
    outputs: Ports


@dataclass(frozen=True)
class TensorEntry:
    """A constant stored in the bundle as ``.npy``."""

    file: FileName
    dtype: Annotated[str, Check(lambda dtype: dtype in TENSOR_DTYPES, f"one of {TENSOR_DTYPES}")]
    shape: Annotated[
        tuple[Annotated[int, within(1, (1 << 31) - 1)], ...],
        Check(lambda shape: len(shape) <= 8, "at most 8 dimensions"),
    ]


@dataclass(frozen=True)
class ParityEntry:
    """How far one output is from torch, on an image of `size` (height, width).

    Of a stage that is made for one size, such as a tile's, that is `size`. `psnr_db` is None where
    nothing differs.
    """

    max_abs: Annotated[float, within(0.0, 1e9)]
    psnr_db: float | None
    size: tuple[int, int]


@dataclass(frozen=True)
class SelftestCsi:
    """The `Csi` of the self-test; `gain` is (real, imaginary)."""

    snr_db: float
    gain: tuple[float, float]


@dataclass(frozen=True)
class Selftest:
    """A decode with a known answer, run before the first image.

    Attributes:
        symbols: Bundle tensor, complex64[planes/2, rows, columns].
        image: Bundle tensor, uint8[height, width, 3]: the expected image.
        csi: What the receiver is told.
        seed: Seed of the noise.
        steps: Steps of the loop, if there is one.
        psnr_floor_db: Least PSNR between the decoded and the expected image.
        side: Side input → bundle tensor that is given for it; zeros are given for the others.
    """

    symbols: Name
    image: Name
    csi: SelftestCsi
    seed: Annotated[int, within(0, (1 << 63) - 1)]
    steps: Annotated[int, within(0, 10_000)]
    psnr_floor_db: Annotated[float, within(0.0, 1000.0)]
    side: Mapping[Name, Name] = added(2, {})


@dataclass(frozen=True)
class Manifest:
    """A bundle's own description. See the classes above for the parts.

    Attributes:
        system: Published method, free text.
        variant: Which of its variants, free text.
        made_by: Exporter and version.
        files: Every file of the bundle but the manifest and its hash.
        stages: Graphs by stage name; ``encode`` is the transmitter's, the others the receiver's.
        tensors: Constants by name.
        program: What the receiver runs, in order.
        loops: Loops by the name of their stage.
        image_output: Named tensor that is the received image, float32 in [0, 1].
        side_inputs: Named tensors that come with each image beside its symbols: those that
            ``encode`` returns behind the planes from the transmitter, the others from the host.
        precision: Free text, ``fp32``.
        calibration: Record of the calibration; any JSON.
        parity: Measured difference to torch, by stage and output port.
        quality: Quality card; any JSON.
        descents: Descents by the name that the program gives them, as in a loop's step.
        codec_output: Named tensor that is the received image where a loop's regime wants no steps.
    """

    system: Text
    variant: Text
    made_by: Text
    source: Source
    signal: Signal
    image: ImageContract
    stages: Mapping[Name, StageEntry]
    program: Annotated[tuple[Name | LoopStep, ...], Check(bool, "one step or more")]
    image_output: Name
    tensors: Mapping[Name, TensorEntry] = field(default_factory=dict)
    loops: Mapping[Name, Loop] = field(default_factory=dict)
    side_inputs: tuple[Name, ...] = ()
    precision: Text = "fp32"
    calibration: Mapping[str, object] | None = None
    parity: Mapping[Name, Mapping[Name, ParityEntry]] = field(default_factory=dict)
    selftest: Selftest | None = None
    quality: Mapping[str, object] | None = None
    files: Mapping[FileName, FileEntry] = field(default_factory=dict)
    descents: Mapping[Name, Descent] = added(2, {})
    codec_output: Name | None = added(3, None)
    format: int = 1

    def stages_of(self, step: "str | LoopStep") -> tuple[str, ...]:
        """The stages that one step of the program runs, in order."""
        name = step.loop if isinstance(step, LoopStep) else step
        if isinstance(step, LoopStep) and name in self.descents:
            return self.descents[name].stages
        loop = self.loops.get(name) if isinstance(step, LoopStep) else None
        return (name,) if loop is None else (name, *loop.guides.values())

    @property
    def receiver_stages(self) -> tuple[str, ...]:
        """All stages that the program runs, in order."""
        return tuple(name for step in self.program for name in self.stages_of(step))


def parse_manifest(data: bytes) -> Manifest:
    """Read the bytes of a ``manifest.json``; `check_coherence` then holds its parts together.

    Raises:
        BundleError: ``E_MANIFEST`` naming the JSON pointer; ``E_MANIFEST_VERSION``, a newer
            format; ``E_BUNDLE_PATH``, a file name that is not plain.
    """
    tree = strict_json(data, limit=MANIFEST_LIMIT)
    if not isinstance(tree, dict):
        raise refuse("", shown(tree), "an object")
    number = tree.get("format")
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise refuse("/format", shown(number), "a whole number from 1 up")
    if number > FORMAT:
        raise BundleError(
            "E_MANIFEST_VERSION",
            f"bundle is format {number}, this runtime reads ≤ {FORMAT}: update jscc-edge",
        )
    manifest: Manifest = read(Manifest, tree)
    needed = needed_format(manifest)
    if number < needed:
        raise refuse("/format", str(number), f"{needed}, which added keys that this manifest has")
    return manifest


def serialise_manifest(manifest: Manifest) -> bytes:
    """The bytes of ``manifest.json``: sorted keys, newline at the end; never unreadable ones.

    Raises:
        BundleError: What `parse_manifest` raises for these bytes.
    """
    data = json.dumps(write(manifest), sort_keys=True, indent=1).encode() + b"\n"
    parse_manifest(data)
    return data

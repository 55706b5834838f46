"""Manifest: what a bundle's ``manifest.json`` says, read strictly.

The dataclasses below are formats 1 and 2; fields made by `added` say since when. Units stand in the
names (``_db``); shapes are symbolic as in `jscc.runtime.ports`. The runtime never branches on
`Manifest.system`.
"""

import json
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated, Literal

from jscc.runtime.declared import Check, added, needed_format, read, refuse, shown, write
from jscc.runtime.errors import BundleError
from jscc.runtime.ports import DTYPES, Dim, Port
from jscc.runtime.trust import is_flat_name, strict_json

FORMAT = 2  # the newest that is read; a bundle says the least that can express it
MANIFEST = "manifest.json"
SEAL = "manifest.sha256"  # its hash, as sha256sum writes it
MANIFEST_LIMIT = 1_000_000  # bytes
TENSOR_DTYPES = (*DTYPES, "complex64")
FILE_LIMIT = 1 << 36  # bytes; 64 GiB

_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_DIM = re.compile(r"[a-z][a-z0-9_]{0,31}(/[1-9][0-9]{0,3})?")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}  # control, direction, surrogate, line separators


def _is_text(text: str) -> bool:
    return len(text) <= 500 and not any(unicodedata.category(sign) in _HIDDEN for sign in text)


def _is_dim(dim: Dim) -> bool:
    return _DIM.fullmatch(dim) is not None if isinstance(dim, str) else 1 <= dim < 1 << 31


def _is_port(port: Port) -> bool:
    named = _NAME.fullmatch(port.name) is not None and port.dtype in DTYPES
    return named and len(port.shape) <= 8 and all(_is_dim(dim) for dim in port.shape)


def _within(low: float, high: float) -> Check:
    return Check(lambda value: low <= value <= high, f"{low} to {high}")


Name = Annotated[str, Check(lambda text: _NAME.fullmatch(text) is not None, "a name like 'snr_db'")]
Text = Annotated[str, Check(_is_text, "at most 500 printable characters")]
Sha256 = Annotated[
    str, Check(lambda text: _SHA256.fullmatch(text) is not None, "64 lower-case hex digits")
]
FileName = Annotated[
    str,
    Check(
        is_flat_name,
        "a plain file name, or one in graphs/ (.onnx, .data) or tensors/ (.npy)",
        "E_BUNDLE_PATH",
    ),
]
Ports = Annotated[
    tuple[
        Annotated[
            Port,
            Check(
                _is_port,
                f"a lower-case name, a dtype of {', '.join(DTYPES)}, and 0 to 8 dimensions",
            ),
        ],
        ...,
    ],
    Check(
        lambda ports: len({port.name for port in ports}) == len(ports) > 0,
        "one port or more, each name once",
    ),
]
Span = Annotated[tuple[float, float], Check(lambda span: span[0] <= span[1], "[low, high]")]
WEIGHT_LIMIT = 1e9
CURVE_LIMIT = 64  # points
SNR_LIMIT_DB = 1000.0


def is_curve(points: tuple[tuple[float, float], ...]) -> bool:
    """Whether these can be weights by SNR: a few of them, SNRs in dB ascending, weights from 0."""
    snrs_db, weights = [snr_db for snr_db, _ in points], [weight for _, weight in points]
    return (
        len(points) <= CURVE_LIMIT
        and all(abs(snr_db) <= SNR_LIMIT_DB for snr_db in snrs_db)
        and all(low < high for low, high in pairwise(snrs_db))
        and all(0.0 <= weight <= WEIGHT_LIMIT for weight in weights)
    )


Curve = Annotated[
    tuple[tuple[float, float], ...],
    Check(
        is_curve,
        f"at most {CURVE_LIMIT} pairs of an SNR in dB, ascending, and a weight from 0 to "
        f"{WEIGHT_LIMIT:g}",
    ),
]


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
    size: Annotated[int, _within(0, FILE_LIMIT)]


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

    planes: Annotated[
        int, _within(2, 4096), Check(lambda planes: planes % 2 == 0, "an even number")
    ]
    stride: Annotated[int, _within(1, 1024)]
    packing: Literal["halves"]
    power: Literal["unit_per_image"]
    snr_db_range: Span
    snr_db_default: float
    csi_inputs: tuple[Literal["snr_db", "gain"], ...]
    transmitter_csi: bool
    equalisation: Literal["none", "zero_forcing"]
    power_range: Annotated[Span, Check(lambda span: span[0] > 0.0, "powers above 0")]
    rates: Annotated[
        tuple[Annotated[int, _within(2, 4096)], ...],
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

    multiple: Annotated[int, _within(1, 1024)]
    short_edge: Annotated[int, _within(0, 8192)]
    rounding: Literal["truncate", "nearest"]
    tile: Annotated[int, _within(0, 16384)]
    overlap: Annotated[int, _within(0, 8192)]
    max_pixels: Annotated[int, _within(1, 1 << 28)]
    padding: Literal["zeros", "reflect"] = added(2, "zeros")


@dataclass(frozen=True)
class StageEntry:
    """One graph, its ports, and whether it may run tile by tile."""

    graph: FileName
    opset: Annotated[int, _within(1, 64)]
    tiled: bool
    inputs: Ports
    outputs: Ports


@dataclass(frozen=True)
class TensorEntry:
    """A constant stored in the bundle as ``.npy``."""

    file: FileName
    dtype: Annotated[str, Check(lambda dtype: dtype in TENSOR_DTYPES, f"one of {TENSOR_DTYPES}")]
    shape: Annotated[
        tuple[Annotated[int, _within(1, (1 << 31) - 1)], ...],
        Check(lambda shape: len(shape) <= 8, "at most 8 dimensions"),
    ]


@dataclass(frozen=True)
class LoopStep:
    """A step of the program that runs the loop or the descent of this name."""

    loop: Name


@dataclass(frozen=True)
class ScheduleSpec:
    """Noise levels that the network was trained on: the betas' first, last and how many."""

    kind: Name
    first: Annotated[float, _within(0.0, 1.0)]
    last: Annotated[float, _within(0.0, 1.0)]
    timesteps: Annotated[int, _within(1, 10_000)]


@dataclass(frozen=True)
class SamplerSpec:
    """The default way through the schedule.

    Attributes:
        name: Sampler, by its file name in ``runtime/samplers``.
        steps: Steps of the loop.
        start: From noise, or from the received image's own latent.
        start_level: Share of the schedule that is run, in (0, 1]; None follows the SNR.
        guidance: Weight of the guide; 0 for none; where `guidance_by_snr` says more, its largest.
        guide: Which of the loop's `Loop.guides` gives the gradient; None for none of them.
        guide_every: Of so many steps one is guided, the first of them.
        travel: Of so many steps (first) each stretch is run so often (second); (1, 1): once.
        guidance_by_snr: Pairs of an SNR in dB and the weight of the guide there; linear in between,
            beyond the ends as at the nearer end. Empty where one weight serves every SNR.
    """

    name: Name
    steps: Annotated[int, _within(1, 10_000)]
    start: Literal["noise", "received"]
    start_level: Annotated[float, Check(lambda level: 0 < level <= 1, "0 < level <= 1")] | None
    guidance: Annotated[float, _within(0.0, WEIGHT_LIMIT)]
    guide: Name | None = added(2, None)
    guide_every: Annotated[int, _within(1, 10_000)] = added(2, 1)
    travel: Annotated[
        tuple[int, int],
        Check(lambda travel: all(1 <= each <= 1000 for each in travel), "two numbers, 1 to 1000"),
    ] = added(2, (1, 1))
    guidance_by_snr: Curve = added(2, ())


@dataclass(frozen=True)
class Loop:
    """A stage run once per noise level.

    Attributes:
        state: Input port that the sampler advances; afterwards a named tensor.
        start: Named tensor that the ``received`` start begins from.
        guide: Named tensor that the clean estimate is pulled to, or None.
        schedule: Noise levels.
        sampler: Defaults.
        settings: Knobs fed to the stages as float32[batch] by name, with their defaults.
        guides: Guide → the stage that is run instead on guided steps and returns ``grad`` too.
    """

    state: Name
    start: Name | None
    guide: Name | None
    schedule: ScheduleSpec
    sampler: SamplerSpec
    settings: Mapping[Name, Annotated[float, _within(-1e9, 1e9)]] = added(2, {})
    guides: Mapping[Name, Name] = added(2, {})


@dataclass(frozen=True)
class Variable:
    """What a descent looks for, one per tile; the stages' ports give its shape.

    Attributes:
        start: Standard normals, or what the stage `Round.before` returns.
        sphere: So many last axes make a vector whose length is kept; 0 for none.
    """

    start: Literal["normal", "stage"]
    sphere: Annotated[int, _within(0, 7)]


@dataclass(frozen=True)
class Round:
    """Steps of a descent on one stage, with moments of their own.

    Attributes:
        gradient: Stage that returns ``loss`` and ``grad_V`` for each variable V that it moves.
        steps: How many by default.
        learning_rate: The largest.
        before: Stage run once before the round; the variables that it returns join the others.
    """

    gradient: Name
    steps: Annotated[int, _within(1, 10_000)]
    learning_rate: Annotated[float, _within(0.0, 1e3)]
    before: Name | None


@dataclass(frozen=True)
class Descent:
    """Variables searched for the least loss by Adam, on each tile by itself.

    Attributes:
        variables: What is searched, by port name.
        rounds: In order.
        render: Stage that turns the variables into tiles of its outputs.
        keep: Which variables of the last round are rendered: of the least loss, or the last.
        rise: Share of a round in which the learning rate rises from 0.
        fall: Share of a round, at its end, in which it falls to 0.
        betas: Decay of Adam's first and second moments.
        epsilon: Added to the root of the second.
        settings: Knobs fed to the stages as float32[1] by name, with their defaults.
    """

    variables: Annotated[Mapping[Name, Variable], Check(bool, "one variable or more")]
    rounds: Annotated[tuple[Round, ...], Check(bool, "one round or more")]
    render: Name
    keep: Literal["best", "last"]
    rise: Annotated[float, _within(0.0, 1.0)]
    fall: Annotated[float, _within(0.0, 1.0)]
    betas: Annotated[
        tuple[float, float], Check(lambda betas: all(0 <= b < 1 for b in betas), "two in [0, 1)")
    ]
    epsilon: Annotated[float, _within(0.0, 1.0)]
    settings: Mapping[Name, float]

    @property
    def stages(self) -> tuple[str, ...]:
        """Its stages in the order of their first run."""
        asked = [name for each in self.rounds for name in (each.before, each.gradient)]
        return tuple(dict.fromkeys(name for name in (*asked, self.render) if name is not None))


@dataclass(frozen=True)
class ParityEntry:
    """How far one output is from torch, on an image of `size` (height, width).

    Of a stage that is made for one size, such as a tile's, that is `size`. `psnr_db` is None where
    nothing differs.
    """

    max_abs: Annotated[float, _within(0.0, 1e9)]
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
    seed: Annotated[int, _within(0, (1 << 63) - 1)]
    steps: Annotated[int, _within(0, 10_000)]
    psnr_floor_db: Annotated[float, _within(0.0, 1000.0)]
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

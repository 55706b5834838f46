"""Record: what really ran for one received image."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True)
class LoopRecord:
    """What a loop of the program did for this image.

    Attributes:
        sampler: Name of the sampler.
        steps: Evaluations of the network.
        start: ``noise`` or ``received``.
        level: Noise level that it began at.
        guidance: Weight of the guide, at this image's SNR.
        guide: What gave the gradient on guided steps; None where nothing did.
        guide_every: Of so many steps one was guided.
        travel: Length of a stretch in steps and how often each was run.
        settings: Knobs, by name.
        spacing: Of the noise levels; None for the sampler's own.
    """

    sampler: str
    steps: int
    start: str
    level: int
    guidance: float
    guide: str | None = None
    guide_every: int = 1
    travel: tuple[int, int] = (1, 1)
    settings: Mapping[str, float] = field(default_factory=dict)
    spacing: str | None = None


@dataclass(frozen=True)
class DescentRecord:
    """What a descent of the program did for this image.

    Attributes:
        rounds: Steps of each round, on every tile.
        learning_rates: The largest of each round.
        settings: Knobs, by name.
        loss: The least of the last round, the mean over the tiles.
    """

    rounds: tuple[int, ...]
    learning_rates: tuple[float, ...]
    settings: Mapping[str, float]
    loss: float

    @property
    def steps(self) -> int:
        """Gradients computed for one tile."""
        return sum(self.rounds)


@dataclass(frozen=True)
class Record:
    """What really ran for one image.

    Attributes:
        bundle: sha256 of the bundle's manifest.
        system: The bundle's system.
        precision: The bundle's precision.
        backend: Engine library.
        providers: What each stage runs on, by stage.
        seed: Seed of the noise.
        frame: Number of the image.
        batch: Images that were received together; the times are those of all of them.
        loops: What each loop did, by stage.
        snr_db_declared: SNR as the caller gave it.
        snr_db_used: SNR as the networks were told it.
        snr_clamped: Whether the declared SNR was outside the trained range.
        snr_db_measured: SNR that the mean power of the symbols speaks for; None where noise
            cannot be told from none.
        snr_suspect: Whether the symbols contradict the declared SNR.
        symbols: Symbols that the image is made of.
        missing: Those of them that never arrived and count as zero.
        power: Mean power of the received symbols.
        fallbacks: What was asked for and not done, and why; empty when all is as asked.
        tiles: Tiles per run of each stage.
        times_ms: Wall time by stage, the device's own where the tensors stay on it; ``total`` for
            everything.
        descents: What each descent did, by name.
        rate: Planes that the transmitter chose to send; None where it has no choice.
        regime: SNR in dB from which the bundle's own regime holds that decided steps and start;
            None where the caller or the sampler's defaults did.
    """

    bundle: str
    system: str
    precision: str
    backend: str
    providers: Mapping[str, str]
    seed: int
    frame: int
    batch: int
    loops: Mapping[str, LoopRecord]
    snr_db_declared: float
    snr_db_used: float
    snr_clamped: bool
    snr_db_measured: float | None
    snr_suspect: bool
    symbols: int
    missing: int
    power: float
    fallbacks: tuple[str, ...]
    tiles: Mapping[str, int]
    times_ms: Mapping[str, float]
    descents: Mapping[str, DescentRecord] = field(default_factory=dict)
    rate: int | None = None
    regime: float | None = None

    @property
    def steps(self) -> int:
        """Evaluations of the loops' networks and, for each tile, of the descents' gradients."""
        looped = sum(loop.steps for loop in self.loops.values())
        return looped + sum(descent.steps for descent in self.descents.values())

    def to_json(self) -> str:
        """One line of JSON with sorted keys."""
        return json.dumps(asdict(self), sort_keys=True, allow_nan=False)

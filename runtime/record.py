"""Record: what really ran for one received image."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class LoopRecord:
    """What a loop of the program did for this image.

    Attributes:
        sampler: Name of the sampler.
        steps: Evaluations of the network.
        start: ``noise`` or ``received``.
        level: Noise level that it began at.
        guidance: Weight of the guide.
    """

    sampler: str
    steps: int
    start: str
    level: int
    guidance: float


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
        times_ms: Wall time by stage, ``total`` for everything.
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

    @property
    def steps(self) -> int:
        """Evaluations of the loops' networks, all in all."""
        return sum(loop.steps for loop in self.loops.values())

    def to_json(self) -> str:
        """One line of JSON with sorted keys."""
        return json.dumps(asdict(self), sort_keys=True, allow_nan=False)

"""Loops and descents, as a manifest describes them: stages that are run over and over."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal

from jscc.runtime.declared import Check, added
from jscc.runtime.manifest_fields import Name, within

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
class LoopStep:
    """A step of the program that runs the loop or the descent of this name."""

    loop: Name


@dataclass(frozen=True)
class ScheduleSpec:
    """Noise levels that the network was trained on: the betas' first, last and how many."""

    kind: Name
    first: Annotated[float, within(0.0, 1.0)]
    last: Annotated[float, within(0.0, 1.0)]
    timesteps: Annotated[int, within(1, 10_000)]


@dataclass(frozen=True)
class Regime:
    """How images are received from one SNR up.

    Attributes:
        snr_db: SNR after equalisation, in dB; the lowest regime serves what lies below it too.
        steps: Of the sampler; 0 where the codec's image is left as it is.
        start: From noise, or from the received image's own latent.
        start_level: Share of the schedule that a ``received`` start runs, in (0, 1]; None for the
            sampler's own.
    """

    snr_db: Annotated[float, within(-SNR_LIMIT_DB, SNR_LIMIT_DB)]
    steps: Annotated[int, within(0, 10_000)]
    start: Literal["noise", "received"]
    start_level: Annotated[float, Check(lambda level: 0 < level <= 1, "0 < level <= 1")] | None


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
        regimes: Number of steps and start by SNR, ascending, which a caller who asks for neither
            gets instead of the above. Empty where one serves every SNR.
        levels: Noise levels that were found to serve this bundle best, ascending: a list serves a
            loop of so many steps that begins at its last level.
    """

    name: Name
    steps: Annotated[int, within(1, 10_000)]
    start: Literal["noise", "received"]
    start_level: Annotated[float, Check(lambda level: 0 < level <= 1, "0 < level <= 1")] | None
    guidance: Annotated[float, within(0.0, WEIGHT_LIMIT)]
    guide: Name | None = added(2, None)
    guide_every: Annotated[int, within(1, 10_000)] = added(2, 1)
    travel: Annotated[
        tuple[int, int],
        Check(lambda travel: all(1 <= each <= 1000 for each in travel), "two numbers, 1 to 1000"),
    ] = added(2, (1, 1))
    guidance_by_snr: Curve = added(2, ())
    regimes: Annotated[
        tuple[Regime, ...],
        Check(
            lambda regimes: (
                len(regimes) <= CURVE_LIMIT
                and all(low.snr_db < high.snr_db for low, high in pairwise(regimes))
            ),
            f"at most {CURVE_LIMIT} regimes, SNRs ascending",
        ),
    ] = added(3, ())
    levels: Annotated[
        tuple[tuple[Annotated[int, within(0, 9_999)], ...], ...],
        Check(
            lambda lists: all(each and list(each) == sorted(set(each)) for each in lists),
            "lists of noise levels, ascending",
        ),
    ] = added(3, ())

    def regime_at(self, snr_db: float) -> Regime | None:
        """The regime of this SNR, if there are any."""
        below = [regime for regime in self.regimes if regime.snr_db <= snr_db]
        return below[-1] if below else next(iter(self.regimes), None)


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
    settings: Mapping[Name, Annotated[float, within(-1e9, 1e9)]] = added(2, {})
    guides: Mapping[Name, Name] = added(2, {})


@dataclass(frozen=True)
class Variable:
    """What a descent looks for, one per tile; the stages' ports give its shape.

    Attributes:
        start: Standard normals, or what the stage `Round.before` returns.
        sphere: So many last axes make a vector whose length is kept; 0 for none.
    """

    start: Literal["normal", "stage"]
    sphere: Annotated[int, within(0, 7)]


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
    steps: Annotated[int, within(1, 10_000)]
    learning_rate: Annotated[float, within(0.0, 1e3)]
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
    rise: Annotated[float, within(0.0, 1.0)]
    fall: Annotated[float, within(0.0, 1.0)]
    betas: Annotated[
        tuple[float, float], Check(lambda betas: all(0 <= b < 1 for b in betas), "two in [0, 1)")
    ]
    epsilon: Annotated[float, within(0.0, 1.0)]
    settings: Mapping[Name, float]

    @property
    def stages(self) -> tuple[str, ...]:
        """Its stages in the order of their first run."""
        asked = [name for each in self.rounds for name in (each.before, each.gradient)]
        return tuple(dict.fromkeys(name for name in (*asked, self.render) if name is not None))

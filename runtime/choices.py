"""Choices: what a caller asks of a loop, held to what the loop can do."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from jscc.runtime.errors import UsageError
from jscc.runtime.manifest_loops import Loop, Regime, SamplerSpec

NO_GUIDE = "none"
STARTS = ("noise", "received")
MOST_TRAVEL = 1000
LARGEST_SETTING = 1e9


@dataclass(frozen=True)
class Choices:
    """What a caller asks of the loops; None for what the bundle says.

    Attributes:
        sampler: By its file name in ``runtime/samplers``.
        steps: Of the sampler.
        spacing: Of its noise levels, one of `jscc.runtime.spacing.SPACINGS`, or
            `jscc.runtime.spacing.OWN` for those that the bundle brings.
        start: ``noise`` or ``received``.
        start_level: Share of the schedule that a ``received`` start runs, in (0, 1].
        guidance: Weight of the guide, at every SNR.
        guide: One of the bundle's guides, or ``none``.
        guide_every: Of so many steps one is guided.
        travel: Length of a stretch in steps and how often each is run.
        settings: Values of the bundle's knobs by name; those left out stay.
    """

    sampler: str | None = None
    steps: int | None = None
    start: str | None = None
    start_level: float | None = None
    guidance: float | None = None
    guide: str | None = None
    guide_every: int | None = None
    travel: tuple[int, int] | None = None
    settings: Mapping[str, float] = field(default_factory=dict)
    spacing: str | None = None

    @property
    def leave_the_way_open(self) -> bool:
        """Whether nothing is said of sampler, steps and start, so that the SNR may decide."""
        asked = (self.sampler, self.steps, self.spacing, self.start, self.start_level)
        return all(each is None for each in asked)

    def within(self, regime: Regime) -> "Choices":
        """These, with the steps and the start of `regime`."""
        level = regime.start_level
        return replace(self, steps=regime.steps, start=regime.start, start_level=level)


def chosen_start(loop: Loop, choices: Choices) -> str:
    """Where the loop begins.

    Raises:
        UsageError: ``E_START``, another word, or one that this loop or `choices` have no use for.
    """
    start = choices.start if choices.start is not None else loop.sampler.start
    if start not in STARTS:
        raise UsageError(
            "E_START", f"start: got {start!r}, expected one of {', '.join(STARTS)}. Pick one."
        )
    if start == "received" and loop.start is None:
        raise UsageError(
            "E_START", "start: got 'received', expected 'noise': this bundle has no other start."
        )
    level = choices.start_level
    if level is not None and start != "received":
        raise UsageError(
            "E_START",
            f"start_level: got {level} with start {start!r}, expected start 'received'. "
            "Ask for that start, or leave the level out.",
        )
    if level is not None and not 0.0 < level <= 1.0:
        raise UsageError(
            "E_START", f"start_level: got {level}, expected more than 0 and at most 1. Correct it."
        )
    return start


def chosen_guide(loop: Loop, choices: Choices, weights: Sequence[float]) -> str | None:
    """The guide whose stage runs on guided steps; None for none, and where it weighs nothing.

    Args:
        loop: What the bundle says.
        choices: What the caller asks.
        weights: Of the guide, one per image; see `guidance_weights`.

    Raises:
        UsageError: ``E_GUIDE``, there is none of that name.
    """
    guide = choices.guide if choices.guide is not None else loop.sampler.guide
    if guide is None or guide == NO_GUIDE:
        return None
    if guide not in loop.guides:
        raise UsageError(
            "E_GUIDE",
            f"guide: got {guide!r}, expected one of {', '.join((*loop.guides, NO_GUIDE))}. "
            "Pick one.",
        )
    return guide if any(weights) else None


def guidance_weights(
    sampler: SamplerSpec, choices: Choices, snrs_db: Sequence[float]
) -> tuple[float, ...]:
    """What the guide weighs for each image: what the caller asks, or as its SNR in dB says.

    Raises:
        UsageError: ``E_GUIDANCE``, no number from 0 up.
    """
    asked = choices.guidance
    if asked is None and sampler.guidance_by_snr:
        known, weights = zip(*sampler.guidance_by_snr, strict=True)
        return tuple(float(weight) for weight in np.interp(snrs_db, known, weights))
    guidance = asked if asked is not None else sampler.guidance
    if not (math.isfinite(guidance) and guidance >= 0.0):
        raise UsageError(
            "E_GUIDANCE", f"guidance: got {guidance}, expected a number from 0 up. Correct it."
        )
    return (guidance,) * len(snrs_db)


def chosen_guidance(
    loop: Loop, choices: Choices, guide: str | None, weights: tuple[float, ...]
) -> tuple[float, ...]:
    """`weights` where something weighs them, `guide` or the tensor that pulls; else zeros.

    Raises:
        UsageError: ``E_GUIDANCE``, the caller asks for a weight and there is nothing to weigh.
    """
    if guide is not None or loop.guide is not None:
        return weights
    if choices.guidance:
        lack = "no guide is chosen" if loop.guides else "this bundle has no guide"
        raise UsageError("E_GUIDANCE", f"guidance: got {choices.guidance}, expected 0: {lack}.")
    return (0.0,) * len(weights)


def chosen_guide_every(loop: Loop, choices: Choices) -> int:
    """Of so many steps one is guided.

    Raises:
        UsageError: ``E_GUIDE``, less than one.
    """
    asked = choices.guide_every
    every = asked if asked is not None else loop.sampler.guide_every
    if every < 1:
        raise UsageError(
            "E_GUIDE", f"guide_every: got {every}, expected 1 or more steps. Correct it."
        )
    return every


def chosen_travel(loop: Loop, choices: Choices) -> tuple[int, int]:
    """Steps of a stretch and how often each is run.

    Raises:
        UsageError: ``E_TRAVEL``, less than once or absurdly often.
    """
    length, repeat = choices.travel if choices.travel is not None else loop.sampler.travel
    if not (1 <= length <= MOST_TRAVEL and 1 <= repeat <= MOST_TRAVEL):
        raise UsageError(
            "E_TRAVEL",
            f"travel: got {length},{repeat}, expected steps of a stretch and how often each is "
            f"run, 1 to {MOST_TRAVEL} both. Correct it.",
        )
    return length, repeat


def chosen_settings(loop: Loop, choices: Choices) -> dict[str, float]:
    """The loop's knobs, those that the caller turned with their new values.

    Raises:
        UsageError: ``E_SETTING``, a value that float32 cannot hold, or an absurd one.
    """
    settings = {name: choices.settings.get(name, value) for name, value in loop.settings.items()}
    for name, value in settings.items():
        if not -LARGEST_SETTING <= value <= LARGEST_SETTING:
            raise UsageError(
                "E_SETTING",
                f"setting {name}: got {value}, expected a number from -{LARGEST_SETTING:g} to "
                f"{LARGEST_SETTING:g}. Correct it.",
            )
    return settings

"""Diffusers schedulers: those that do what our samplers do, set so that both do the same.

All of them begin at unit variance and answer with the clean estimate in the end, without clipping.
What then remains of their own conventions:

==========  ==========================================================================
``ddpm``    None: the posterior variance ("fixed small"), and the noise is ours.
``ddim``    Its levels are trailing ones; a step ends at a whole share of all levels
            below it, beside the next one where the number of steps is no divisor.
``dpmpp2m`` It does not limit how far a step looks ahead, see our sampler's note.
``unipc``   Trailing levels; no such limit either.
``lcm``     Its share of the state itself (``c_skip``) is 1e-5 or less, ours 0.
``tcd``     It ends at level 0, where a little noise is left; ours ends at the clean estimate.
==========  ==========================================================================

NOTE: diffusers is no dependency. It is imported when a scheduler is made.
"""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from jscc.runtime.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from jscc.runtime.manifest_loops import ScheduleSpec
    from jscc.runtime.ports import Array

TRAILING = "trailing"


@dataclass(frozen=True)
class Scheduler:
    """A class of diffusers, and how it is set.

    Attributes:
        name: Of the class.
        takes_levels: Whether it runs at the levels that it is given; else at its trailing ones.
        draws: Whether its steps draw noise.
        settings: Its arguments besides those of the noise levels.
    """

    name: str
    takes_levels: bool = True
    draws: bool = False
    settings: Mapping[str, object] = field(default_factory=dict)


SCHEDULERS: Mapping[str, Scheduler] = {
    "ddim": Scheduler(
        "DDIMScheduler",
        takes_levels=False,
        settings={"clip_sample": False, "set_alpha_to_one": True, "timestep_spacing": TRAILING},
    ),
    "ddpm": Scheduler(
        "DDPMScheduler",
        draws=True,
        settings={"clip_sample": False, "variance_type": "fixed_small"},
    ),
    "dpmpp2m": Scheduler(
        "DPMSolverMultistepScheduler",
        settings={
            "algorithm_type": "dpmsolver++",
            "solver_order": 2,
            "solver_type": "midpoint",
            "final_sigmas_type": "zero",
        },
    ),
    "lcm": Scheduler("LCMScheduler", draws=True, settings={"clip_sample": False}),
    "tcd": Scheduler("TCDScheduler", draws=True, settings={"clip_sample": False}),
    "unipc": Scheduler(
        "UniPCMultistepScheduler",
        takes_levels=False,
        settings={
            "solver_order": 2,
            "solver_type": "bh2",
            "predict_x0": True,
            "final_sigmas_type": "zero",
            "timestep_spacing": TRAILING,
        },
    ),
}


def spacing_for(sampler: str, spacing: str | None) -> str | None:
    """The spacing of the levels at which diffusers runs `sampler`; None for our sampler's own.

    Args:
        sampler: By our name.
        spacing: As it is asked for; None where nothing is said.

    Raises:
        UsageError: ``E_SAMPLER``, diffusers has no such sampler, or none that is set up here;
            ``E_SPACING``, it runs at other levels.
    """
    if sampler not in SCHEDULERS:
        raise UsageError(
            "E_SAMPLER",
            f"sampler: got {sampler!r} for engine diffusers, expected one of "
            f"{', '.join(SCHEDULERS)}. Pick one.",
        )
    kind = SCHEDULERS[sampler]
    if kind.takes_levels:
        return spacing
    if spacing not in (None, TRAILING):
        raise UsageError(
            "E_SPACING",
            f"spacing: got {spacing!r} for engine diffusers, expected {TRAILING!r}, the levels of "
            f"its {kind.name}. Leave it out.",
        )
    return TRAILING


def make_scheduler(sampler: str, schedule: ScheduleSpec, levels: Sequence[int]) -> Any:
    """diffusers' scheduler for `sampler`, ready to run.

    Args:
        sampler: One of `SCHEDULERS`.
        schedule: Its noise levels, of which diffusers knows the same kinds.
        levels: At which the network is to be asked, the noisiest first.

    Raises:
        UsageError: ``E_SPACING``, it would ask the network at others.
    """
    import diffusers

    kind = SCHEDULERS[sampler]
    scheduler = getattr(diffusers, kind.name)(
        num_train_timesteps=schedule.timesteps,
        beta_start=schedule.first,
        beta_end=schedule.last,
        beta_schedule=schedule.kind,
        prediction_type="epsilon",
        **kind.settings,
    )
    if kind.takes_levels:
        scheduler.set_timesteps(timesteps=list(levels))
    else:
        scheduler.set_timesteps(len(levels))
    asked = [int(level) for level in scheduler.timesteps]
    if asked != list(levels):
        raise UsageError(
            "E_SPACING",
            f"levels: got {', '.join(map(str, levels))}, expected {', '.join(map(str, asked))}, "
            f"those of diffusers' {kind.name}. Take another sampler or number of steps.",
        )
    return scheduler


@contextlib.contextmanager
def drawing(scheduler: object, draw: Callable[[], Array] | None) -> Iterator[None]:
    """Let what `scheduler` draws be what `draw` returns; None leaves it alone.

    NOTE: its ``step`` takes a generator of torch and no noise, so the function that its module
    draws with is another one meanwhile, for all schedulers of that module.
    """
    if draw is None:
        yield
        return
    import torch

    module: Any = sys.modules[type(scheduler).__module__]
    own, drawn = module.randn_tensor, draw
    module.randn_tensor = lambda *_, **__: torch.from_numpy(drawn())
    try:
        yield
    finally:
        module.randn_tensor = own

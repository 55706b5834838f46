"""Priors: unconditional diffusion models of images, and what a sampler has to know of them.

The families `jscc.export.recognise` knows for the role ``prior``. A checkpoint tells its network;
its ``config.yaml`` (or ``--config``) may say what it does not:

    schedule: {kind: linear, first: 0.0001, last: 0.02, timesteps: 1000}
    image_size: 256

These values, those of the published checkpoints, are the defaults; `image_size` is the edge of
the images that the network was trained on, and of the tiles that larger images are cut into.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from jscc.export.models.adm import Adm
from jscc.export.models.ddim_unet import DdimUnet
from jscc.export.source import configured
from jscc.runtime.errors import CheckpointError
from jscc.runtime.manifest_loops import ScheduleSpec
from jscc.runtime.schedule import schedule_from

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from jscc.export.source import Config, WeightSource

    Build = Callable[[Mapping[str, Any]], Adm | DdimUnet]

SCHEDULE = ScheduleSpec(kind="linear", first=1e-4, last=0.02, timesteps=1000)
IMAGE_SIZE = 256
OWN = ("image_size", "schedule")  # what is not the network's

_FAMILIES: Mapping[str, Build] = {"adm": Adm.from_config, "ddim": DdimUnet.from_config}


@dataclass(frozen=True)
class Prior:
    """An unconditional diffusion model.

    Attributes:
        build: Makes its network, weights loaded: (x, timestep) to noise in the first planes.
        schedule: Its noise levels.
        stride: Height and width of x must be multiples of this.
        image_size: Edge of the images that it was trained on, in pixels.
        variant: Which one it is, for humans.
    """

    build: Callable[[], nn.Module]
    schedule: ScheduleSpec
    stride: int
    image_size: int
    variant: str


class Estimate(nn.Module):
    """A prior's network as an estimate of the clean image.

    clean = sqrt(1/abar_t) state - sqrt(1/abar_t - 1) eps (Ho et al., arXiv:2006.11239, eq. 15
    solved for x_0); both factors are gathered by the timestep from float64-made tables.

    Args:
        prior: Of which the network is.
        clip: Whether the estimate is held to [-1, 1], the range of clean images.
    """

    recip: Tensor
    recipm1: Tensor

    def __init__(self, prior: Prior, *, clip: bool) -> None:
        super().__init__()
        self.network = prior.build()
        self.clip = clip
        abar = torch.from_numpy(schedule_from(prior.schedule).alphas_cumprod)
        self.register_buffer("recip", (1 / abar).sqrt().float())
        self.register_buffer("recipm1", (1 / abar - 1).sqrt().float())

    def forward(self, state: Tensor, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """The clean image and the noise in `state` [B, 3, h, w] at `timestep` [B]."""
        eps: Tensor = self.network(state, timestep)[:, :3].float()
        index = timestep.to(torch.int64)
        recip = self.recip[index].view(-1, 1, 1, 1)
        recipm1 = self.recipm1[index].view(-1, 1, 1, 1)
        clean = recip * state - recipm1 * eps
        return (clean.clamp(-1.0, 1.0) if self.clip else clean), eps


def prior_of(source: WeightSource, config: Config, prefix: str) -> Prior:
    """The prior that `config` describes, weights below `prefix`.

    Args:
        source: Where the weights are.
        config: ``family`` and the parameters of its network, and what the head of this file says.
        prefix: Of the weights.

    Raises:
        CheckpointError: ``E_CONFIG``, the configuration is another network's or incomplete.
    """
    family = str(config.get("family", ""))
    if family not in _FAMILIES:
        raise CheckpointError(
            "E_CONFIG",
            f"prior: got the family {family!r}, expected one of {', '.join(_FAMILIES)}. "
            "Give the checkpoint of an unconditional diffusion model.",
        )
    params = {key: value for key, value in config.items() if key not in OWN}
    with torch.device("meta"):
        shape = configured(lambda: _FAMILIES[family](params))
    return Prior(
        build=lambda: source.load(lambda: _FAMILIES[family](params), prefix),
        schedule=_schedule(config.get("schedule", {})),
        stride=shape.stride,
        image_size=_image_size(config.get("image_size", IMAGE_SIZE)),
        variant=f"{family}, {sum(each.numel() for each in shape.parameters()) / 1e6:.1f} M",
    )


def _schedule(given: Any) -> ScheduleSpec:
    """The schedule that a configuration says, in parts or not at all."""
    defaults = {key: getattr(SCHEDULE, key) for key in ("kind", "first", "last", "timesteps")}
    if not isinstance(given, dict) or set(given) - set(defaults):
        raise _refused("schedule", given, f"some of {', '.join(defaults)}")
    said = {**defaults, **given}
    numbers = isinstance(said["first"], float) and isinstance(said["last"], float)
    if not numbers or not isinstance(said["timesteps"], int):
        raise _refused("schedule", given, "first and last as fractions, timesteps as a number")
    return ScheduleSpec(str(said["kind"]), said["first"], said["last"], said["timesteps"])


def _image_size(given: Any) -> int:
    if isinstance(given, bool) or not isinstance(given, int) or not 8 <= given <= 4096:
        raise _refused("image_size", given, "pixels, 8 to 4096")
    return given


def _refused(key: str, got: Any, expected: str) -> CheckpointError:
    return CheckpointError(
        "E_CONFIG", f"prior, {key}: got {got!r}, expected {expected}. Correct the config.yaml."
    )

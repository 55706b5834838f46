"""What null-space systems are made of: plans, priors and their configuration."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

import tiny_checkpoint
from jscc.export.gather import Request, gather
from jscc.export.priors import SCHEDULE, Estimate, Prior, prior_of
from jscc.export.restoration import zero_of
from jscc.export.system import Options
from jscc.export.systems import sing_zero
from jscc.runtime.errors import CheckpointError, UsageError
from jscc.runtime.ports import Port
from jscc.runtime.schedule import schedule_from

if TYPE_CHECKING:
    from pathlib import Path

    from jscc.export.source import WeightSource
    from jscc.export.system import Plan


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> WeightSource:
    folder: Path = tmp_path_factory.mktemp("parts")
    codec = tiny_checkpoint.write_codec(folder / "codec")
    prior = tiny_checkpoint.write_prior(folder / "prior", image_size=100)
    found, _ = gather(sing_zero.SYSTEM, Request((f"prior={prior}", f"codec={codec}")))
    return found


def planned(source: WeightSource, options: Options | None = None, **extra: str) -> Plan:
    return sing_zero.plan(source, replace(options or Options(), extra=extra))


def test_the_system_chooses_what_the_caller_does_not(source: WeightSource) -> None:
    plan = planned(source)
    loop = plan.loops["denoise"]
    assert loop.settings == {"eta": 0.85, "sigma_y": 0.0}
    assert (loop.start, loop.sampler) == ("initial", sing_zero.SAMPLER)
    assert loop.schedule == SCHEDULE
    assert plan.side_inputs == ()
    assert [spec.name for spec in plan.stages] == [
        "encode", "decode", "condition", "denoise", "render",
    ]  # fmt: skip


def test_the_caller_may_choose_otherwise(source: WeightSource) -> None:
    options = Options(sampler="ddpm", steps=7, start="noise")
    sampler = planned(source, options, travel="3,2").loops["denoise"].sampler
    assert (sampler.name, sampler.steps, sampler.start) == ("ddpm", 7, "noise")
    assert (sampler.start_level, sampler.travel) == (None, (3, 2))
    level = planned(source, Options(start_level=0.5)).loops["denoise"].sampler.start_level
    assert level == 0.5
    assert planned(source, level="snr").loops["denoise"].sampler.start_level is None


@pytest.mark.parametrize(
    ("extra", "multiple", "tile", "overlap"),
    [
        ({}, 16, 96, 24),  # the prior says 100
        ({"tile": "160"}, 16, 160, 40),
        ({"tile": "8"}, 16, 16, 4),
        ({"operator": "avgpool:3"}, 48, 96, 24),
        ({"operator": "avgpool:32", "tile": "32"}, 32, 32, 0),
    ],
)
def test_tiles_fit_every_part(
    source: WeightSource, extra: dict[str, str], multiple: int, tile: int, overlap: int
) -> None:
    image = planned(source, **extra).image
    assert (image.multiple, image.tile, image.overlap) == (multiple, tile, overlap)


def test_all_of_an_image_is_its_own_target(source: WeightSource) -> None:
    plan = planned(source, operator="identity")
    condition = next(spec for spec in plan.stages if spec.name == "condition")
    assert [port.name for port in condition.outputs] == ["target"]
    assert plan.loops["denoise"].start == "target"
    image = torch.rand(1, 3, 16, 16)
    assert torch.equal(condition.build()(image)[0], image * 2 - 1)


def test_a_mask_is_a_side_input_unless_the_codec_sends_one(source: WeightSource) -> None:
    plan = planned(source, operator="mask")
    assert plan.side_inputs == ("mask",)
    encode = replace(plan.stages[0], outputs=(Port("mask", "float32", ("batch", 8)),))
    codec: Any = type("Codec", (), {"encode": encode})
    prior: Any = None
    with pytest.raises(UsageError, match="operator: got 'mask', expected one without mask"):
        zero_of(codec, prior, {"operator": "mask"}, {})


class Known(nn.Module):
    """A network that knows the noise; three more planes say nothing."""

    def __init__(self, noise: torch.Tensor) -> None:
        super().__init__()
        self.noise = noise

    def forward(self, x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.noise, 7 + 0 * x], dim=1)


@pytest.mark.parametrize("clip", [False, True])
def test_an_estimate_from_the_true_noise_is_the_image(clip: bool) -> None:
    rng = torch.Generator().manual_seed(0)
    clean = 1.5 * (2 * torch.rand(3, 3, 8, 8, generator=rng) - 1)
    noise = torch.randn(clean.shape, generator=rng)
    timestep = torch.tensor([0, 400, 900])
    left = torch.from_numpy(schedule_from(SCHEDULE).alphas_cumprod)[timestep].view(-1, 1, 1, 1)
    state = (left.sqrt() * clean + (1 - left).sqrt() * noise).float()
    prior = Prior(lambda: Known(noise), SCHEDULE, 1, 8, "known")
    estimate, eps = Estimate(prior, clip=clip)(state, timestep.float())
    assert torch.equal(eps, noise)
    expected = clean.clamp(-1, 1) if clip else clean
    assert (estimate - expected).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({"family": "af"}, "prior: got the family 'af', expected one of adm, ddim"),
        ({"schedule": "linear"}, "prior, schedule: got 'linear', expected some of kind, first"),
        ({"schedule": {"betas": 3}}, "prior, schedule: got {'betas': 3}, expected some of"),
        ({"schedule": {"first": "small"}}, "expected first and last as fractions"),
        ({"image_size": "big"}, "prior, image_size: got 'big', expected pixels, 8 to 4096"),
        ({"image_size": 4}, "prior, image_size: got 4, expected pixels"),
        ({"depth": 3}, "adm: got unknown key 'depth'"),
    ],
)
def test_priors_that_are_none(source: WeightSource, change: dict[str, Any], shown: str) -> None:
    config = {**source.config["prior"], **change}
    with pytest.raises(CheckpointError, match=shown):
        prior_of(source, config, "prior.")


def test_a_prior_may_have_a_schedule_of_its_own(source: WeightSource) -> None:
    config = {**source.config["prior"], "schedule": {"last": 0.01, "timesteps": 500}}
    prior = prior_of(source, config, "prior.")
    assert prior.schedule == replace(SCHEDULE, last=0.01, timesteps=500)
    assert (prior.stride, prior.image_size) == (2, 100)
    assert prior.build()(torch.zeros(1, 3, 8, 8), torch.tensor([1.0])).shape == (1, 6, 8, 8)

"""The recipe of few-step students: their targets are the ends of the teacher's trajectories."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from jscc.export.lora import merge_into, read_lora
from jscc.export.models.unet import Unet
from jscc.export.reference import distil as module
from jscc.export.reference import networks, train_networks
from jscc.export.reference.distil import DistilStage, Hint, Student, level_of
from jscc.export.reference.loop import Plan, run
from jscc.export.reference.networks import NETWORKS
from jscc.export.reference.tiles import Tiles
from jscc.export.systems.diffjscc import UNET, Denoise
from jscc.runtime.errors import DataError, JsccError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from jscc.export.reference.teacher import Teacher
    from jscc.runtime.table import Row

NAME = "diffjscc-few-step"
CPU = torch.device("cpu")
WEIGHTS = {"target": 1.0, "picture": 1.0, "lpips": 0.5}
PARAMS = {"rank": 4, "steps": [1, 2, 4], "weights": WEIGHTS}
SHORT = Plan(lr=1e-3, steps=3, warmup_steps=2, log_every=1)
DEVIATION = 0.5  # of Gaussian latents, whose trajectories have a closed form


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Full precision: near the noisiest level, small differences count fifteenfold."""
    monkeypatch.setattr(module, "mixed", lambda device: torch.autocast("cpu", enabled=False))


@pytest.fixture
def stage(small_teacher: Teacher, smooth_tiles: Tiles) -> DistilStage:
    return make_stage(small_teacher, smooth_tiles)


def make_stage(teacher: Teacher, tiles: Tiles, *, target_alone: bool = False) -> DistilStage:
    torch.manual_seed(0)
    return DistilStage(
        Tiles(tiles.train, tiles.held_out[..., :64, :64]),
        {**PARAMS, "weights": WEIGHTS | ({"picture": 0.0} if target_alone else {})},
        teacher,
        CPU,
        batch=2,
        crop=32,
        last_crop=64,
        lpips=None,
        name=NAME,
    )


@pytest.mark.parametrize(
    ("params", "error", "shown"),
    [
        ({"weights": dict.fromkeys(WEIGHTS, 0.0)}, DataError, "lpips': 0.0} without weights of LP"),
        ({"weights": {"target": 0.0, "picture": 0.0, "lpips": 0.5}}, DataError, "without weights"),
        ({"steps": [1, 1001]}, UsageError, "got 1001"),
    ],
)
def test_what_cannot_be_learnt_is_refused(
    small_teacher: Teacher,
    smooth_tiles: Tiles,
    params: dict[str, object],
    error: type[JsccError],
    shown: str,
) -> None:
    usual = make_stage(small_teacher, smooth_tiles)
    with pytest.raises(error, match=shown):
        dataclasses.replace(usual, params={**PARAMS, **params})


def hint(count: int = 2, side: int = 4) -> Hint:
    generator = torch.Generator().manual_seed(3)
    latent = torch.randn(count, 4, side, side, generator=generator)
    return Hint(latent, torch.linspace(1.0, 13.0, count))


class Gaussian(nn.Module):
    """Predicts the noise in latents that are Gaussian with mean 0, as well as can be done."""

    def __init__(self, abar: Tensor) -> None:
        super().__init__()
        self.abar = abar

    def forward(self, x: Tensor, hint: Tensor, timestep: Tensor, snr_db: Tensor) -> Tensor:
        share = self.abar[int(timestep[0])]
        factor = (1 - share).sqrt() / (share * DEVIATION**2 + 1 - share)
        return (x * factor).float()


@pytest.mark.parametrize("level", [999, 499])
def test_the_target_is_the_end_of_the_trajectory(stage: DistilStage, level: int) -> None:
    """Of Gaussian latents the flow only scales: to the data's deviation from the state's."""
    abar = torch.from_numpy(stage.schedule.alphas_cumprod)
    object.__setattr__(stage, "denoiser", Gaussian(abar))
    share = float(abar[level])
    state = torch.ones(1, 4, 2, 2)
    end = DEVIATION / (share * DEVIATION**2 + 1 - share) ** 0.5
    error = {}
    for steps in (50, 100):
        object.__setattr__(stage, "teacher_steps", steps)
        error[steps] = abs(float(stage._target(state, level, hint(1, 2)).mean()) - end)
    assert error[50] < 0.1 * end
    assert error[50] / error[100] == pytest.approx(2, rel=0.25)  # first order


def test_an_untrained_student_is_the_teacher(stage: DistilStage) -> None:
    state = torch.randn(2, 4, 4, 4)
    for level in (999, 259):
        expected = stage._clean(None, state, level, hint())
        unchanged = stage._clean(stage.model, state, level, hint())
        torch.testing.assert_close(unchanged, expected, atol=1e-4, rtol=1e-4)
    assert float(expected.std()) > 0.1


def test_the_clean_latent_is_that_of_the_exported_stage(stage: DistilStage) -> None:
    denoiser, known = stage.denoiser, hint()
    denoise = Denoise(denoiser.control, denoiser.unet, stage.schedule.alphas_cumprod)
    context = torch.zeros(1, 1, denoiser.context_dim)
    kv = torch.cat(
        [part.project_context(context) for part in (denoiser.unet, denoiser.control)], dim=-1
    )
    state = torch.randn(2, 4, 4, 4)
    level = torch.full((2,), 499.0)
    expected = denoise(state, level, known.latent, kv, known.snr_db)
    torch.testing.assert_close(
        stage._clean(None, state, 499, known), expected, atol=1e-5, rtol=1e-4
    )


def test_levels_are_those_of_consistency_sampling(stage: DistilStage) -> None:
    """LCM's code takes every 20th of 1000 levels, from 999 down, and of these equally many."""
    levels = {steps: [level_of(row) for row in stage.rows(steps)] for steps in (1, 2, 4)}
    assert levels == {1: [999], 2: [999, 499], 4: [999, 759, 499, 259]}


def test_every_level_of_every_reception_is_learnt(
    stage: DistilStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    learnt: list[int] = []

    def target(state: Tensor, level: int, hint: Hint) -> Tensor:
        learnt.append(level)
        return state

    object.__setattr__(stage, "_target", target)
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        stage.loss(0.5, generator)
    counts = {level: learnt.count(level) for level in set(learnt)}
    assert set(counts) == {999, 759, 499, 259}
    assert counts[999] > counts[499] > counts[759]  # in 3, 2 and 1 of the receptions


def test_states_come_from_the_students_own_steps(stage: DistilStage) -> None:
    """As the receiver makes them: clean, plus fresh noise of the next level."""
    asked: list[int] = []

    def clean(model: object, state: Tensor, level: int, hint: Hint) -> Tensor:
        asked.append(level)
        return torch.full_like(state, 3.0)

    object.__setattr__(stage, "_clean", clean)
    rows: tuple[Row, ...] = stage.rows(4)[:2]
    state = stage._follow(stage.model, rows, hint(8, 16), torch.Generator().manual_seed(0))
    share = float(stage.schedule.alphas_cumprod[499])
    assert asked == [999, 759]
    assert float(state.mean()) == pytest.approx(3 * share**0.5, abs=0.05)
    assert float(state.std()) == pytest.approx((1 - share) ** 0.5, abs=0.03)


@pytest.mark.slow
def test_it_comes_closer_to_the_target(
    small_teacher: Teacher, smooth_tiles: Tiles, tmp_path: Path
) -> None:
    stage = make_stage(small_teacher, smooth_tiles, target_alone=True)
    kept = {name: value.clone() for name, value in stage.denoiser.state_dict().items()}
    before = distance(stage)
    run(stage, dataclasses.replace(SHORT, lr=5e-4, steps=60), tmp_path, resume=False)
    assert distance(stage) < 0.93 * before
    for name, value in stage.denoiser.state_dict().items():
        assert torch.equal(value, kept[name]), name


def distance(stage: DistilStage) -> float:
    """To the target, over some batches, always the same."""
    terms = [stage.loss(0.5, torch.Generator().manual_seed(seed)) for seed in range(8)]
    return sum(float(each["target"].detach()) for each in terms) / len(terms)


def test_figures_of_an_untrained_student(stage: DistilStage) -> None:
    """One step a reception, and none of it the teacher's four."""
    with torch.no_grad():
        figures = stage.evaluate(stage.model)
    assert set(figures) == {"target", *(f"psnr_db@{steps}" for steps in (1, 2, 4))}
    assert figures["target"] > 0
    object.__setattr__(stage, "teacher_steps", 1)
    with torch.no_grad():
        assert stage.evaluate(stage.model)["target"] == pytest.approx(0, abs=1e-4)


def test_resuming_equals_never_having_stopped(
    small_teacher: Teacher, smooth_tiles: Tiles, tmp_path: Path
) -> None:
    whole = run(make_stage(small_teacher, smooth_tiles), SHORT, tmp_path / "a", resume=False)
    part = make_stage(small_teacher, smooth_tiles)
    run(part, SHORT, tmp_path / "b", resume=False, stop_after=2)
    rest = run(make_stage(small_teacher, smooth_tiles), SHORT, tmp_path / "b", resume=True)
    for name, value in whole.ema.state_dict().items():
        assert torch.equal(rest.ema.state_dict()[name], value), name
    assert any(bool(value.any()) for name, value in value_of_ups(whole.ema))


def value_of_ups(student: nn.Module) -> list[tuple[str, Tensor]]:
    return [(name, value) for name, value in student.state_dict().items() if "lora_up" in name]


def test_what_is_packed_merges_at_export(
    small_teacher: Teacher, tmp_path: Path, stage: DistilStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Into the weights that the student had, but for the rounding to half precision."""
    run(stage, dataclasses.replace(SHORT, steps=1), tmp_path, resume=False)
    saved = torch.load(tmp_path / f"{NAME}.pt", weights_only=True)
    with torch.no_grad():
        for name, value in saved["ema"].items():
            if "lora_" in name:
                value.normal_(std=0.05)
            assert name.endswith("alpha") or value.is_floating_point()
    torch.save(saved, tmp_path / f"{NAME}.pt")
    monkeypatch.setitem(NETWORKS, NAME, dataclasses.replace(NETWORKS[NAME], config=PARAMS))
    file = train_networks.pack(NAME, tmp_path) / "model.safetensors"
    params = small_teacher.params["unet_config"]["params"]
    with torch.device("meta"):
        described = Unet.from_config(params)
    lora = read_lora(str(file), UNET, described)
    assert not lora.notes  # nothing left out, nothing guessed
    unet = small_teacher.denoiser().unet
    merge_into(unet, [lora])
    student = Student(stage.denoiser, 4)
    student.load_state_dict(saved["ema"])
    weights = student.weights(stage.denoiser)
    assert set(weights) == {f"unet.{layer}.weight" for layer in lora.pairs}
    for name, weight in weights.items():
        merged = unet.get_parameter(name.removeprefix("unet."))
        torch.testing.assert_close(merged, weight.detach(), atol=2e-4, rtol=0)
        changed = (weight - stage.denoiser.get_parameter(name)).detach().abs().max()
        assert float(changed) > 5e-3, name


def test_the_recipe_is_small_and_begins_from_the_reference(
    smooth_tiles: Tiles, tmp_path: Path
) -> None:
    network = NETWORKS[NAME]
    job = networks.Job(smooth_tiles, tmp_path, CPU, 1, (64, 64), None)
    stage = network.stage(network.config, job)
    assert isinstance(stage, DistilStage)
    assert 2 * sum(p.numel() for p in stage.model.parameters()) < 3_000_000  # bytes when packed
    terms = stage.loss(0.0, torch.Generator().manual_seed(0))
    terms["loss"].backward()  # type: ignore[no-untyped-call]
    ups = [p for name, p in stage.model.named_parameters() if "lora_up" in name]
    assert all(p.grad is not None and bool(p.grad.any()) for p in ups)
    assert all(p.grad is None for p in stage.denoiser.parameters())


def test_a_checkpoint_holds_the_change_alone(stage: DistilStage, tmp_path: Path) -> None:
    run(stage, dataclasses.replace(SHORT, steps=1), tmp_path, resume=False)
    tensors = load_file(train_networks.pack(NAME, tmp_path) / "model.safetensors")
    endings = {name.split(".", 1)[1] for name in tensors}
    assert endings == {"lora_down.weight", "lora_up.weight", "alpha"}
    assert {value.dtype for value in tensors.values()} == {torch.float16}

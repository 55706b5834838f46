"""Proof: the size that a stage was compared with torch at, and how closely."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from jscc.export import proof
from jscc.export.gradient import Gradient
from jscc.export.lower import Sizes, lower
from jscc.export.proof import Bounds, bounds_of, compared_size, evaluate, examples, moved
from jscc.export.system import StageSpec
from jscc.runtime.errors import ParityError
from jscc.runtime.ports import Port

PROVED = Sizes(multiple=32).proved()
OPEN = Port("image", "float32", ("batch", 3, "height", "width"))
SMALL = Port("coarse", "float32", ("batch", 3, "height/4", "width/4"))
NUMBER = Port("timestep", "float32", ("batch",))
TILE = Port("state", "float32", (1, 3, 128, 128))
TILE_COARSE = Port("coarse", "float32", (1, 3, 32, 32))
LATENT = Port("latent", "float32", (1, 14, 512))


@pytest.mark.parametrize(
    ("ports", "size"),
    [
        ((OPEN, NUMBER), (256, 192)),
        ((SMALL,), (256, 192)),  # of the image, not of its own
        ((TILE_COARSE, NUMBER, TILE), (128, 128)),
        ((LATENT, TILE), (128, 128)),
        ((TILE, OPEN), (256, 192)),
        ((LATENT, NUMBER), (256, 192)),
    ],
)
def test_the_size_is_the_one_that_the_stage_ran_at(
    ports: tuple[Port, ...], size: tuple[int, int]
) -> None:
    assert compared_size(ports, PROVED) == size


MAP = (1, 3, 64, 64)
WEIGHT = Port("weight", "float32", (1,))


class Rectified(nn.Module):
    """Gradient 1 where x is over 1, else 0: rounding decides at 1."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x - 1.0).sum(dim=(1, 2, 3))


class Quartic(nn.Module):
    """Gradient 4 x^3, nowhere with an edge."""

    def forward(self, x: Tensor) -> Tensor:
        return (x**4).sum(dim=(1, 2, 3))


class Steep(nn.Module):
    """Gradient that turns many times within what the inputs are moved by."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cos(1e4 * x).sum(dim=(1, 2, 3))


class Weighted(nn.Module):
    """Gradient `weight` everywhere: only the weight could move it."""

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        return x.sum(dim=(1, 2, 3)) * weight


def gradient_of(loss: nn.Module) -> StageSpec:
    return StageSpec(
        name="gradient",
        build=lambda: Gradient(loss, ("x",)),
        inputs=(Port("x", "float32", MAP),),
        outputs=(Port("grad", "float32", MAP),),
        gradients=("grad",),
    )


def allowed(loss: nn.Module) -> float:
    spec = gradient_of(loss)
    arrays = examples(spec.inputs, {}, seed=1)
    module = spec.build()
    return moved(module, spec, arrays, evaluate(module, spec, arrays))["grad"]


def test_a_smooth_gradient_may_be_off_by_what_its_inputs_moved() -> None:
    # x^4's gradient is 4 x^3: every element moves by 3 times the share its input moves by.
    assert allowed(Quartic()) == pytest.approx(3 * proof.NUDGE, rel=1e-3)


def test_a_gradient_with_an_edge_may_be_off_by_elements_on_its_edge() -> None:
    spec = gradient_of(Rectified())
    x = examples(spec.inputs, {}, seed=1)["x"]
    beyond = np.count_nonzero(x > 1)
    near = np.count_nonzero(np.abs(x - 1) < proof.NUDGE)
    assert near > 0
    assert proof.GRADIENT_TOLERANCE < allowed(Rectified()) <= np.sqrt(near / beyond)


def test_no_gradient_may_be_off_by_more_than_the_worst() -> None:
    assert allowed(Steep()) == proof.WORST_GRADIENT


def test_single_numbers_do_not_move() -> None:
    spec = replace(gradient_of(Weighted()), inputs=(Port("x", "float32", MAP), WEIGHT))
    arrays = examples(spec.inputs, {}, seed=1)
    module = spec.build()
    reference = evaluate(module, spec, arrays)
    assert moved(module, spec, arrays, reference)["grad"] == proof.GRADIENT_TOLERANCE


def test_half_precision_may_be_off_by_its_rounding() -> None:
    spec = gradient_of(Quartic())
    arrays = examples(spec.inputs, {}, seed=1)
    module = spec.build()
    reference = evaluate(module, spec, arrays)
    single, half = (bounds_of(module, spec, arrays, reference, each) for each in ("fp32", "fp16"))
    assert single == Bounds(spec.tolerance, moved(module, spec, arrays, reference))
    assert half == Bounds(proof.HALF_TOLERANCE, {"grad": proof.HALF_TOLERANCE})


def test_gradients_must_be_outputs() -> None:
    with pytest.raises(ValueError, match=r"gradients: got 'slope', expected outputs, of grad"):
        replace(gradient_of(Quartic()), gradients=("grad", "slope"))


def test_elements_on_the_other_side_of_an_edge_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = proof.run_graph

    def rounded(path: Path, arrays: Any, outputs: Any) -> Any:
        grad = honest(path, arrays, outputs)["grad"]
        closest = np.argmin(np.abs(arrays["x"] - 1))
        grad.flat[closest] = 1 - grad.flat[closest]
        return {"grad": grad}

    monkeypatch.setattr(proof, "run_graph", rounded)
    lowered = lower(gradient_of(Rectified()), tmp_path, Sizes(64, MAP[2:]), "fp32")
    assert lowered.parity["grad"].max_abs == 1.0  # recorded all the same


@pytest.mark.parametrize("loss", [Rectified(), Quartic()])
def test_a_wrong_gradient_is_refused(
    loss: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = proof.run_graph

    def wrong(*arguments: Any) -> Any:
        return {name: 1.1 * array for name, array in honest(*arguments).items()}

    monkeypatch.setattr(proof, "run_graph", wrong)
    with pytest.raises(
        ParityError, match=r"'grad': got .* 1\.00e-01 of its length, expected at most"
    ):
        lower(gradient_of(loss), tmp_path, Sizes(64, MAP[2:]), "fp32")

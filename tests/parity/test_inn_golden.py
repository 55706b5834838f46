"""The published INN's numbers, and one of its guided steps, through export and engine.

The guided step's network is the tiny prior of another golden folder; its vector-Jacobian product
is checked too. The README beside the vectors gives the tolerances.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from jscc.export.gather import Request, gather
from jscc.export.gradient import Gradient
from jscc.export.inn_guide import Consistency
from jscc.export.lower import Sizes, lower
from jscc.export.models.inn import Inn
from jscc.export.priors import Estimate, prior_of
from jscc.export.system import StageSpec, System
from jscc.runtime.backends.onnxruntime import OnnxRuntimeBackend
from jscc.runtime.ports import Port

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from jscc.export.source import WeightSource

    Arrays = dict[str, npt.NDArray[Any]]

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "golden"
INN, PRIOR = GOLDEN / "indigo-inn-tiny", GOLDEN / "guided-diffusion-tiny"
INN_IMAGE = (1, 3, 64, 64)
STEP_IMAGE = (1, 3, 32, 32)
PAIR = (2, 3, 32, 32)
STEP_OUTPUTS = ("clean", "eps", "loss", "grad")
INN_TOLERANCE = 5e-6
STEP_TOLERANCE = 1e-4

pytestmark = pytest.mark.skipif(not INN.is_dir(), reason=f"no golden vectors at {INN}")


def arrays(path: Path) -> Arrays:
    with np.load(path) as stored:
        return {name: stored[name] for name in stored.files}


def source_of(checkpoint: Path, config: tuple[str, ...] = ()) -> WeightSource:
    system = System(paper="", plan=lambda *_: pytest.fail("no plan is made"), roles={"": "none"})
    return gather(system, Request((str(checkpoint),), configs=config))[0]


@pytest.fixture(scope="module")
def inn() -> Callable[[], nn.Module]:
    source = source_of(INN / "INN_fp16.pth")
    return lambda: source.load(lambda: Inn.from_config(source.config), "")


@pytest.fixture(scope="module")
def prior() -> Any:
    source = source_of(PRIOR / "model_fp16.pt", (str(PRIOR / "config.json"),))
    return prior_of(source, source.config, "")


def lowered(spec: StageSpec, folder: Path) -> Any:
    """The stage in the runtime's engine."""
    entry = lower(spec, folder, Sizes(8), "fp32").entry
    graph = (folder / f"{spec.name}.onnx").read_bytes()
    return OnnxRuntimeBackend(threads=1).load(spec.name, entry, graph, {})


def floats(name: str, *shape: int) -> Port:
    return Port(name, "float32", shape)


class SplitAndMerge(nn.Module):
    """Both directions of the network in one graph."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor, condition: Tensor, replaced: Tensor) -> tuple[Tensor, ...]:
        coarse, details = self.network(image, condition)
        merged = self.network.inverse(replaced, details, condition)
        again = self.network.inverse(coarse, details, condition)
        return coarse, *details, merged, again


@pytest.mark.slow
def test_both_directions_from_one_set_of_weights(
    inn: Callable[[], nn.Module], tmp_path: Path
) -> None:
    spec = StageSpec(
        name="inn",
        build=lambda: SplitAndMerge(inn()),
        inputs=(
            floats("image", *INN_IMAGE),
            floats("condition", 1, 128),
            floats("replaced", 1, 3, 16, 16),
        ),
        outputs=(
            floats("coarse", 1, 3, 16, 16),
            floats("details_0", 1, 9, 16, 16),
            floats("details_1", 1, 9, 32, 32),
            floats("merged", *INN_IMAGE),
            floats("again", *INN_IMAGE),
        ),
    )
    session = lowered(spec, tmp_path)
    golden = arrays(INN / "inn_io.npz")
    computed = session.run(
        {
            "image": golden["image"],
            "condition": golden["cond"][:1],
            "replaced": golden["J2.coarse_replaced"],
        }
    )
    expected = {"coarse": golden["J2.coarse"], "merged": golden["J2.inverse_of_replaced"]}
    for level in range(2):
        bands = [golden[f"J2.detail.{level}.{band}"] for band in range(3)]
        expected[f"details_{level}"] = np.concatenate(bands, axis=1)
    for name, array in expected.items():
        assert np.abs(computed[name] - array).max() <= INN_TOLERANCE, name
    assert np.abs(computed["again"] - golden["image"]).max() <= 1e-6
    weights = sum(4 * each.numel() for each in inn().parameters())
    assert (tmp_path / "inn.onnx").stat().st_size < 1.2 * weights


class Pulled(nn.Module):
    """Noise times a fixed image, summed: what a vector-Jacobian product is the gradient of."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, timestep: Tensor, cotangent: Tensor) -> tuple[Tensor, Tensor]:
        eps = self.network(x, timestep)[:, :3]
        return (eps * cotangent).flatten(1).sum(1), eps


@pytest.mark.slow
def test_vector_jacobian_product_of_the_prior(prior: Any, tmp_path: Path) -> None:
    spec = StageSpec(
        name="vjp",
        build=lambda: Gradient(Pulled(prior.build()), ("x",), has_aux=True),
        inputs=(
            floats("x", *PAIR),
            floats("timestep", 2),
            floats("cotangent", *PAIR),
        ),
        outputs=(floats("eps", *PAIR), floats("grad", *PAIR)),
    )
    session = lowered(spec, tmp_path)
    golden = arrays(PRIOR / "unet_io.npz")
    computed = session.run(
        {
            "x": golden["x_t"],
            "timestep": golden["t"].astype(np.float32),
            "cotangent": golden["vjp_cotangent_eps"],
        }
    )
    eps = golden["out.legacy_attention_order"][:, :3]
    assert np.abs(computed["eps"] - eps).max() <= 2e-5
    grad = golden["vjp_x_t.legacy_attention_order"]
    assert np.abs(computed["grad"] - grad).max() <= STEP_TOLERANCE * np.abs(grad).max()


class Step(nn.Module):
    """INDIGO+'s step: both errors of a clipped estimate, without a null space."""

    def __init__(self, estimate: nn.Module, consistency: nn.Module) -> None:
        super().__init__()
        self.estimate = estimate
        self.consistency = consistency

    def forward(self, state: Tensor, timestep: Tensor, coarse: Tensor, told: Tensor) -> Any:
        clean, eps = self.estimate(state, timestep)
        loss = self.consistency(clean, coarse, told)
        return loss, clean, eps, loss


def gradient_of(inn: Callable[[], nn.Module], prior: Any, golden: Arrays, case: str) -> Gradient:
    first, second = (float(weight) for weight in golden[f"{case}.weights"])
    estimate, consistency = Estimate(prior, clip=True), Consistency(inn(), (first, second))
    return Gradient(Step(estimate, consistency), ("state",), has_aux=True)


def fed(golden: Arrays) -> Arrays:
    return {
        "state": golden["x_t"],
        "timestep": np.array([golden["t_original"]], np.float32),
        "coarse": (golden["y"] + 1) / 2,
        "degradation": golden["cond"],
    }


def assert_golden(computed: Arrays, golden: Arrays, case: str) -> None:
    assert np.abs(computed["clean"] - golden["pred_x0"]).max() <= STEP_TOLERANCE
    assert computed["loss"][0] == pytest.approx(float(golden[f"{case}.loss"]), rel=1e-4)
    grad = golden[f"{case}.grad_x_t"]
    assert np.abs(computed["grad"] - grad).max() <= STEP_TOLERANCE * np.abs(grad).max()
    assert np.abs(stepped(computed, golden, case) - golden[f"{case}.x_prev"]).max() <= 1e-4


def test_step_guided_by_the_coarse_part(inn: Callable[[], nn.Module], prior: Any) -> None:
    golden = arrays(INN / "guided_step.npz")
    gradient = gradient_of(inn, prior, golden, "coarse_only")
    results = gradient(*(torch.from_numpy(each) for each in fed(golden).values()))
    computed = [each.detach().numpy() for each in results]
    assert_golden(dict(zip(STEP_OUTPUTS, computed, strict=True)), golden, "coarse_only")


@pytest.mark.slow
def test_step_guided_by_both_parts(
    inn: Callable[[], nn.Module], prior: Any, tmp_path: Path
) -> None:
    golden = arrays(INN / "guided_step.npz")
    spec = StageSpec(
        name="step",
        build=lambda: gradient_of(inn, prior, golden, "coarse_and_inverse"),
        inputs=tuple(floats(name, *array.shape) for name, array in fed(golden).items()),
        outputs=tuple(
            floats(name, *((1,) if name == "loss" else STEP_IMAGE)) for name in STEP_OUTPUTS
        ),
        tolerance=1e-3,
    )
    assert_golden(lowered(spec, tmp_path).run(fed(golden)), golden, "coarse_and_inverse")


def stepped(computed: Arrays, golden: Arrays, case: str) -> npt.NDArray[np.float64]:
    """DDIM's step with the gradient taken off, in the golden's words."""
    a, b, eta = (float(golden[name]) for name in ("alpha_bar", "alpha_bar_prev", "eta"))
    sigma = eta * np.sqrt((1 - b) / (1 - a)) * np.sqrt(1 - a / b)
    drawn = sigma * golden["z"].astype(np.float64)
    sample = np.sqrt(b) * computed["clean"] + np.sqrt(1 - b - sigma**2) * computed["eps"] + drawn
    stepped: npt.NDArray[np.float64] = sample - float(golden[f"{case}.scale"]) * computed["grad"]
    return stepped

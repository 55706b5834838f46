"""The published INN's numbers, and one of its guided steps, through export and engine.

The guided step's network is the tiny prior of another golden folder; its vector-Jacobian product
is checked too. The README beside the vectors gives the tolerances. Its official second error is a
perceptual one; the vectors have a 2-norm in its place, as SING-INN does.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

import tiny_checkpoint
from jscc.export.cli import main
from jscc.export.exporter import synthetic_image
from jscc.export.gather import Request, gather
from jscc.export.gradient import Gradient
from jscc.export.lower import Sizes, lower
from jscc.export.models.inn import Inn
from jscc.export.priors import prior_of
from jscc.export.system import Options, StageSpec, System, find
from jscc.runtime.backends.onnxruntime import OnnxRuntimeBackend
from jscc.runtime.bundle import Bundle
from jscc.runtime.choices import Choices
from jscc.runtime.csi import Csi
from jscc.runtime.loop import plan_loop
from jscc.runtime.manifest_loops import LoopStep
from jscc.runtime.ports import Port
from jscc.runtime.program import Program, Run
from jscc.runtime.receiver import Receiver
from jscc.runtime.schedule import schedule_from
from jscc.runtime.selftest import empty_sides
from jscc.runtime.stage import Stage, Trace
from jscc.runtime.table import Row, Table
from jscc.runtime.tiling import tile_image
from jscc.runtime.transmitter import Transmitter

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from jscc.export.source import WeightSource
    from jscc.runtime.loop import LoopPlan
    from jscc.runtime.manifest_loops import Loop

    Arrays = dict[str, npt.NDArray[Any]]

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "golden"
INN, PRIOR = GOLDEN / "indigo-inn-tiny", GOLDEN / "guided-diffusion-tiny"
INN_IMAGE = (1, 3, 64, 64)
PAIR = (2, 3, 32, 32)
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
@pytest.mark.exhaustive  # a part of the guided step
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


class OneDraw:
    """The golden step's noise, whatever is asked."""

    def __init__(self, drawn: npt.NDArray[np.float32]) -> None:
        self.drawn = drawn

    def draw(self, seed: int, frame: int, step: int, shape: tuple[int, ...]) -> Any:
        assert shape == self.drawn.shape
        return self.drawn


@pytest.fixture(scope="module")
def golden() -> Arrays:
    return arrays(INN / "guided_step.npz")


@pytest.fixture(scope="module")
def parts(golden: Arrays, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Values of the command line; the published vector of the degradation in a configuration."""
    folder = tmp_path_factory.mktemp("parts")
    told = {"degradation": golden["cond"][0].tolist()}
    (folder / "inn.yaml").write_text(yaml.safe_dump(told))
    estimator = {"net_kdsr.E.E.0.weight": torch.ones(2, 3), "net_kdsr.E.E.0.bias": torch.ones(2)}
    state = torch.load(INN / "INN_fp16.pth", weights_only=True)
    first = {name: each for name, each in state.items() if ".lifts.0." in name}
    torch.save({"state_dict": {**first, **estimator}}, folder / "wrapped.pth")
    return {
        "codec": f"codec={tiny_checkpoint.write_codec(folder / 'codec')}",
        "prior": f"prior={PRIOR / 'model_fp16.pt'}",
        "inn": f"inn={INN / 'INN_fp16.pth'}",
        "wrapped": f"inn={folder / 'wrapped.pth'}",
        "told": f"inn={folder / 'inn.yaml'}",
        "settings": f"prior={PRIOR / 'config.json'}",
    }


def options(golden: Arrays, case: str) -> dict[str, str]:
    """INDIGO+'s step as options: a mask of nothing is no null space."""
    coarse, image = golden[f"{case}.weights"].tolist()
    return {
        "operator": "mask",
        "tile": "32",
        "coarse_weight": repr(coarse),
        "image_weight": repr(image),
        "zeta": repr(float(golden[f"{case}.scale"])),
    }


def step_of(golden: Arrays, loop: Loop) -> LoopPlan:
    """The golden step as one row of a table.

    DDIM's noise has the deviation s = eta sqrt((1-b)/(1-a)) sqrt(1-a/b), the stage's the deviation
    eta' sqrt(1-b); both let the rest of 1-b to what the network saw.
    """
    a, b, eta = (float(golden[name]) for name in ("alpha_bar", "alpha_bar_prev", "eta"))
    share = eta * math.sqrt(1 / (1 - a)) * math.sqrt(1 - a / b)
    level = int(golden["t_original"])
    row = Row(level, a=0.0, b=math.sqrt(b), d=1.0, alpha_bar=a, alpha_bar_next=b)
    plan = plan_loop(
        loop,
        schedule_from(loop.schedule),
        Choices(settings={"eta": share}),
        [7.0],
        0,
        directed=True,
    )
    path = replace(plan.paths[0], signal=1.0, noise=0.0, table=Table((row,)))
    return replace(plan, start="received", paths=(path,))


def stepped(golden: Arrays, loop: Loop, stage: Stage) -> tuple[Arrays, Arrays]:
    """What the runtime makes of the golden state in one step, and what the stage said."""
    said: Arrays = {}

    class Listening:
        """The stage's session, listened to."""

        def run(self, fed: Arrays) -> Arrays:
            said.update(stage.session.run(fed))
            return said

    listened: Any = Listening()
    # The plain stage never runs; its ports are the guided one's.
    stages = {"denoise": stage, "guided": Stage("guided", stage.entry, listened)}
    program = Program((LoopStep("denoise"),), stages, {"denoise": "state"}, {}, {})
    run = Run(
        sizes={"batch": 1, "height": 32, "width": 32},
        tiling=tile_image(32, 32, tile=32, overlap=8, multiple=16),
        plans={"denoise": step_of(golden, loop)},
        descents={},
        noise=OneDraw(golden["z"][0]),
        seed=0,
        frame=0,
        supply=lambda name, tensors: None,
    )
    given = {
        "initial": golden["x_t"],
        "target": np.zeros_like(golden["x_t"]),
        "mask": np.zeros((1, 1, 32, 32), np.float32),
        "coarse": (golden["y"] + 1) / 2,
        "degradation": golden["cond"],
    }
    return program.execute(given, run, Trace()), said


def assert_golden(loop: Loop, stage: Stage, golden: Arrays, case: str) -> None:
    """Clean estimate, gradient and the state after the step; the README gives the tolerances."""
    tensors, said = stepped(golden, loop, stage)
    assert np.abs(said["clean"] - golden["pred_x0"]).max() <= STEP_TOLERANCE
    grad = golden[f"{case}.grad_x_t"]
    assert np.abs(said["grad"] - grad).max() <= STEP_TOLERANCE * np.abs(grad).max()
    assert np.abs(tensors["state"] - golden[f"{case}.x_prev"]).max() <= STEP_TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", ["coarse_only", pytest.param("coarse_and_inverse", marks=pytest.mark.exhaustive)]
)
def test_guided_step(golden: Arrays, parts: dict[str, str], tmp_path: Path, case: str) -> None:
    system = find("sing_inn")
    request = Request(
        (parts["codec"], parts["prior"], parts["inn"]), (parts["settings"], parts["told"])
    )
    source, _ = gather(system, request)
    plan = system.plan(source, Options(extra=options(golden, case)))
    spec = next(spec for spec in plan.stages if spec.name == "guided")
    entry = lower(spec, tmp_path, Sizes(plan.image.multiple, (32, 32)), "fp32").entry
    graph = (tmp_path / "guided.onnx").read_bytes()
    session = OnnxRuntimeBackend(threads=1).load("guided", entry, graph, {})
    assert_golden(plan.loops["denoise"], Stage("guided", entry, session), golden, case)


@pytest.mark.exhaustive
def test_published_container_on_the_command_line(
    golden: Arrays, parts: dict[str, str], tmp_path: Path
) -> None:
    """With the estimator of the degradation beside it, which no stage takes; one lifting step."""
    path = tmp_path / "indigo.jscc"
    command = ["--model", "sing_inn", "-o", str(path)]
    for name in ("codec", "prior", "wrapped"):
        command += ["--checkpoint", parts[name]]
    command += ["--config", parts["settings"], "--config", parts["told"]]
    for name, value in options(golden, "coarse_and_inverse").items():
        command += ["--option", f"{name}={value}"]
    assert main(command) == 0
    bundle = Bundle.open(path)
    manifest = bundle.manifest
    told = {port.name for port in manifest.stages["guided"].inputs}
    assert "degradation" in told
    assert "snr_db" not in told
    assert manifest.source.networks["inn"].name == "wrapped.pth"
    assert np.array_equal(bundle.tensor("degradation"), golden["cond"])
    image = synthetic_image(40, 56)  # tiles and parts of them
    symbols, sent = Transmitter(bundle).send_with_side(image, csi=Csi(7.0))
    side = {**empty_sides(manifest, (48, 64)), **sent}
    receiver = Receiver(bundle)
    received = {}
    for guide in ("inn", "none"):
        received[guide], record = receiver.receive(
            symbols,
            Csi(7.0),
            seed=1,
            steps=2,
            size=(40, 56),
            side=side,
            guide=guide,
            guidance=50.0 if guide == "inn" else None,
        )
        assert record.loops["denoise"].guide == (guide if guide == "inn" else None)
    assert (received["inn"] != received["none"]).any()

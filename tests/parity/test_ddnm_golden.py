"""DDNM's published trajectories: exported stages, the runtime's loop, the same noise.

The stage ``denoise`` of a null-space system is lowered with the golden checkpoint as its prior and
run by the runtime's program under the sampler ``ddnm``; every state on the way has to be the one
that the authors' code computed.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from jscc.export.gather import Request, gather
from jscc.export.lower import Sizes, lower
from jscc.export.models.nullspace import Operator
from jscc.export.priors import SCHEDULE, prior_of
from jscc.export.restoration import Zero, denoise
from jscc.export.system import System
from jscc.export.systems import sing_zero
from jscc.runtime.backends.onnxruntime import OnnxRuntimeBackend
from jscc.runtime.choices import Choices
from jscc.runtime.loop import plan_loop
from jscc.runtime.manifest_loops import Loop, LoopStep, SamplerSpec
from jscc.runtime.program import Program, Run
from jscc.runtime.schedule import schedule_from
from jscc.runtime.stage import Stage, Trace
from jscc.runtime.tiling import tile_image
from recording_backend import RecordingSession

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "golden" / "guided-diffusion-tiny"
STEPS, SIZE = 10, 12
STATE_TOLERANCE, CLEAN_TOLERANCE = 1e-4, 1e-3  # of the golden's README
# The golden's names; the SVD path weighs colours by (0.3333, 0.3334, 0.3333).
OPERATORS = {
    ("avgpool4", "simplified"): ("avgpool:4", "ddnm-simplified"),
    ("avgpool4", "svd"): ("avgpool:4", "ddnm-svd"),
    ("color", "simplified"): ("color", "ddnm-simplified"),
    ("color", "svd"): ("color:0.3333,0.3334,0.3333", "ddnm-svd"),
}

pytestmark = [
    pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"no golden vectors at {GOLDEN}"),
    pytest.mark.slow,  # each of the four exports takes seconds
]


class RecordedNoise:
    """The golden's x_T and z in place of the runtime's noise."""

    def __init__(self, vectors: dict[str, npt.NDArray[Any]]) -> None:
        self.draws = [vectors["x_T"][0], *vectors["z"]]

    def draw(self, seed: int, frame: int, step: int, shape: tuple[int, ...]) -> Floats:
        drawn: Floats = self.draws[step].reshape(shape)
        return drawn


@pytest.fixture(scope="module")
def vectors() -> dict[str, npt.NDArray[Any]]:
    with np.load(GOLDEN / "ddnm.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}


def graphs() -> list[Any]:
    """One of each path and of each operator, and the others exhaustively."""
    first = (("avgpool4", "simplified"), ("color", "svd"))
    assert set(first) <= set(OPERATORS)
    return [
        pytest.param(each, marks=() if each in first else pytest.mark.exhaustive)
        for each in OPERATORS
    ]


@pytest.fixture(scope="module", params=graphs(), ids=".".join)
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Operator, Stage]:
    """The golden's name of the operator and path, the operator, and the lowered stage."""
    text, compat = OPERATORS[request.param]
    system = System(paper="", plan=sing_zero.plan, roles={"": "none"})
    asked = Request((str(GOLDEN / "model_fp16.pt"),), configs=(str(GOLDEN / "config.json"),))
    source, _ = gather(system, asked)
    prior = prior_of(source, source.config, "")
    operator = Operator.parse(text)
    zero = Zero(None, prior, operator, compat, False, {})  # type: ignore[arg-type]
    folder = tmp_path_factory.mktemp("ddnm")
    entry = lower(denoise(zero), folder, Sizes(4, (SIZE, SIZE)), "fp32").entry
    graph = (folder / "denoise.onnx").read_bytes()
    session = OnnxRuntimeBackend(threads=1).load("denoise", entry, graph, {})
    return ".".join(request.param), operator, Stage("denoise", entry, session)


def trajectory(
    stage: Stage, operator: Operator, y: Floats, sigma_y: float, vectors: dict[str, Any]
) -> tuple[Floats, Floats]:
    """All states, the last one final, and the corrected clean estimates."""
    calls: list[Any] = []
    watched = RecordingSession("denoise", stage.session, calls)
    sampler = SamplerSpec("ddnm", STEPS, "noise", None, 0.0)
    settings = {"eta": float(vectors["eta"]), "sigma_y": sigma_y}
    loop = Loop("state", None, None, SCHEDULE, sampler, settings)
    plan = plan_loop(loop, schedule_from(SCHEDULE), Choices(), [7.0], 0, directed=True)
    program = Program(
        (LoopStep("denoise"),),
        {"denoise": Stage("denoise", stage.entry, watched)},
        {"denoise": "state"},
        {},
        {},
    )
    run = Run(
        sizes={"batch": 1, "height": SIZE, "width": SIZE},
        tiling=tile_image(SIZE, SIZE, tile=0, overlap=0, multiple=4),
        plans={"denoise": plan},
        descents={},
        noise=RecordedNoise(vectors),
        seed=0,
        frame=0,
        supply=lambda name, tensors: None,
    )
    target = operator.invert(torch.from_numpy(y)).numpy()
    last = program.execute({"target": target}, run, Trace())["state"]
    assert [float(fed["timestep"][0]) for _, fed, _ in calls] == vectors["times"][:-1].tolist()
    states = np.concatenate([*(fed["state"] for _, fed, _ in calls), last])
    return states, np.concatenate([returned["clean"] for _, _, returned in calls])


@pytest.mark.parametrize(("noisy", "sigma_y"), [("s0", 0.0), ("s01", 0.1)])
def test_every_state_is_the_published_one(
    exported: tuple[str, Operator, Stage],
    vectors: dict[str, npt.NDArray[Any]],
    noisy: str,
    sigma_y: float,
) -> None:
    name, operator, stage = exported
    y = vectors[f"{name}.{noisy}.y"]
    if operator.weights is not None and name.endswith("simplified"):
        y = y[:, :1]  # that path repeats the one plane for each colour
    states, cleans = trajectory(stage, operator, y, sigma_y, vectors)
    gap = np.abs(states - vectors[f"{name}.{noisy}.x_t"]).max()
    assert gap <= STATE_TOLERANCE
    gap = np.abs(cleans - vectors[f"{name}.{noisy}.x0_corrected"]).max()
    assert gap <= CLEAN_TOLERANCE


def test_the_two_implementations_differ_by_far_more(vectors: dict[str, npt.NDArray[Any]]) -> None:
    for operator in ("avgpool4", "color"):
        ends = [vectors[f"{operator}.{path}.s0.x_t"][-1] for path in ("simplified", "svd")]
        assert np.abs(ends[0] - ends[1]).max() > 1000 * STATE_TOLERANCE

"""The public diffusion networks give the published numbers when ONNX Runtime runs them.

A checkpoint in a public container is gathered, lowered and run; the golden inputs are of another
batch than the traced ones. What is compared is all that the network returns, the variance's planes
included.
"""

from __future__ import annotations

import ast
import json
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from jscc.export.gather import Request, gather
from jscc.export.lower import Sizes, lower
from jscc.export.priors import prior_of
from jscc.export.system import StageSpec, System
from jscc.runtime.backends.onnxruntime import OnnxRuntimeBackend
from jscc.runtime.ports import Port

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "golden"
FORMULA, GUIDED = GOLDEN / "diffusion-formula-weights", GOLDEN / "guided-diffusion-tiny"
TOLERANCE = {FORMULA: 5e-5, GUIDED: 2e-5}  # of the goldens' READMEs
SIDE = 32
SYSTEM = System(paper="", plan=None, roles={"": "none"})  # type: ignore[arg-type]

pytestmark = [
    pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"no golden vectors at {GOLDEN}"),
    pytest.mark.slow,  # each export takes seconds
]


def run(checkpoint: Path, config: dict[str, Any], folder: Path, *inputs: Floats) -> Floats:
    """All planes that the network of `checkpoint` returns for x and the timestep."""
    told = folder / "told.yaml"
    told.write_text(json.dumps(config))
    source, _ = gather(SYSTEM, Request((str(checkpoint),), configs=(str(told),)))
    prior = prior_of(source, source.config, "")
    planes = int(source.config.get("out_channels", source.config.get("out_ch", 3)))
    shape = ("batch", 3, "height", "width")
    spec = StageSpec(
        name="network",
        build=prior.build,
        inputs=(Port("x", "float32", shape), Port("timestep", "float32", ("batch",))),
        outputs=(Port("out", "float32", ("batch", planes, "height", "width")),),
    )
    entry = lower(spec, folder, Sizes(prior.stride, (SIDE, SIDE)), "fp32").entry
    graph = (folder / "network.onnx").read_bytes()
    session = OnnxRuntimeBackend(threads=1).load("network", entry, graph, {})
    out: Floats = session.run({"x": inputs[0], "timestep": inputs[1].astype(np.float32)})["out"]
    return out


def drawn(key: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The weight that the README beside the golden defines."""
    normal = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape)
    if len(shape) > 1:
        normal = normal * (0.8 / np.sqrt(np.prod(shape[1:])))
    else:
        normal = 1 + 0.1 * normal if key.endswith(".weight") else 0.05 * normal
    return torch.from_numpy(normal.astype(np.float32))


@pytest.mark.parametrize(
    ("name", "config"), [("ddim_small", {}), ("adm_small_mult12", {"num_head_channels": 16})]
)
def test_weights_by_a_formula(name: str, config: dict[str, Any], tmp_path: Path) -> None:
    lines = (FORMULA / f"{name}_state_dict_keys.txt").read_text().splitlines()
    rows = [line.split("\t")[:2] for line in lines if line and not line.startswith("#")]
    torch.save({key: drawn(key, ast.literal_eval(shape)) for key, shape in rows}, tmp_path / "x.pt")
    with np.load(FORMULA / "io.npz") as io:
        out = run(tmp_path / "x.pt", config, tmp_path, io[f"{name}.x"], io[f"{name}.t"])
        expected = io[f"{name}.out"]
    assert out.shape == expected.shape
    assert np.abs(out - expected).max() <= TOLERANCE[FORMULA]


def test_the_new_order_of_attention_and_the_variance(tmp_path: Path) -> None:
    """The legacy order is lowered for the trajectories of test_ddnm_golden.py."""
    config = json.loads((GUIDED / "config.json").read_text())
    config["use_new_attention_order"] = True
    with np.load(GUIDED / "unet_io.npz") as io:
        out = run(GUIDED / "model_fp16.pt", config, tmp_path, io["x_t"], io["t"])
        new, legacy = (io[f"out.{order}_attention_order"] for order in ("new", "legacy"))
    assert out.shape == (2, 6, SIDE, SIDE)
    assert np.abs(out - new).max() <= TOLERANCE[GUIDED]
    assert np.abs(out - legacy)[:, 3:].max() > 100 * TOLERANCE[GUIDED]

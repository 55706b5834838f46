"""Peer case: one denoise step of DiffJSCC, as a graph for us and as a torch network for the peers.

A prepared case is a folder: ``denoise.onnx`` (and ``.data``), ``case.json``, one ``.npy`` for each
input, and ``context.npy`` for those who compute keys and values of the context in every step.
`jscc.benchmarks.peer_network` makes it; this module needs no torch to read it.
"""

import json
import mmap
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from jscc.runtime.manifest import StageEntry
from jscc.runtime.manifest_loops import ScheduleSpec
from jscc.runtime.ports import Port
from jscc.runtime.schedule import schedule_from

STAGE = "denoise"
CONTEXT = "context"
FORM = 2  # of a prepared folder; another one is prepared again
Array = npt.NDArray[np.float32]
Arrays = dict[str, Array]

# Stable Diffusion 2.1's widths, and widths that a test can afford.
TRUNKS: dict[str, dict[str, Any]] = {
    "full": {
        "model_channels": 320,
        "attention_resolutions": [4, 2, 1],
        "num_res_blocks": 2,
        "channel_mult": [1, 2, 4, 4],
        "num_head_channels": 64,
        "transformer_depth": 1,
        "context_dim": 1024,
    },
    "small": {
        "model_channels": 32,
        "attention_resolutions": [1],
        "num_res_blocks": 1,
        "channel_mult": [1],
        "num_head_channels": 16,
        "transformer_depth": 1,
        "context_dim": 16,
    },
}
LATENT = 4  # planes
# The schedule of the noise, and how the SNR enters the control module.
BETAS = (0.00085, 0.0120)
TIMESTEPS = 1000
SNR_SCALE, MIN_SNR = 100, 0
# What the control module has besides its trunk, in the official schema.
STEERING: dict[str, Any] = {
    "hint_channels": LATENT,
    "use_snr": True,
    "min_snr": MIN_SNR,
    "snr_scale": SNR_SCALE,
}


def trunk(scale: str) -> dict[str, Any]:
    """What both networks of this scale have, in the official schema."""
    transformer = {"use_spatial_transformer": True, "use_linear_in_transformer": True}
    return {"in_channels": LATENT, **transformer, **TRUNKS[scale]}


@dataclass(frozen=True)
class Case:
    """What to measure.

    Attributes:
        scale: ``full``, the widths of Stable Diffusion 2.1, or ``small``, for tests.
        height: Image height in pixels, a multiple of 64; the latent has an eighth.
        width: Image width in pixels.
        any_size: Whether the graph takes images of any size, or this one only.
        seed: Draws weights and inputs.
    """

    scale: str
    height: int
    width: int
    any_size: bool = False
    seed: int = 0


def write_case(
    case: Case, entry: StageEntry, inputs: Arrays, context: Array, flops: int, folder: Path
) -> None:
    """Write all of a case but its graph into `folder`.

    Args:
        case: What it is.
        entry: Ports of the graph.
        inputs: Of the step, by port.
        context: float32[1, tokens, features], what ``context_kv`` of the inputs was made from.
        flops: Of one step; a product and a sum are two.
        folder: Where to.
    """
    for name, array in {**inputs, CONTEXT: context}.items():
        np.save(folder / f"{name}.npy", array, allow_pickle=False)
    record = {"form": FORM, "case": asdict(case), "entry": asdict(entry), "flops": flops}
    (folder / "case.json").write_text(json.dumps(record), encoding="utf-8")


def is_prepared(folder: Path) -> bool:
    """Whether `folder` holds a case of the present form."""
    path = folder / "case.json"
    return path.is_file() and _record(folder).get("form") == FORM


def read_case(folder: Path) -> tuple[Case, StageEntry, Arrays]:
    """The case in `folder`, its ports, and its inputs in the order of the ports."""
    record = _record(folder)
    entry = record["entry"]
    for side in ("inputs", "outputs"):
        entry[side] = tuple(
            Port(port["name"], port["dtype"], tuple(port["shape"])) for port in entry[side]
        )
    stage = StageEntry(**entry)
    inputs = {p.name: read_array(folder / f"{p.name}.npy") for p in stage.inputs}
    return Case(**record["case"]), stage, inputs


def read_context(folder: Path) -> Array:
    """The context, float32[1, tokens, features]."""
    return read_array(folder / f"{CONTEXT}.npy")


def read_flops(folder: Path) -> int:
    """FLOPs of one step of the case in `folder`."""
    return int(_record(folder)["flops"])


def read_graph(folder: Path) -> tuple[bytes, dict[str, memoryview]]:
    """The graph in `folder`, and the files of weights that it refers to, mapped into memory."""
    path = folder / f"{STAGE}.onnx"
    external = {file.name: _mapped(file) for file in folder.glob(f"{path.name}.*")}
    return path.read_bytes(), external


def _mapped(path: Path) -> memoryview:
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def read_array(path: Path) -> Array:
    """What one of this benchmark's processes saved."""
    return np.asarray(np.load(path, allow_pickle=False), np.float32)


def noise_in(clean: Array, inputs: Arrays) -> npt.NDArray[np.float64]:
    """The noise that a step which returned `clean` has found in the latent.

    Jonathan Ho et al., "Denoising Diffusion Probabilistic Models", arXiv:2006.11239, eq. 4 solved
    for the noise.

    Args:
        clean: float32[1, planes, rows, columns], what the step returned.
        inputs: Of the step.
    """
    kind = ScheduleSpec("scaled_linear", *BETAS, TIMESTEPS)
    abar = float(schedule_from(kind).alphas_cumprod[int(inputs["timestep"][0])])
    rest = inputs["latent"] - np.sqrt(abar) * clean.astype(np.float64)
    return np.asarray(rest / np.sqrt(1 - abar), np.float64)


def redraw(entry: StageEntry, inputs: Arrays, count: int, seed: int) -> list[Arrays]:
    """Other inputs of the step, to calibrate with: the context stays, all else is drawn anew.

    Time steps and SNRs are spread evenly over what the network is told in a reception, in
    another order for each of the two.

    Args:
        entry: Ports of the step.
        inputs: The case's own.
        count: How many.
        seed: Draws them.
    """
    rng = np.random.default_rng([seed, count])
    spread = {
        "timestep": np.linspace(TIMESTEPS - 1, 0, count).round(),
        "snr_db": rng.permutation(np.linspace(0.0, 14.0, count)),
    }
    drawn = []
    for index in range(count):
        arrays = {}
        for port in entry.inputs:
            given = inputs[port.name]
            if port.name == "context_kv":
                arrays[port.name] = given
            elif port.name in spread:
                arrays[port.name] = np.full_like(given, spread[port.name][index])
            else:
                arrays[port.name] = rng.standard_normal(given.shape).astype(np.float32)
        drawn.append(arrays)
    return drawn


def _record(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / "case.json").read_text(encoding="utf-8"))
    return record

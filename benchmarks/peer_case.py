"""Peer case: one denoise step of DiffJSCC, as a graph for us and as a torch network for the peers.

A prepared case is a folder: ``denoise.onnx`` (and ``.data``), ``case.json`` and one ``.npy`` for
each input. `jscc.benchmarks.peer_network` makes it; this module needs no torch to read it.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from jscc.runtime.manifest import StageEntry
from jscc.runtime.ports import Port

STAGE = "denoise"
Arrays = dict[str, npt.NDArray[np.float32]]


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


def write_case(case: Case, entry: StageEntry, inputs: Arrays, folder: Path) -> None:
    """Write all of a case but its graph into `folder`."""
    for name, array in inputs.items():
        np.save(folder / f"{name}.npy", array, allow_pickle=False)
    record = {"case": asdict(case), "entry": asdict(entry)}
    (folder / "case.json").write_text(json.dumps(record), encoding="utf-8")


def read_case(folder: Path) -> tuple[Case, StageEntry, Arrays]:
    """The case in `folder`, its ports, and its inputs in the order of the ports."""
    record = json.loads((folder / "case.json").read_text(encoding="utf-8"))
    entry = record["entry"]
    for side in ("inputs", "outputs"):
        entry[side] = tuple(
            Port(port["name"], port["dtype"], tuple(port["shape"])) for port in entry[side]
        )
    stage = StageEntry(**entry)
    inputs = {p.name: np.load(folder / f"{p.name}.npy", allow_pickle=False) for p in stage.inputs}
    return Case(**record["case"]), stage, inputs

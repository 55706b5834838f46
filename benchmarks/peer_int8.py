"""Peer int8: the graph of a peer case in eight bits, by our calibration and by NNCF's.

Both measure the same inputs, which are drawn like those of the case and are not them. There is no
budget here and no search: every layer is rounded but those that our calibration keeps from the
start, or that NNCF leaves alone, so that speed is that of the most that each converts.
"""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import numpy as np

from jscc.benchmarks.peer_case import STAGE, read_case, read_graph, redraw
from jscc.benchmarks.peer_engines import INT8_FOLDER, NNCF_FOLDER
from jscc.runtime.bundle import Bundle
from jscc.runtime.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import onnx_ir as ir

    from jscc.calibration.ranges import Ranges
    from jscc.runtime.ports import Array, Port

INT8 = "int8"  # precision of a bundle
SAMPLES = 4  # inputs that ranges are measured on
_COUNTS = "counts.json"  # written last
ESTIMATOR = "mse"  # of ranges, as jscc calibrate has it by default


def calibrate(folder: Path, threads: int, samples: int = SAMPLES) -> None:
    """Write ``int8/denoise.onnx`` into the case's `folder`: our calibration's form."""
    from jscc.calibration.collect import watched_tensors
    from jscc.calibration.graph import drop_unused, parse_graph, write_graph
    from jscc.calibration.layers import kept, layers_of
    from jscc.calibration.probe import Probe
    from jscc.calibration.quantize import quantise
    from jscc.calibration.ranges import Ranges

    case, entry, inputs = read_case(folder)
    graph, external = read_graph(folder)
    ranges: dict[str, Ranges] = {}

    def expose(_: str, model: ir.Model) -> tuple[str, ...]:
        ranges.update({name: Ranges(axis) for name, axis in watched_tensors(model).items()})
        return tuple(ranges)

    def tell(_: str, fed: Mapping[str, Array], tensors: Mapping[str, Array]) -> None:
        cell = (float(fed["snr_db"][0]), float(fed["timestep"][0]))
        for name, array in tensors.items():
            ranges[name].add(np.asarray(array, np.float32), cell)

    session = Probe(expose, tell, threads).load(STAGE, entry, graph, external)
    for arrays in redraw(entry, inputs, samples, case.seed):
        session.run(arrays)
    del session
    model = parse_graph(graph, external)
    layers = layers_of(model)
    held = kept(layers, model.graph.outputs)
    wanted = [layer for layer in layers if layer.name not in held]
    quantise(model, wanted, lambda name: ranges[name].scale(ESTIMATOR))
    drop_unused(model)
    target = _fresh(folder / INT8_FOLDER)
    write_graph(model, STAGE, target)
    _write_counts(target, {"samples": samples, "layers": len(layers), "rounded": len(wanted)})


def adopt(folder: Path, source: Path) -> dict[str, object]:
    """Take the step's graph of the bundle `source` as the case's own in eight bits.

    Returns:
        What the bundle says of itself.

    Raises:
        DataError: ``E_CASE``, it is not in eight bits, or has no such stage, or one with other
            inputs or widths.
        BundleError: It is no bundle.
    """
    _, entry, _ = read_case(folder)
    bundle = Bundle.open(source)
    manifest = bundle.manifest
    if manifest.precision != INT8:
        raise DataError(
            "E_CASE",
            f"--int8: got a bundle in {manifest.precision}, expected {INT8}. "
            f"Calibrate it: jscc calibrate --precision {INT8}.",
        )
    stage = manifest.stages.get(STAGE)
    got, expected = _widths(() if stage is None else stage.inputs), _widths(entry.inputs)
    if got != expected:
        raise DataError(
            "E_CASE",
            f"--int8: got a bundle whose stage {STAGE!r} reads {got or 'nothing'}, expected "
            f"{expected}. Calibrate a bundle of the case's own network.",
        )
    target = _fresh(folder / INT8_FOLDER)
    (target / f"{STAGE}.onnx").write_bytes(bundle.graph(STAGE))
    for name, part in bundle.external(STAGE).items():
        (target / name).write_bytes(part)
    return {"bundle": source.name, "precision": manifest.precision}


def quantise_by_nncf(folder: Path, samples: int = SAMPLES) -> None:
    """Write ``nncf/denoise.xml`` into the case's `folder`: NNCF's post-training quantisation.

    By its scheme for transformers, with biases left alone.
    """
    import nncf
    import openvino

    case, entry, inputs = read_case(folder)
    given = redraw(entry, inputs, samples, case.seed)
    exact = openvino.Core().read_model(str(folder / f"{STAGE}.onnx"))
    rounded = nncf.quantize(
        exact,
        nncf.Dataset(given),
        subset_size=samples,
        model_type=nncf.ModelType.TRANSFORMER,
        advanced_parameters=nncf.AdvancedQuantizationParameters(disable_bias_correction=True),
    )
    target = _fresh(folder / NNCF_FOLDER)
    openvino.save_model(rounded, str(target / f"{STAGE}.xml"), compress_to_fp16=False)
    kinds = [node.get_type_name() for node in rounded.get_ops()]
    _write_counts(target, {"samples": samples, "fake_quantize": kinds.count("FakeQuantize")})


def is_rounded(folder: Path) -> bool:
    """Whether a calibration of the case itself has ended in `folder`."""
    return (folder / _COUNTS).is_file()


def read_counts(folder: Path) -> dict[str, object]:
    """What that calibration says of itself."""
    counts: dict[str, object] = json.loads((folder / _COUNTS).read_text(encoding="utf-8"))
    return counts


def _write_counts(folder: Path, counts: Mapping[str, int]) -> None:
    (folder / _COUNTS).write_text(json.dumps(counts), encoding="utf-8")


def _widths(ports: Sequence[Port]) -> dict[str, object]:
    """Features of each input, whatever its height and width; of planes on axis 1, else last."""
    return {
        port.name: port.shape[1 if len(port.shape) == 4 else -1]
        for port in sorted(ports, key=lambda port: port.name)
    }


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder

"""Weights that several graphs hold are stored once, and every graph computes what it did."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from jscc.export import sharing
from jscc.export.sharing import SHARED, share_weights

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]

SIZE = 64


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "LEAST_SAVED", 1)


def weights(seed: int) -> Floats:
    return np.random.default_rng(seed).standard_normal((SIZE, SIZE)).astype(np.float32)


def write(folder: Path, name: str, *tensors: Floats, outside: bool = False) -> Path:
    """x times all of them, one after the other; under names of its own."""
    nodes, value = [], "x"
    constants = [numpy_helper.from_array(t, f"{name}_{i}") for i, t in enumerate(tensors)]
    for i in range(len(tensors)):
        after = "y" if i == len(tensors) - 1 else f"h{i}"
        nodes.append(helper.make_node("MatMul", [value, f"{name}_{i}"], [after]))
        value = after
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, SIZE]) for n in "xy"]
    graph = helper.make_graph(nodes, name, ports[:1], ports[1:], initializer=constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path = folder / name / f"{name}.onnx"
    path.parent.mkdir()
    onnx.save(model, path, save_as_external_data=outside, location=f"{name}.onnx.data")
    return path


def run(files: dict[str, Path], name: str, folder: Path) -> Floats:
    """The graph with its files in one folder, as a bundle has them."""
    place = folder / "graphs"
    place.mkdir(exist_ok=True)
    for key, path in files.items():
        (place / key.removeprefix("graphs/")).write_bytes(path.read_bytes())
    session = ort.InferenceSession(place / f"{name}.onnx", providers=["CPUExecutionProvider"])
    x = np.linspace(-1, 1, SIZE, dtype=np.float32).reshape(1, SIZE)
    result: Floats = session.run(None, {"x": x})[0]
    return result


@pytest.mark.parametrize("outside", [False, True], ids=["inside", "outside"])
def test_common_tensors_move_to_one_file(tmp_path: Path, outside: bool) -> None:
    common, other, third = weights(0), weights(1), weights(2)
    stages = {
        "plain": write(tmp_path, "plain", common, other, outside=outside),
        "guided": write(tmp_path, "guided", third, common, outside=outside),
        "alone": write(tmp_path, "alone", weights(3)),
    }
    x = np.linspace(-1, 1, SIZE, dtype=np.float32).reshape(1, SIZE)
    untouched = stages["alone"].read_bytes()
    files = share_weights(stages, tmp_path)
    assert files[f"graphs/{SHARED}"].stat().st_size == common.nbytes
    assert sum(path.stat().st_size for path in files.values()) < 5 * common.nbytes
    assert stages["alone"].read_bytes() == untouched
    assert ("graphs/plain.onnx.data" in files) == outside
    expected = {"plain": x @ common @ other, "guided": x @ third @ common}
    for name, value in expected.items():
        np.testing.assert_allclose(run(files, name, tmp_path), value, rtol=1e-5, atol=1e-5)
    assert onnx.load(stages["guided"], load_external_data=False).graph.initializer[1].name == (
        "guided_1"
    )


def test_all_of_a_graphs_own_file_is_common(tmp_path: Path) -> None:
    stages = {name: write(tmp_path, name, weights(0), outside=True) for name in ("one", "two")}
    files = share_weights(stages, tmp_path)
    assert set(files) == {"graphs/one.onnx", "graphs/two.onnx", f"graphs/{SHARED}"}
    np.testing.assert_array_equal(run(files, "one", tmp_path), run(files, "two", tmp_path))


def test_another_shape_of_the_same_bytes(tmp_path: Path) -> None:
    """One graph may hold a matrix as another's column; each keeps its shape."""
    stages = {"one": write(tmp_path, "one", weights(0)), "two": write(tmp_path, "two", weights(0))}
    model = onnx.load(stages["two"])
    model.graph.initializer[0].dims[:] = [SIZE * SIZE, 1]
    onnx.save(model, stages["two"])
    share_weights(stages, tmp_path)
    shapes = [
        list(onnx.load(path, load_external_data=False).graph.initializer[0].dims)
        for path in stages.values()
    ]
    assert shapes == [[SIZE, SIZE], [SIZE * SIZE, 1]]


def test_other_types_of_the_same_bytes_are_not_the_same(tmp_path: Path) -> None:
    stages = {"one": write(tmp_path, "one", weights(0)), "two": write(tmp_path, "two", weights(0))}
    model = onnx.load(stages["two"])
    model.graph.initializer[0].data_type = TensorProto.INT32
    onnx.save(model, stages["two"])
    assert f"graphs/{SHARED}" not in share_weights(stages, tmp_path)


@pytest.mark.parametrize("seeds", [(0, 1), (0, 0)], ids=["nothing in common", "too little"])
def test_left_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seeds: tuple[int, int]
) -> None:
    monkeypatch.setattr(sharing, "LEAST_SAVED", SIZE * SIZE * 4 + 1)
    stages = {f"s{i}": write(tmp_path, f"s{i}", weights(seed)) for i, seed in enumerate(seeds)}
    before = [path.read_bytes() for path in stages.values()]
    files = share_weights(stages, tmp_path)
    assert set(files) == {"graphs/s0.onnx", "graphs/s1.onnx"}
    assert [path.read_bytes() for path in stages.values()] == before

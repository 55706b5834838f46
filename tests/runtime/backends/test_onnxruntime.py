"""ONNX Runtime backend: weights from memory, providers that are really used, errors in words."""

import gc
import os
import subprocess
import sys
import weakref

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper

import tiny_bundle
from jscc.runtime.backends import onnxruntime as module
from jscc.runtime.backends.onnxruntime import OnnxRuntimeBackend, OnnxRuntimeSession
from jscc.runtime.errors import BundleError, DataError, UnavailableError, UsageError
from jscc.runtime.graphs import ExternalTensor
from jscc.runtime.manifest import StageEntry
from jscc.runtime.ports import Port

ENGINE = OnnxRuntimeBackend(threads=1)
FLOATS = Port("x", "float32", ("batch", 4))
OUT = Port("y", "float32", ("batch", 4))


def entry(inputs=(FLOATS,), outputs=(OUT,)):
    return StageEntry("graphs/tiny.onnx", tiny_bundle.OPSET, False, inputs, outputs)


def graph(nodes, inputs=(FLOATS,), outputs=(OUT,), weights=()):
    return tiny_bundle.model(nodes, inputs, outputs, weights).SerializeToString()


DOUBLE = graph([helper.make_node("Add", ["x", "x"], ["y"])])


def load(data, stage_entry=None, external=None, backend=ENGINE):
    return backend.load("tiny", stage_entry or entry(), data, external or {})


def test_a_session_runs_and_says_where():
    session = load(DOUBLE)
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert np.array_equal(session.run({"x": x})["y"], 2 * x)
    assert session.provider == "cpu"
    assert session.fallbacks == ()
    assert session.inputs == (FLOATS,)
    assert session.outputs == (OUT,)
    assert ENGINE.name == f"onnxruntime {ort.__version__}"


def test_inputs_may_be_strided():
    x = np.arange(48, dtype=np.float32).reshape(3, 16)[:, ::4]
    assert np.array_equal(load(DOUBLE).run({"x": x})["y"], 2 * x)


def test_only_the_ports_are_fed():
    x = np.ones((1, 4), np.float32)
    assert load(DOUBLE).run({"x": x, "other": x})["y"].tolist() == [[2, 2, 2, 2]]


@pytest.mark.parametrize("shift", [0, 1])
def test_weights_come_from_memory_aligned_or_not(shift):
    """Two files: one aligned, one shifted by a byte; the result is that of weights inside."""
    weights = [tiny_bundle.weights("v", 4, 4), tiny_bundle.weights("w", 4, 4)]
    nodes = [
        helper.make_node("MatMul", ["x", "v"], ["z"]),
        helper.make_node("MatMul", ["z", "w"], ["y"]),
    ]
    inside = load(graph(nodes, weights=weights))
    made = tiny_bundle.model(nodes, (FLOATS,), (OUT,), weights)
    files = {}
    for index, name in enumerate(("v", "w")):
        location = f"{name}.data"
        data = tiny_bundle._external(made, name, location)
        offset = shift * index
        made.graph.initializer[index].external_data[1].value = str(offset)
        files[location] = memoryview(bytes(offset) + data)
    outside = load(made.SerializeToString(), external=files)
    x = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    assert np.array_equal(outside.run({"x": x})["y"], inside.run({"x": x})["y"])


@pytest.mark.parametrize(("shift", "copied"), [(0, False), (1, True), (4, False)])
def test_weights_are_not_copied_unless_they_are_unaligned(shift, copied):
    file = np.zeros(64 + shift, np.uint8)
    tensor = ExternalTensor("w", "w.data", shift, 64, "float32", 32, (4, 4), "")
    pointer = module._weight(tensor, memoryview(file)).data_ptr()
    assert pointer % 4 == 0
    assert (pointer != file.ctypes.data + shift) == copied


def test_weights_of_a_dtype_that_numpy_lacks_come_from_memory_too():
    weight = onnx.helper.make_tensor("w", onnx.TensorProto.INT4, [4], [1, -2, 3, -4])
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "scale"], ["wide"]),
        helper.make_node("Mul", ["x", "wide"], ["y"]),
    ]
    scale = onnx.numpy_helper.from_array(np.float32(0.5), "scale")
    made = onnx.helper.make_model(
        helper.make_graph(nodes, "g", [tiny_bundle.value(FLOATS)], [tiny_bundle.value(OUT)],
                          initializer=[weight, scale]),
        opset_imports=[helper.make_opsetid("", 21)], ir_version=10,
    )  # fmt: skip
    tensor = made.graph.initializer[0]
    packed = bytes([0x1 | 0xE << 4, 0x3 | 0xC << 4])
    tensor.ClearField("int32_data")
    tensor.raw_data = packed
    data = tiny_bundle._external(made, "w", "w.data")
    session = load(made.SerializeToString(), external={"w.data": memoryview(data)})
    x = np.ones((1, 4), np.float32)
    assert session.run({"x": x})["y"].tolist() == [[0.5, -1.0, 1.5, -2.0]]


def test_what_happens_to_the_weights_afterwards_does_not_matter():
    made = tiny_bundle.model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], (FLOATS,), (OUT,),
        [tiny_bundle.weights("w", 4, 4)],
    )  # fmt: skip
    data = bytearray(tiny_bundle._external(made, "w", "w.data"))
    session = load(made.SerializeToString(), external={"w.data": memoryview(data)})
    x = np.ones((2, 4), np.float32)
    before = session.run({"x": x})["y"]
    data[:] = bytes(len(data))
    assert np.array_equal(session.run({"x": x})["y"], before)


def test_nothing_holds_the_weights_afterwards():
    """So that dropping a bundle frees them."""
    made = tiny_bundle.model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], (FLOATS,), (OUT,),
        [tiny_bundle.weights("w", 4, 4)],
    )  # fmt: skip
    data = np.frombuffer(tiny_bundle._external(made, "w", "w.data"), np.uint8).copy()
    gone = weakref.ref(data)
    session = load(made.SerializeToString(), external={"w.data": memoryview(data)})
    del data
    gc.collect()
    assert gone() is None
    assert session.run({"x": np.ones((1, 4), np.float32)})["y"].any()


@pytest.mark.parametrize(
    ("arrays", "shown"),
    [
        ({}, "got nothing"),
        ({"x": np.zeros((1, 4))}, r"got float64\[1,4\]"),
        ({"x": np.zeros((1, 5), np.float32)}, r"got float32\[1,5\]"),
        ({"x": np.zeros(4, np.float32)}, r"got float32\[4\]"),
    ],
)
def test_arrays_are_held_to_their_ports(arrays, shown):
    message = f"stage 'tiny', port 'x': {shown}, expected float32"
    with pytest.raises(DataError, match=message) as caught:
        load(DOUBLE).run(arrays)
    assert caught.value.code == "E_PORT"


BAD_NAME = DOUBLE.replace(b"tiny", b"\xff\xfe\xfd\xfc")
UNKNOWN_OP = onnx.helper.make_model(
    helper.make_graph(
        [helper.make_node("Teleport", ["x"], ["y"])], "g",
        [tiny_bundle.value(FLOATS)], [tiny_bundle.value(OUT)],
    ),
    opset_imports=[helper.make_opsetid("", 20)], ir_version=10,
).SerializeToString()  # fmt: skip


@pytest.mark.parametrize("data", [b"", b"no graph at all", DOUBLE[: len(DOUBLE) // 2], UNKNOWN_OP])
def test_graphs_that_do_not_load_are_one_kind_of_error(data, capfd):
    message = "stage 'tiny': got .*, expected a graph that onnxruntime .* loads on cpu"
    with pytest.raises(BundleError, match=message) as caught:
        load(data)
    assert caught.value.code == "E_GRAPH_LOAD"
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_errors_of_the_wrong_type_are_wrapped_too(monkeypatch):
    """The library raises even UnicodeDecodeError, for bad bytes in a name."""

    def refuse(*arguments, **options):
        raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")

    monkeypatch.setattr(module.ort, "InferenceSession", refuse)
    with pytest.raises(BundleError, match=r"got UnicodeDecodeError .*invalid start byte") as caught:
        load(BAD_NAME)
    assert caught.value.code == "E_GRAPH_LOAD"


def test_a_graph_with_other_edges_is_refused():
    with pytest.raises(BundleError, match=r"got graph outputs \['y'\], expected \['z'\]") as caught:
        load(DOUBLE, entry(outputs=(Port("z", "float32", OUT.shape),)))
    assert caught.value.code == "E_GRAPH_PORTS"


def test_a_graph_that_returns_another_shape_is_refused():
    wide = Port("y", "float32", ("batch", 8))
    with pytest.raises(UnavailableError, match=r"got .* for x float32\[1,4\], expected it to run"):
        load(DOUBLE, entry(outputs=(wide,))).run({"x": np.ones((1, 4), np.float32)})


@pytest.mark.parametrize("names", [(), ("gpu",), ("cpu", "CUDAExecutionProvider")])
def test_unknown_providers_list_the_choices(names):
    with pytest.raises(UsageError, match="expected names of cpu, cuda, tensorrt") as caught:
        OnnxRuntimeBackend(providers=names)
    assert caught.value.code == "E_PROVIDER"


def test_threads_are_one_or_more():
    with pytest.raises(UsageError, match="threads: got 0, expected 1 or more"):
        OnnxRuntimeBackend(threads=0)


def test_fallback_drops_the_first_choice():
    backend = OnnxRuntimeBackend(providers=("cuda", "cpu"), threads=3)
    assert backend.fallback() == OnnxRuntimeBackend(providers=("cpu",), threads=3)
    assert OnnxRuntimeBackend().fallback() is None


class Broken:
    """A session whose runs raise what an engine says when memory runs out."""

    def __init__(self, words):
        self.words = words

    def io_binding(self):
        raise RuntimeError(self.words)


# As ONNX Runtime 1.31 and CUDA word it.
BFC = (
    "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running Expand node. "
    "Status Message: bfc_arena.cc:360 void* onnxruntime::BFCArena::AllocateRawInternal(size_t) "
    "Failed to allocate memory for requested buffer of size 1125899906842624"
)


def breaking(words, good):
    builds = []

    def build():
        builds.append(1)
        return good

    session = OnnxRuntimeSession("tiny", entry(), "cuda", (), build, good)
    session._session = Broken(words)
    return session, builds


@pytest.mark.parametrize("words", [BFC, "std::bad_alloc", "CUDA failure 2: out of memory"])
def test_a_session_that_ran_out_of_memory_is_built_anew(words):
    good = load(DOUBLE)._session
    session, builds = breaking(words, good)
    x = np.ones((1, 4), np.float32)
    with pytest.raises(UnavailableError, match=r"on cuda: got .* for x float32\[1,4\]") as caught:
        session.run({"x": x})
    assert caught.value.code == "E_MEMORY"
    assert builds == [1]
    assert session.run({"x": x})["y"].tolist() == [[2, 2, 2, 2]]


def test_it_is_not_built_anew_for_ever():
    session, builds = breaking(BFC, load(DOUBLE)._session)
    for _ in range(6):
        session._session = Broken(BFC)
        with pytest.raises(UnavailableError, match="expected enough memory"):
            session.run({"x": np.ones((1, 4), np.float32)})
    assert len(builds) == 3


def test_the_cpu_needs_no_rebuilding():
    session = load(DOUBLE)
    assert session._build is None
    session._session = broken = Broken(BFC)
    with pytest.raises(UnavailableError, match="expected enough memory"):
        session.run({"x": np.ones((1, 4), np.float32)})
    assert session._session is broken


def test_other_errors_build_nothing():
    session, builds = breaking("CUDA error 700: illegal address", load(DOUBLE)._session)
    with pytest.raises(UnavailableError, match=r"illegal address.*expected it to run") as caught:
        session.run({"x": np.ones((1, 4), np.float32)})
    assert caught.value.code == "E_RUN"
    assert builds == []


def test_the_real_engine_runs_out_of_memory_in_those_words(capfd):
    ports = (Port("x", "float32", (1,)), Port("shape", "int64", (2,)))
    total = Port("y", "float32", ())
    data = graph(
        [
            helper.make_node("Expand", ["x", "shape"], ["big"]),
            helper.make_node("ReduceSum", ["big"], ["y"], keepdims=0),
        ],
        ports, (total,),
    )  # fmt: skip
    session = load(data, entry(ports, (total,)))
    huge = {"x": np.ones(1, np.float32), "shape": np.array([1 << 24, 1 << 24])}
    with pytest.raises(UnavailableError, match="Failed to allocate memory") as caught:
        session.run(huge)
    assert caught.value.code == "E_MEMORY"
    assert capfd.readouterr() == ("", "")
    small = {"x": np.ones(1, np.float32), "shape": np.array([3, 5])}
    assert session.run(small)["y"] == 15


def test_outputs_too_large_to_allocate_are_out_of_memory():
    grown = Port("y", "float32", ("batch", 1 << 30, 1 << 20))
    real = Port("y", "float32", ("batch", 4, 1))
    axis = onnx.numpy_helper.from_array(np.array([2], np.int64), "axis")
    node = helper.make_node("Unsqueeze", ["x", "axis"], ["y"])
    session = load(graph([node], outputs=(real,), weights=[axis]), entry(outputs=(grown,)))
    with pytest.raises(UnavailableError, match="Unable to allocate") as caught:
        session.run({"x": np.ones((1, 4), np.float32)})
    assert caught.value.code == "E_MEMORY"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs CPU affinity")
def test_threads_default_to_the_cores_of_the_process():
    script = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from jscc.runtime.backends.onnxruntime import usable_cores; assert usable_cores() == 1"
    )
    subprocess.run([sys.executable, "-c", script], check=True, env=dict(os.environ))

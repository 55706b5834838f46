"""OpenVINO backend: it agrees with ONNX Runtime; where it would not, that runs instead."""

import dataclasses
import gc
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest
from onnx import helper

import tiny_bundle
from jscc.runtime.backends import openvino as module
from jscc.runtime.backends.engines import make_backend, ran_on
from jscc.runtime.backends.onnxruntime import OnnxRuntimeBackend, OnnxRuntimeSession
from jscc.runtime.backends.openvino import OpenVinoBackend, OpenVinoSession
from jscc.runtime.backends.saturation import MAY_CUT_OFF
from jscc.runtime.csi import Csi
from jscc.runtime.engine_names import ENGINES
from jscc.runtime.errors import BundleError, DataError, UnavailableError, UsageError
from jscc.runtime.manifest import StageEntry
from jscc.runtime.ports import Port
from jscc.runtime.receiver import Receiver

openvino = pytest.importorskip("openvino", reason="the extra openvino is not installed")

TRUTH = OnnxRuntimeBackend(threads=1)
FLOATS = Port("x", "float32", ("batch", 4))
OUT = Port("y", "float32", ("batch", 4))
PLANES = Port("x", "float32", ("batch", 4, "height", "width"))
TURNED = Port("y", "float32", ("batch", 4, "height", "width"))


@pytest.fixture(scope="module")
def engine():
    return OpenVinoBackend(threads=1)


def entry(inputs=(FLOATS,), outputs=(OUT,)):
    return StageEntry("graphs/tiny.onnx", tiny_bundle.OPSET, False, inputs, outputs)


def graph(nodes, inputs=(FLOATS,), outputs=(OUT,), weights=()):
    return tiny_bundle.model(nodes, inputs, outputs, weights).SerializeToString()


DOUBLE = graph([helper.make_node("Add", ["x", "x"], ["y"])])


def load(engine, data, stage_entry=None, external=None):
    return engine.load("tiny", stage_entry or entry(), data, external or {})


def symbols(rows=8, columns=12):
    parts = np.random.default_rng(0).standard_normal((2, 2, rows, columns)) * np.sqrt(0.5)
    return (parts[0] + 1j * parts[1]).astype(np.complex64)


def test_a_session_runs_and_says_where(engine):
    session = load(engine, DOUBLE)
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    kept = x.copy()
    assert np.array_equal(session.run({"x": x})["y"], 2 * x)
    assert np.array_equal(x, kept)
    assert session.provider == "cpu"
    assert session.fallbacks == ()
    assert session.inputs == (FLOATS,)
    assert session.outputs == (OUT,)
    version = openvino.__version__.partition("-")[0]
    assert engine.name == f"openvino {version} f32"
    assert OpenVinoBackend(precision="bf16").name == f"openvino {version} bf16"


@pytest.mark.parametrize("name", ["codec", "diffusion"])
@pytest.mark.parametrize("size", [(1, 16, 24), (2, 32, 8)])
def test_stages_agree_with_onnx_runtime_at_any_size(engine, shared_bundles, name, size):
    bundle = shared_bundles[name]
    sizes = dict(zip(("batch", "height", "width"), size, strict=True))
    rng = np.random.default_rng(1)
    for stage, stage_entry in bundle.manifest.stages.items():
        given = (stage, stage_entry, bundle.graph(stage), bundle.external(stage))
        shapes = {port.name: module.resolve(port, sizes) for port in stage_entry.inputs}
        arrays = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
        expected, found = (backend.load(*given).run(arrays) for backend in (TRUTH, engine))
        for port in stage_entry.outputs:
            assert found[port.name].shape == expected[port.name].shape
            assert np.abs(found[port.name] - expected[port.name]).max() <= 1e-5


def test_a_bundle_with_a_loop_is_received_alike(engine, diffusion_bundle):
    side = {"context": np.linspace(0, 1, 10, dtype=np.float32).reshape(1, 2, 5)}
    images = []
    for backend in (TRUTH, engine):
        receiver = Receiver(diffusion_bundle, backend=backend)
        image, record = receiver.receive(symbols(), Csi(7.0), seed=1, side=side)
        images.append(image.astype(int))
        assert record.backend == backend.name
        assert record.fallbacks == ()
    assert np.abs(images[0] - images[1]).max() <= 1


def test_bfloat16_is_near_and_a_processor_without_it_is_told(diffusion_bundle):
    backend = OpenVinoBackend(threads=1, precision="bf16")
    x = np.random.default_rng(0).standard_normal((2, 4, 9, 7), np.float32)
    data = graph(
        [helper.make_node("Conv", ["x", "w"], ["y"])],
        (PLANES,), (TURNED,), [tiny_bundle.weights("w", 4, 4, 1, 1)],
    )  # fmt: skip
    stage_entry = entry((PLANES,), (TURNED,))
    session = load(backend, data, stage_entry)
    exact = load(TRUTH, data, stage_entry).run({"x": x})["y"]
    found = session.run({"x": x})["y"]
    assert found.dtype == np.float32
    assert np.abs(found - exact).max() <= 2e-2 * np.abs(exact).max()
    supported = "BF16" in module._core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if supported:
        assert session.fallbacks == ()
    else:
        assert session.fallbacks == ("stage 'tiny': runs in f32, not in bf16",)


def test_a_precision_that_is_not_had_is_said(engine, monkeypatch):
    """On a processor without bfloat16, as far as the library's answer goes."""
    backend = OpenVinoBackend(threads=1, precision="bf16")
    compiled = module._compile("tiny", DOUBLE, "f32", 1)
    monkeypatch.setattr(module, "_compile", lambda *given: compiled)
    assert load(backend, DOUBLE).fallbacks == ("stage 'tiny': runs in f32, not in bf16",)


@pytest.mark.parametrize("change", ["strided", "unaligned", "read-only"])
def test_inputs_may_be_strided_unaligned_or_read_only(engine, change):
    x = np.arange(48, dtype=np.float32).reshape(3, 16)[:, ::4]
    if change == "unaligned":
        raw = np.zeros(x.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(3, 4)
        raw[:], x = x, raw
    if change == "read-only":
        x = x.copy()
        x.flags.writeable = False
    assert np.array_equal(load(engine, DOUBLE).run({"x": x})["y"], 2 * x)


def test_only_the_ports_are_fed(engine):
    x = np.ones((1, 4), np.float32)
    assert load(engine, DOUBLE).run({"x": x, "other": x})["y"].tolist() == [[2, 2, 2, 2]]


def test_an_input_that_nothing_uses_may_be_there(engine):
    idle = Port("idle", "float32", ("batch", 4))
    data = graph([helper.make_node("Identity", ["x"], ["y"])], (idle, FLOATS))
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    found = load(engine, data, entry((idle, FLOATS))).run({"x": x, "idle": x + 1})
    assert np.array_equal(found["y"], x)


def test_two_names_of_one_tensor_are_two_outputs(engine):
    other = Port("z", "float32", OUT.shape)
    nodes = [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Identity", ["y"], ["z"])]
    session = load(engine, graph(nodes, outputs=(other, OUT)), entry(outputs=(OUT, other)))
    x = np.array([[-1, 2, -3, 4]], np.float32)
    found = session.run({"x": x})
    assert found["y"].tolist() == found["z"].tolist() == [[0, 2, 0, 4]]


@pytest.mark.parametrize("dtype", ["float16", "int64", "int32", "uint8", "bool"])
def test_ports_of_other_dtypes(engine, dtype):
    """Ports keep their dtype whatever the engine computes in."""
    kinds = {**tiny_bundle._TYPES, "int32": onnx.TensorProto.INT32, "bool": onnx.TensorProto.BOOL}
    ports = [helper.make_tensor_value_info(name, kinds[dtype], ["batch", 4]) for name in ("x", "y")]
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"]),
        helper.make_node("Transpose", ["t"], ["y"]),
    ]
    made = helper.make_model(
        helper.make_graph(nodes, "tiny", ports[:1], ports[1:]),
        opset_imports=[helper.make_opsetid("", tiny_bundle.OPSET)], ir_version=10,
    )  # fmt: skip
    inside, outside = (Port(name, dtype, ("batch", 4)) for name in ("x", "y"))
    session = load(engine, made.SerializeToString(), entry((inside,), (outside,)))
    x = (np.arange(8) % 3).reshape(2, 4).astype(dtype)
    found = session.run({"x": x})["y"]
    assert found.dtype == x.dtype
    assert np.array_equal(found, x)


def test_scalars_and_nothing_at_all(engine):
    total = Port("y", "float32", ())
    session = load(
        engine,
        graph([helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)], outputs=(total,)),
        entry(outputs=(total,)),
    )
    assert session.run({"x": np.ones((3, 4), np.float32)})["y"].tolist() == 12
    empty = load(engine, DOUBLE).run({"x": np.ones((0, 4), np.float32)})["y"]
    assert empty.shape == (0, 4)


def external(names, shift=0):
    """Two products: the graph, its weight files, and the graph with the weights inside."""
    weights = [tiny_bundle.weights(name, 4, 4) for name in ("v", "w")]
    nodes = [
        helper.make_node("MatMul", ["x", "v"], ["z"]),
        helper.make_node("MatMul", ["z", "w"], ["y"]),
    ]
    inside = graph(nodes, weights=weights)
    made = tiny_bundle.model(nodes, (FLOATS,), (OUT,), weights)
    files = {}
    for name in names:
        location = f"{name}.data"
        data = tiny_bundle._external(made, name, location)
        tensor = next(item for item in made.graph.initializer if item.name == name)
        tensor.external_data[1].value = str(shift)
        files[location] = np.frombuffer(bytes(shift) + data, np.uint8).copy()
    return made.SerializeToString(), files, inside


@pytest.mark.parametrize("names", ["vw", "w"])
@pytest.mark.parametrize("shift", [0, 1])
def test_weights_come_from_memory_aligned_or_not(engine, names, shift):
    """The result is that of weights inside; once it is loaded nothing holds the files."""
    data, files, inside = external(names, shift)
    session = load(engine, data, external={name: memoryview(f) for name, f in files.items()})
    x = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    assert np.array_equal(session.run({"x": x})["y"], load(engine, inside).run({"x": x})["y"])
    gone = [weakref.ref(file) for file in files.values()]
    for file in files.values():
        file[:] = 0
    del file
    files.clear()
    gc.collect()
    assert [reference() for reference in gone] == [None] * len(gone)
    assert np.array_equal(session.run({"x": x})["y"], load(engine, inside).run({"x": x})["y"])


def test_no_file_is_written_or_read(engine, tmp_path, monkeypatch):
    """A file of the name that the graph gives lies in wait, with other weights."""
    data, files, inside = external("w")
    (tmp_path / "w.data").write_bytes(bytes(64))
    monkeypatch.chdir(tmp_path)
    session = load(engine, data, external={name: memoryview(f) for name, f in files.items()})
    x = np.ones((1, 4), np.float32)
    assert np.array_equal(session.run({"x": x})["y"], load(engine, inside).run({"x": x})["y"])
    assert [path.name for path in tmp_path.iterdir()] == ["w.data"]


def test_weights_beyond_their_file_are_refused(engine):
    data, files, _ = external("w")
    for short in ({"w.data": memoryview(files["w.data"][:-1])}, {"v.data": memoryview(bytes(64))}):
        with pytest.raises(BundleError, match="tensor 'w': got bytes outside its file") as caught:
            load(engine, data, external=short)
        assert caught.value.code == "E_GRAPH_EXTERNAL"


def test_an_address_in_a_graph_is_no_way_into_memory(engine):
    """OpenVINO would read wherever such a reference points."""
    data, files, _ = external("w")
    made = onnx.load_model_from_string(data)
    made.graph.initializer[1].external_data[0].value = "*/_ORT_MEM_ADDR_/*"
    made.graph.initializer[1].external_data[1].value = str(files["w.data"].ctypes.data)
    with pytest.raises(BundleError, match="got bytes outside its file"):
        load(engine, made.SerializeToString(), external={"w.data": memoryview(files["w.data"])})
    with pytest.raises(BundleError, match="got bytes outside its file"):
        load(engine, made.SerializeToString())


@pytest.mark.parametrize(
    ("arrays", "shown"),
    [
        ({}, "got nothing"),
        ({"x": np.zeros((1, 4))}, r"got float64\[1,4\]"),
        ({"x": np.zeros((1, 5), np.float32)}, r"got float32\[1,5\]"),
        ({"x": np.zeros(4, np.float32)}, r"got float32\[4\]"),
    ],
)
def test_arrays_are_held_to_their_ports(engine, arrays, shown):
    message = f"stage 'tiny', port 'x': {shown}, expected float32"
    with pytest.raises(DataError, match=message) as caught:
        load(engine, DOUBLE).run(arrays)
    assert caught.value.code == "E_PORT"


UNKNOWN_OP = helper.make_model(
    helper.make_graph(
        [helper.make_node("Teleport", ["x"], ["y"])], "g",
        [tiny_bundle.value(FLOATS)], [tiny_bundle.value(OUT)],
    ),
    opset_imports=[helper.make_opsetid("", 20)], ir_version=10,
).SerializeToString()  # fmt: skip
BAD_NAME = DOUBLE.replace(b"Add", b"\xff\xfe\xfd")


@pytest.mark.parametrize(
    "data", [b"", b"no graph at all", DOUBLE[: len(DOUBLE) // 2], UNKNOWN_OP, BAD_NAME]
)
def test_graphs_that_do_not_load_are_one_kind_of_error(engine, data, capfd):
    message = "stage 'tiny': got .*, expected a graph that openvino .* loads on cpu"
    with pytest.raises(BundleError, match=message) as caught:
        load(engine, data)
    assert caught.value.code == "E_GRAPH_LOAD"
    assert "\n" not in str(caught.value)
    assert "core.cpp" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_too_little_memory_to_load_is_another(engine, monkeypatch):
    class Full:
        def read_model(self, data):
            raise RuntimeError("Exception from here\nFailed to allocate 8 bytes of memory\n")

        def compile_model(self, *given):
            raise NotImplementedError

    monkeypatch.setattr(module, "_core", Full)
    with pytest.raises(UnavailableError, match="got RuntimeError 'Failed to alloc") as caught:
        load(engine, DOUBLE)
    assert caught.value.code == "E_MEMORY"


def test_a_graph_with_other_edges_is_refused(engine):
    with pytest.raises(BundleError, match=r"got graph outputs \['y'\], expected \['z'\]") as caught:
        load(engine, DOUBLE, entry(outputs=(Port("z", "float32", OUT.shape),)))
    assert caught.value.code == "E_GRAPH_PORTS"


@pytest.mark.parametrize("width", [2, 8])
def test_a_graph_that_returns_another_shape_is_refused(engine, width):
    """Into a buffer that is too large OpenVINO writes what it has, and says nothing."""
    free, declared = Port("y", "float32", ("batch", "w")), Port("y", "float32", ("batch", width))
    source = Port("x", "float32", ("batch", "w"))
    data = graph([helper.make_node("Add", ["x", "x"], ["y"])], (source,), (free,))
    session = load(engine, data, entry((FLOATS,), (declared,)))
    with pytest.raises(UnavailableError, match=r"for x float32\[1,4\], expected it") as caught:
        session.run({"x": np.ones((1, 4), np.float32)})
    assert caught.value.code == "E_RUN"


@pytest.mark.parametrize("threads", [1, 2])
def test_the_real_engine_runs_out_of_memory_in_known_words(threads, capfd):
    """With one thread OpenVINO's own `infer` would return garbage instead."""
    ports = (Port("x", "float32", (1,)), Port("shape", "int64", (2,)))
    total = Port("y", "float32", ())
    data = graph(
        [
            helper.make_node("Expand", ["x", "shape"], ["big"]),
            helper.make_node("ReduceSum", ["big"], ["y"], keepdims=0),
        ],
        ports, (total,),
    )  # fmt: skip
    session = load(OpenVinoBackend(threads=threads), data, entry(ports, (total,)))
    huge = {"x": np.ones(1, np.float32), "shape": np.array([1 << 20, 1 << 20])}
    with pytest.raises(UnavailableError, match="Failed to allocate") as caught:
        session.run(huge)
    assert caught.value.code == "E_MEMORY"
    assert capfd.readouterr() == ("", "")
    small = {"x": np.ones(1, np.float32), "shape": np.array([3, 5])}
    assert session.run(small)["y"] == 15


def test_threads_may_share_a_session(engine):
    session = load(engine, DOUBLE)

    def run(number):
        x = np.full((1 + number % 3, 4), number, np.float32)
        return np.array_equal(session.run({"x": x})["y"], 2 * x)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(run, range(200)))


def test_settings_are_checked():
    with pytest.raises(UsageError, match="precision: got 'f16', expected f32 or bf16") as caught:
        OpenVinoBackend(precision="f16")
    assert caught.value.code == "E_PRECISION"
    with pytest.raises(UsageError, match="threads: got 0, expected 1 or more"):
        OpenVinoBackend(threads=0)


def test_threads_are_passed_on():
    compiled = load(OpenVinoBackend(threads=1), DOUBLE)._compiled
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 1
    assert compiled.get_property("ENABLE_CPU_PINNING") is False


def test_the_fallback_is_onnx_runtime_on_the_cpu():
    assert OpenVinoBackend(threads=3).fallback() == OnnxRuntimeBackend(threads=3)


def test_an_engine_that_fails_the_self_test_is_left(engine, codec_bundle, monkeypatch):
    right = OpenVinoSession.run

    def wrong(self, arrays):
        return {name: array[..., ::-1].copy() for name, array in right(self, arrays).items()}

    monkeypatch.setattr(OpenVinoSession, "run", wrong)
    receiver = Receiver(codec_bundle, backend=engine)
    _, record = receiver.receive(symbols(), Csi(7.0), seed=0)
    assert record.backend == TRUTH.name
    (reason,) = record.fallbacks
    assert reason.startswith(f"self-test on {engine.name} (cpu): got an image ")


SHARED = [
    helper.make_node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1]),
    helper.make_node("Relu", ["a"], ["b"]),
    helper.make_node("Identity", ["w"], ["again"]),
]


@pytest.mark.parametrize("kernel", ["w", "again"])
def test_a_kernel_of_both_convolutions_runs_in_onnx_runtime(engine, kernel):
    nodes = [*SHARED, helper.make_node("ConvTranspose", ["b", kernel], ["y"], pads=[1, 1, 1, 1])]
    data = graph(nodes, (PLANES,), (TURNED,), [tiny_bundle.weights("w", 4, 4, 3, 3)])
    stage_entry = entry((PLANES,), (TURNED,))
    session = load(engine, data, stage_entry)
    assert isinstance(session, OnnxRuntimeSession)
    (note,) = session.fallbacks
    assert note.startswith(f"stage 'tiny': {TRUTH.name} runs it, since openvino ")
    assert "('w') is the kernel of a Conv and of a ConvTranspose" in note
    x = np.random.default_rng(0).standard_normal((1, 4, 8, 8), np.float32)
    expected = load(TRUTH, data, stage_entry).run({"x": x})["y"]
    assert np.array_equal(session.run({"x": x})["y"], expected)


def test_that_is_still_wrong_in_openvino(engine):
    """When it fails, the detour through ONNX Runtime may go."""
    nodes = [*SHARED, helper.make_node("ConvTranspose", ["b", "w"], ["y"], pads=[1, 1, 1, 1])]
    data = graph(nodes, (PLANES,), (TURNED,), [tiny_bundle.weights("w", 4, 4, 3, 3)])
    stage_entry = entry((PLANES,), (TURNED,))
    x = np.random.default_rng(0).standard_normal((1, 4, 8, 8), np.float32)
    expected = load(TRUTH, data, stage_entry).run({"x": x})["y"]
    compiled = module._compile("tiny", data, "f32", 1)
    found = OpenVinoSession("tiny", stage_entry, (), compiled).run({"x": x})["y"]
    assert np.abs(found - expected).max() > 0.1 * np.abs(expected).max()


def test_kernels_of_their_own_stay(engine):
    nodes = [*SHARED, helper.make_node("ConvTranspose", ["b", "v"], ["y"], pads=[1, 1, 1, 1])]
    weights = [tiny_bundle.weights(name, 4, 4, 3, 3) for name in ("w", "v")]
    data = graph(nodes, (PLANES,), (TURNED,), weights)
    stage_entry = entry((PLANES,), (TURNED,))
    session = load(engine, data, stage_entry)
    assert session.fallbacks == ()
    x = np.random.default_rng(0).standard_normal((1, 4, 8, 8), np.float32)
    expected = load(TRUTH, data, stage_entry).run({"x": x})["y"]
    assert np.abs(session.run({"x": x})["y"] - expected).max() <= 1e-5


def quantised():
    """A convolution as `jscc.calibration.quantize` writes it: symmetric int8, float32 bias."""
    rng = np.random.default_rng(5)
    arrays = {
        "w": rng.integers(-127, 128, (4, 4, 3, 3), np.int8), "steps": np.full(4, 0.01, np.float32),
        "none": np.zeros(4, np.int8), "step": np.float32(0.03), "zero": np.int8(0),
        "bias": rng.standard_normal(4).astype(np.float32),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "step", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "step", "zero"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "steps", "none"], ["v"], axis=0),
        helper.make_node("Conv", ["d", "v", "bias"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("QuantizeLinear", ["c", "step", "zero"], ["p"]),
        helper.make_node("DequantizeLinear", ["p", "step", "zero"], ["y"]),
    ]
    weights = [onnx.numpy_helper.from_array(np.asarray(a), name) for name, a in arrays.items()]
    return graph(nodes, (PLANES,), (TURNED,), weights)


def test_symmetric_int8_comes_out_right(engine):
    """Not so in every graph, see the self-test; in those that this project's calibration writes."""
    stage_entry = entry((PLANES,), (TURNED,))
    x = np.random.default_rng(0).standard_normal((1, 4, 8, 8), np.float32)
    expected = load(TRUTH, quantised(), stage_entry).run({"x": x})["y"]
    found = load(engine, quantised(), stage_entry).run({"x": x})["y"]
    assert np.abs(found - expected).max() <= 0.031  # one step: ties are rounded differently
    assert np.mean(np.square(found - expected)) < 1e-3 * np.mean(np.square(expected))


@pytest.mark.parametrize("cut", [True, False])
def test_integers_go_to_onnxruntime_where_sums_would_be_cut_off(engine, monkeypatch, cut):
    monkeypatch.setattr(module, "cuts_off_sums", lambda: cut)
    session = load(engine, quantised(), entry((PLANES,), (TURNED,)))
    if not cut:
        assert session.fallbacks == ()
        return
    (note,) = session.fallbacks
    assert note.startswith("stage 'tiny': onnxruntime ")
    assert note.endswith(f" {MAY_CUT_OFF}")
    assert session.provider.startswith("onnxruntime ")
    assert not ran_on("openvino", [session.provider])
    assert ran_on("openvino", [session.provider, "cpu"])
    assert load(engine, DOUBLE).fallbacks == ()


def test_a_missing_package_is_named_with_the_command(monkeypatch):
    module._library.cache_clear()
    monkeypatch.setitem(sys.modules, "openvino", None)
    try:
        message = "module 'openvino': got nothing, .*pip install 'jscc-edge\\[openvino\\]'"
        with pytest.raises(UnavailableError, match=message) as caught:
            OpenVinoBackend()
        assert caught.value.code == "E_MODULE"
    finally:
        module._library.cache_clear()


def test_nothing_imports_openvino_before_it_is_asked_for():
    script = (
        "import sys, jscc.runtime.receiver, jscc.runtime.commands.engine\n"
        "import jscc.runtime.backends.openvino as backend\n"
        "assert 'openvino' not in sys.modules\n"
        "backend.OpenVinoBackend()\n"
        "assert 'openvino' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_engines_by_name():
    assert ENGINES == ("onnxruntime", "openvino", "openvino-bf16", "tensorrt")
    assert make_backend(threads=2) == OnnxRuntimeBackend(threads=2)
    assert make_backend("openvino", threads=2) == OpenVinoBackend(threads=2)
    assert make_backend("openvino-bf16") == OpenVinoBackend(precision="bf16")
    with pytest.raises(UsageError, match="engine: got 'tvm', expected one of onnxrunt") as caught:
        make_backend("tvm")
    assert caught.value.code == "E_ENGINE"
    with pytest.raises(UsageError, match="providers: got cuda for openvino, expected") as caught:
        make_backend("openvino", providers=("cuda",))
    assert caught.value.code == "E_PROVIDER"


def test_backends_are_data(engine):
    assert dataclasses.replace(engine, precision="bf16") == OpenVinoBackend(1, "bf16")


def test_copies_of_inputs_live_until_the_run_is_over(engine):
    """Two large arrays that have to be copied: once freed, their memory is given back at once."""
    ports = (Port("x", "float32", ("rows", "width")), Port("y", "float32", ("rows", "width")))
    out = Port("out", "float32", ("rows", "width"))
    data = graph([helper.make_node("Sub", ["x", "y"], ["out"])], ports, (out,))
    session = load(engine, data, entry(ports, (out,)))
    for change in (_read_only, lambda array: np.repeat(array, 2, axis=1)[:, ::2]):
        for rows in (3000, 100_000):
            x, y = (change(np.full((rows, 4), value, np.float32)) for value in (5, 2))
            np.testing.assert_array_equal(session.run({"x": x, "y": y})["out"], 3)


def _read_only(array):
    array.flags.writeable = False
    return array

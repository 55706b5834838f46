"""TensorRT backend against fakes: what comes out is ONNX Runtime's, or is explained."""

import dataclasses
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from onnx import helper

import tiny_bundle
from fake_cuda import Status
from fake_tensorrt import WORDS, FakeTensorRt, install, make_device
from jscc.runtime.backends.engines import make_backend
from jscc.runtime.backends.onnxruntime import OnnxRuntimeBackend, OnnxRuntimeSession
from jscc.runtime.backends.tensorrt import TensorRtBackend
from jscc.runtime.csi import Csi
from jscc.runtime.errors import BundleError, DataError, StorageError, UnavailableError, UsageError
from jscc.runtime.manifest import StageEntry
from jscc.runtime.ports import Port, resolve
from jscc.runtime.program import load_program
from jscc.runtime.receiver import Receiver
from jscc.runtime.tensorrt import library as tensorrt_library
from jscc.runtime.tensorrt.cache import MOST, EngineCache
from jscc.runtime.tensorrt.engine import load_engine
from jscc.runtime.tensorrt.session import MOST_SHORT
from tiny_bundle import model

TRUTH = OnnxRuntimeBackend(threads=1)
FLOATS, OUT = (Port(name, "float32", ("batch", 4)) for name in "xy")
BETWEEN = "what lies between the stages stays on the host: stage 'decode' runs on the CPU"
VERSIONS = ("10.3.0", "10.13.2", "11.4.1", "rtx")


@pytest.fixture
def cuda(later_host):
    return make_device(later_host)


@pytest.fixture(params=["10.3.0"])
def library(request, cuda, monkeypatch):
    rtx = request.param == "rtx"
    fake = FakeTensorRt(cuda, "1.7.1.116" if rtx else request.param, rtx=rtx)
    install(monkeypatch, fake, cuda)
    yield fake
    tensorrt_library.load_library.cache_clear()


@pytest.fixture
def backend(library, tmp_path):
    said = []
    made = TensorRtBackend(threads=1, folder=tmp_path / "engines", tell=said.append)
    object.__setattr__(made, "said", said)
    return made


def entry(inputs=(FLOATS,), outputs=(OUT,)):
    return StageEntry("graphs/tiny.onnx", tiny_bundle.OPSET, False, inputs, outputs)


def graph(nodes, inputs=(FLOATS,), outputs=(OUT,), weights=()):
    return model(nodes, inputs, outputs, weights).SerializeToString()


DOUBLE = graph([helper.make_node("Add", ["x", "x"], ["y"])])
ONES = {"x": np.ones((1, 4), np.float32)}


def load(backend, data=DOUBLE, stage_entry=None):
    return backend.load("tiny", stage_entry or entry(), data, {})


def files(backend):
    """But for the timings that every build leaves."""
    return sorted(path.name for path in backend.folder.glob("*") if path.suffix != ".timings")


def symbols(rows=8, columns=12):
    parts = np.random.default_rng(0).standard_normal((2, 2, rows, columns)) * np.sqrt(0.5)
    return (parts[0] + 1j * parts[1]).astype(np.complex64)


@pytest.mark.parametrize("library", VERSIONS, indirect=True)
@pytest.mark.parametrize("name", ["codec", "diffusion"])
def test_stages_agree_with_onnx_runtime_at_any_size(backend, shared_bundles, name):
    """External weights, several inputs, growing and shrinking sizes."""
    bundle = shared_bundles[name]
    rng = np.random.default_rng(1)
    for stage, stage_entry in bundle.manifest.stages.items():
        given = (stage, stage_entry, bundle.graph(stage), bundle.external(stage))
        session = backend.load(*given)
        for size in ((1, 16, 24), (2, 32, 8), (1, 16, 24)):
            sizes = dict(zip(("batch", "height", "width"), size, strict=True))
            shapes = {port.name: resolve(port, sizes) for port in stage_entry.inputs}
            arrays = {key: rng.standard_normal(shape, np.float32) for key, shape in shapes.items()}
            expected, found = TRUTH.load(*given).run(arrays), session.run(arrays)
            for port in stage_entry.outputs:
                assert found[port.name].shape == expected[port.name].shape
                assert np.abs(found[port.name] - expected[port.name]).max() <= 1e-5


@pytest.mark.parametrize("library", VERSIONS, indirect=True)
def test_a_bundle_is_received_alike_and_the_record_says_by_what(backend, library, codec_bundle):
    images = []
    for each in (TRUTH, backend):
        image, record = Receiver(codec_bundle, backend=each).receive(symbols(), Csi(7.0), seed=0)
        images.append(image.astype(int))
    assert np.abs(images[0] - images[1]).max() <= 1
    name = "tensorrt_rtx" if library.rtx else "tensorrt"
    assert record.backend == f"{name} {library.__version__}"
    assert record.providers == {"decode": "cuda"}
    assert record.fallbacks == ()


@pytest.mark.parametrize(
    ("version", "flags", "targets"),
    [("10.3.0", 2, None), ("11.4.1", 2, None), ("rtx", 2, "SM89")],
)
def test_what_is_asked_of_each_version(cuda, monkeypatch, tmp_path, version, flags, targets):
    fake = FakeTensorRt(cuda, "1.7" if version == "rtx" else version, rtx=version == "rtx")
    install(monkeypatch, fake, cuda)
    load(TensorRtBackend(folder=tmp_path / "engines")).run(ONES)
    load(TensorRtBackend(folder=tmp_path / "engines", tf32=True)).run(ONES)
    assert [told["tf32"] for told in fake.told] == [False, True]
    assert fake.told[0]["flags"] == flags  # strongly typed
    assert fake.told[0]["target"] == targets
    assert fake.told[0]["profiles"] == [{"x": [[1, 4]] * 3}]
    assert fake.told[0]["timings"] == (None if version == "rtx" else "")


def test_a_library_without_the_flag_is_strongly_typed_anyway(cuda, monkeypatch, tmp_path):
    fake = FakeTensorRt(cuda, "12.0.0", strong_flag=False)
    install(monkeypatch, fake, cuda)
    load(TensorRtBackend(folder=tmp_path / "engines")).run(ONES)
    assert fake.told[0]["flags"] == 0


def test_an_engine_is_built_once_and_kept(backend, library):
    session = load(backend)
    for rows in (1, 3, 1, 3):
        x = np.full((rows, 4), rows, np.float32)
        assert np.array_equal(session.run({"x": x})["y"], 2 * x)
    assert len(library.told) == 2
    assert library.told[1]["timings"] == "timed "  # what the first build measured
    again = load(backend)
    assert np.array_equal(again.run(ONES)["y"], 2 * ONES["x"])
    assert again.fallbacks == ()
    assert len(library.told) == 2
    again.run({"x": np.ones((7, 4), np.float32)})
    assert library.told[2]["timings"].startswith("timed ")  # kept for later sessions, too
    assert backend.folder.stat().st_mode & 0o777 == 0o700
    assert len(files(backend)) == 3


def test_building_is_announced(backend):
    load(backend).run(ONES)
    assert backend.said[0] == "stage 'tiny': building an engine for batch 1 …"
    assert "done in" in backend.said[-1]


@pytest.mark.parametrize("change", ["graph", "tf32", "version", "device"])
def test_what_an_engine_depends_on_gives_another(backend, library, cuda, monkeypatch, change):
    load(backend).run(ONES)
    data = DOUBLE
    if change == "graph":
        data = graph([helper.make_node("Sum", ["x", "x"], ["y"])])
    elif change == "tf32":
        backend = dataclasses.replace(backend, tf32=True)
    elif change == "version":
        monkeypatch.setattr(library, "__version__", "10.4.0")
    else:
        cuda.driver.capability = (8, 6)
        install(monkeypatch, library, cuda)
    session = load(backend, data)
    assert session.fallbacks == ()
    session.run(ONES)
    assert len(library.told) == 2


def damaged(path, how):
    data = path.read_bytes()
    if how == "truncated":
        path.write_bytes(data[:-7])
    elif how == "a bit":
        path.write_bytes(data[:-7] + bytes([data[-7] ^ 1]) + data[-6:])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "another's":
        path.write_bytes(data.replace(b'"tf32": false', b'"tf32": true'))
    else:
        path.unlink()
        path.symlink_to("/dev/zero")


@pytest.mark.parametrize(
    ("how", "code"),
    [
        ("truncated", "HASH"),
        ("a bit", "HASH"),
        ("empty", "FORMAT"),
        ("another's", "KEY"),
    ],
)
def test_a_damaged_engine_is_built_again_and_that_is_said(backend, library, how, code):
    load(backend).run(ONES)
    (path,) = backend.folder.glob("*.engine")
    damaged(path, how)
    session = load(backend)
    assert np.array_equal(session.run(ONES)["y"], 2 * ONES["x"])
    (note,) = session.fallbacks
    assert note.startswith("stage 'tiny': an engine is built again, since ")
    assert note.endswith(f"[E_ENGINE_{code}]")
    assert len(library.told) == 2
    assert ran_again(backend) == ()


def ran_again(backend):
    """What another session falls back on."""
    session = load(backend)
    assert np.array_equal(session.run(ONES)["y"], 2 * ONES["x"])
    return session.fallbacks


def test_a_link_is_neither_followed_nor_removed(backend, library):
    load(backend).run(ONES)
    (path,) = backend.folder.glob("*.engine")
    damaged(path, "a link")
    unused, unkept = ran_again(backend)
    assert unused.startswith("stage 'tiny': kept engines are not used, since ")
    assert unused.endswith("[E_ENGINE_FILETYPE]")
    assert "its engine is not kept" in unkept
    assert path.is_symlink()
    assert len(library.told) == 2


@pytest.mark.parametrize(
    ("reason", "code"),
    [("folder", "E_ENGINE_MODE"), ("io", "E_IO"), ("host", "E_MEMORY"), ("device", "E_MEMORY")],
)
def test_what_is_not_an_engine_s_fault_leaves_its_file(backend, library, monkeypatch, reason, code):
    """It is used again when the reason is gone."""
    load(backend).run(ONES)
    ((name, before),) = contents(backend).items()
    session = load(backend)
    with monkeypatch.context() as patch:
        if reason == "folder":
            backend.folder.chmod(0o755)
        elif reason == "device":
            library.faults["load"] = [WORDS["memory"]] * 2
        else:
            error = StorageError if reason == "io" else UnavailableError

            def fail(*given, **named):
                raise error(code, "engine: got a fault, expected none.")

            patch.setattr("jscc.runtime.tensorrt.cache._checked", fail)
        if reason == "io":
            library.faults["build"] = [WORDS["tactic"]]  # what is there is not written anew
        assert np.array_equal(session.run(ONES)["y"], 2 * ONES["x"])
    assert any(note.endswith(f"[{code}]") for note in session.fallbacks)
    assert contents(backend) == {name: before}
    backend.folder.chmod(0o700)
    built = len(library.told)
    assert ran_again(backend) == ()
    assert len(library.told) == built


def contents(backend):
    return {path.name: path.read_bytes() for path in backend.folder.glob("*.engine")}


@pytest.mark.parametrize("words", ["version", "device", "plan"])
def test_an_engine_that_the_library_refuses_is_built_again(backend, library, words):
    load(backend).run(ONES)
    library.faults["load"] = [WORDS[words]]
    session = load(backend)
    assert session.fallbacks == ()  # nothing is loaded before it is used
    session.run(ONES)
    (note,) = session.fallbacks
    assert WORDS[words][:80] in note
    assert len(library.told) == 2
    assert ran_again(backend) == ()


def test_an_engine_that_crashed_the_library_is_not_loaded_again(backend, library, tmp_path):
    load(backend).run(ONES)
    (name,) = files(backend)
    script = (
        "import os, sys\nfrom pathlib import Path\n"
        "from jscc.runtime.tensorrt.cache import EngineCache\n"
        "with EngineCache(Path(sys.argv[1])).loading(sys.argv[2]):\n    os._exit(139)\n"
    )
    command = [sys.executable, "-c", script, backend.folder, name]
    assert subprocess.run(command, check=False).returncode == 139
    for _ in range(2):  # and at every start after that
        session = load(backend)
        assert np.array_equal(session.run(ONES)["y"], 2 * ONES["x"])
        assert session.provider == "cpu"
        (note,) = session.fallbacks
        assert note.startswith("stage 'tiny' runs on the CPU: engine ")
        assert "ended by loading it, expected one that loads." in note
        assert note.endswith("or run jscc build --force. [E_ENGINE_CRASH]")
        engine, tombstone = files(backend)
        assert engine == name
        assert re.fullmatch(rf"{name}\.[0-9]+-[0-9a-f]+-0\.loading\.ended", tombstone)
    assert (len(library.told), library.loaded) == (1, 1)
    other = load(backend, graph([helper.make_node("Sum", ["x", "x"], ["y"])]))
    assert other.fallbacks == ()


def test_a_trace_lies_beside_an_engine_while_it_is_loaded(backend, monkeypatch):
    load(backend).run(ONES)
    (name,) = files(backend)
    seen = []

    def watched(*given):
        seen.append(files(backend))
        return load_engine(*given)

    monkeypatch.setattr("jscc.runtime.tensorrt.supply.load_engine", watched)
    load(backend).run(ONES)
    backend.folder.joinpath(name).unlink()
    load(backend).run(ONES)  # one that was just built may crash the library just as well
    assert [engine for engine, _ in seen] == [name] * 2
    for _, trace in seen:
        assert re.fullmatch(rf"{name}\.{os.getpid()}-[0-9a-f]+-[0-9]+\.loading", trace)
    assert files(backend) == [name]


def test_threads_that_load_one_engine_have_a_trace_each(backend):
    """The one that is done first does not take the other's."""
    load(backend).run(ONES)
    (name,) = files(backend)
    cache = EngineCache(backend.folder)
    with cache.loading(name):
        with cache.loading(name):
            assert len(files(backend)) == 3
        assert len(files(backend)) == 2


def test_a_load_of_this_process_is_no_crash(backend):
    load(backend).run(ONES)
    (name,) = files(backend)
    with EngineCache(backend.folder).loading(name):
        assert ran_again(backend) == ()


def test_a_folder_that_others_may_write_to_is_not_used(backend, library):
    load(backend).run(ONES)
    backend.folder.chmod(0o777)
    session = load(backend)
    (note,) = session.fallbacks
    assert "got mode 0777, expected 0700" in note
    assert note.endswith("Run chmod 700 on it, or choose another. [E_ENGINE_MODE]")
    session.run(ONES)
    assert "its engine is not kept: folder " in session.fallbacks[-1]
    assert backend.said[-1] == session.fallbacks[-1]


def test_an_engine_of_another_user_is_not_used(backend, library, monkeypatch):
    load(backend).run(ONES)
    monkeypatch.setattr("jscc.runtime.tensorrt.cache.os.geteuid", lambda: 4711)
    (note,) = load(backend).fallbacks
    assert note.endswith(
        "expected user 4711, this one. Delete it; it is built again. [E_ENGINE_OWNER]"
    )


def test_what_an_interrupted_writer_left_goes_after_a_while(backend):
    load(backend).run(ONES)
    for name, age_s in ((".old.engine.0123.tmp", 7200), (".new.engine.0123.tmp", 60)):
        path = backend.folder / name
        path.write_bytes(b"half")
        written = path.stat().st_mtime - age_s
        os.utime(path, (written, written))
    load(backend).run({"x": np.ones((2, 4), np.float32)})
    assert [name for name in files(backend) if name.startswith(".")] == [".new.engine.0123.tmp"]


def test_weights_that_a_killed_build_left_go_before_the_next(backend, library):
    """A build that is killed each time would fill the disk with them."""
    load(backend).run(ONES)
    left = backend.folder / ".weights-0123.tmp"
    left.mkdir()
    (left / "graph.data").write_bytes(b"half")
    os.utime(left, (0, 0))
    there = []
    library.building = lambda: there.append(left.exists())
    load(backend).run({"x": np.ones((2, 4), np.float32)})
    assert there == [False]


def test_a_full_disk_costs_the_cache_only(backend, library, monkeypatch):
    def full(path, data, *, force):
        raise UnavailableError("E_DISK_FULL", "output: got 0 bytes free, expected room for 9.")

    monkeypatch.setattr("jscc.runtime.tensorrt.cache.write_file", full)
    session = load(backend)
    assert np.array_equal(session.run(ONES)["y"], 2 * ONES["x"])
    (note,) = session.fallbacks
    assert note.startswith("stage 'tiny': its engine is not kept: output: got 0 bytes free, ")
    assert note.endswith("expected room for 9. [E_DISK_FULL]")


def test_no_cuda_is_one_line_and_the_cpu_goes_on(cuda, library, tmp_path, codec_bundle):
    cuda.driver.status = Status.CUDA_ERROR_NO_DEVICE
    backend = TensorRtBackend(threads=1, folder=tmp_path / "engines")
    receiver = Receiver(codec_bundle, backend=backend)
    image, record = receiver.receive(symbols(), Csi(7.0), seed=0)
    truth, _ = Receiver(codec_bundle, backend=TRUTH).receive(symbols(), Csi(7.0), seed=0)
    assert np.array_equal(image, truth)
    assert record.backend == TRUTH.name
    assert record.providers == {"decode": "cpu"}
    assert record.fallbacks == (
        "the CPU takes TensorRT's place: cuInit: got CUDA_ERROR_NO_DEVICE, "
        "expected a CUDA device and its driver. Install NVIDIA's driver, or receive on the CPU. "
        "[E_CUDA]",
    )


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("library", "module 'tensorrt' or 'tensorrt_rtx': got nothing, expected it installed. "),
        ("cuda", "module 'cuda.bindings': got nothing, expected it installed. Run: pip install "),
        ("device", "cuDeviceGetCount: got 0 devices, expected a CUDA device"),
    ],
)
def test_what_is_missing_is_named(cuda, monkeypatch, tmp_path, missing, words):
    cuda.driver.devices = 0
    library = None if missing == "library" else FakeTensorRt(cuda)
    install(monkeypatch, library, None if missing == "cuda" else cuda)
    backend = TensorRtBackend(threads=1, folder=tmp_path / "engines")
    session = load(backend)
    assert isinstance(session, OnnxRuntimeSession)
    (note,) = session.fallbacks
    assert note.startswith(f"the CPU takes TensorRT's place: {words}")
    assert backend.name == TRUTH.name


def test_what_goes_for_all_stages_is_said_once(cuda, library, tmp_path, diffusion_bundle):
    cuda.driver.status = Status.CUDA_ERROR_NO_DEVICE
    backend = TensorRtBackend(threads=1, folder=tmp_path / "engines")
    program = load_program(diffusion_bundle, backend)
    assert len(program.stages) > 1
    (note,) = program.fallbacks
    assert note.startswith("the CPU takes TensorRT's place: ")


def test_a_library_that_does_not_load_is_told_from_none(monkeypatch, tmp_path, cuda):
    def broken(name):
        raise ImportError("libnvinfer.so.10: cannot open shared object file")

    monkeypatch.setattr(tensorrt_library.importlib, "import_module", broken)
    tensorrt_library.load_library.cache_clear()
    with pytest.raises(UnavailableError, match="got ImportError 'libnvinfer.so.10: ") as caught:
        tensorrt_library.load_library()
    assert caught.value.code == "E_MODULE"
    tensorrt_library.load_library.cache_clear()


def test_a_refused_node_leaves_the_receiver_on_the_cpu(backend, library, codec_bundle):
    library.refused = ("Sigmoid",)
    receiver = Receiver(codec_bundle, backend=backend)
    _, record = receiver.receive(symbols(), Csi(7.0), seed=0)
    assert record.providers == {"decode": "cpu"}
    reason, between = record.fallbacks
    assert between == BETWEEN
    assert reason.startswith("stage 'decode' runs on the CPU: stage 'decode', node ")
    assert "(Sigmoid): got \"This version of TensorRT doesn't support" in reason


def test_an_engine_that_fails_the_self_test_is_left(backend, codec_bundle, monkeypatch):
    from jscc.runtime.tensorrt.session import TensorRtSession

    right = TensorRtSession.run

    def wrong(self, arrays):
        return {name: array[..., ::-1].copy() for name, array in right(self, arrays).items()}

    monkeypatch.setattr(TensorRtSession, "run", wrong)
    monkeypatch.setattr(TensorRtSession, "reason_for_host", lambda self, sizes: "of this test")
    receiver = Receiver(codec_bundle, backend=backend)
    _, record = receiver.receive(symbols(), Csi(7.0), seed=0)
    assert record.backend == TRUTH.name
    (reason,) = record.fallbacks
    assert reason.startswith("self-test on tensorrt 10.3.0 (cuda): got an image ")


def test_memory_that_is_short_once_is_given_back_and_the_run_repeated(backend, library, cuda):
    session = load(backend)
    session.run({"x": np.ones((4, 4), np.float32)})  # leaves 128 bytes on the device
    cuda.driver.memory = 200
    x = np.full((6, 4), 3, np.float32)
    assert np.array_equal(session.run({"x": x})["y"], 2 * x)
    library.faults["run"] = [WORDS["memory"]]
    assert np.array_equal(session.run({"x": x})["y"], 2 * x)


@pytest.mark.parametrize("kind", ["malloc", "run", "context"])
def test_memory_that_stays_short_leaves_a_run_to_the_cpu(backend, library, cuda, kind):
    """The next run fits; after several in a row the device is not asked again for that size."""
    session = load(backend)
    session.run(ONES)
    session._shelf.loaded[0].shrink()
    if kind == "malloc":
        cuda.driver.memory = 20
    else:
        library.faults[kind] = [WORDS["memory"]] * 2
    for _ in range(3):
        assert np.array_equal(session.run(ONES)["y"], 2 * ONES["x"])
        assert session.provider == "cuda, cpu"
        (note,) = session.fallbacks
        assert note.startswith("stage 'tiny' left a run to the CPU: ")
        assert note.endswith("[E_MEMORY]")
        assert (cuda.driver.blocks, cuda.driver.streams) == ({}, {})
        cuda.driver.memory, memory = 1 << 20, cuda.driver.memory
        assert np.array_equal(session.run(ONES)["y"], 2 * ONES["x"])
        assert (len(cuda.driver.blocks), len(cuda.driver.streams)) == (2, 1)
        session._shelf.loaded[0].shrink()
        cuda.driver.memory = memory
        library.faults[kind] = [WORDS["memory"]] * 2 if kind != "malloc" else []
    assert len(library.told) == 1


def test_memory_that_is_short_run_after_run_leaves_the_size_to_the_cpu(backend, library, cuda):
    session = load(backend)
    session.run(ONES)
    session._shelf.loaded[0].shrink()
    cuda.driver.memory = 20
    for _ in range(MOST_SHORT):
        assert np.array_equal(session.run(ONES)["y"], 2 * ONES["x"])
    assert session.fallbacks[-1].startswith("stage 'tiny' runs on the CPU for batch 1: cuMemAlloc")
    cuda.driver.memory = 1 << 20
    session.run(ONES)
    assert cuda.driver.blocks == {}
    session.run({"x": np.ones((1, 4), np.float32)[[0, 0]]})  # another size is
    assert len(cuda.driver.blocks) == 2


def test_any_other_failure_is_e_run(backend, library, cuda):
    session = load(backend)
    session.run(ONES)
    library.faults["run"] = [
        "IExecutionContext::enqueueV3: Error Code 1: Cuda Runtime (misaligned)"
    ]
    message = r"stage 'tiny' in tensorrt 10.3.0 on NVIDIA Fake: got 'IExec.* for x float32\[1,4\]"
    with pytest.raises(UnavailableError, match=message) as caught:
        session.run(ONES)
    assert caught.value.code == "E_RUN"
    assert np.array_equal(session.run(ONES)["y"], 2 * ONES["x"])


def test_a_device_that_fails_once_is_e_run(backend, cuda):
    session = load(backend)
    session.run(ONES)
    message = "on NVIDIA Fake: got cuMemcpyHtoDAsync CUDA_ERROR_ILLEGAL_ADDRESS for x "
    cuda.driver.failures["cuMemcpyHtoDAsync"] = Status.CUDA_ERROR_ILLEGAL_ADDRESS
    with pytest.raises(UnavailableError, match=message) as caught:
        session.run(ONES)
    assert caught.value.code == "E_RUN"
    assert np.array_equal(session.run(ONES)["y"], 2 * ONES["x"])
    assert (session.provider, session.fallbacks) == ("cuda", ())


@pytest.mark.parametrize("when", ["run", "load", "build"])
def test_a_device_that_is_lost_leaves_everything_to_the_cpu(backend, library, cuda, when):
    """Every later call fails then; what is kept is not taken for damaged."""
    load(backend).run(ONES)
    (name,) = files(backend)
    session = load(backend)
    if when == "run":
        session.run(ONES)
    x = np.ones((2 if when == "build" else 1, 4), np.float32)
    library.faults = {"load": [WORDS["plan"]] * 9, "build": [WORDS["tactic"]] * 9}
    cuda.driver.status = Status.CUDA_ERROR_ILLEGAL_ADDRESS
    for _ in range(3):
        assert np.array_equal(session.run({"x": x})["y"], 2 * x)
        (note,) = session.fallbacks
    assert note == (
        "stage 'tiny' runs on the CPU: device 'NVIDIA Fake': got CUDA_ERROR_ILLEGAL_ADDRESS, "
        "expected it to go on. Start the program again, and receive on the CPU if it stays. "
        "[E_CUDA]"
    )
    assert files(backend) == [name]
    built = len(library.told)
    session.run({"x": np.ones((7, 4), np.float32)})
    assert len(library.told) == built


@pytest.mark.parametrize(
    ("kind", "words", "said", "code"),
    [
        ("build", "compiler", "got 'IBuilder::buildSerial", "E_ENGINE_BUILD"),
        ("build", "tactic", "got 'IBuilder::buildSerial", "E_ENGINE_BUILD"),
        ("build", "memory", "to build it. Close other programs", "E_MEMORY"),
        ("builder", "cuda", "got 'CUDA initialization failure with", "E_ENGINE_BUILD"),
        ("load", "device", "from an engine just built", "E_ENGINE_LOAD"),
        ("load", "memory", "from its engine, expected enough memory", "E_MEMORY"),
    ],
)
def test_a_size_without_an_engine_runs_on_the_cpu_from_then_on(
    backend, library, kind, words, said, code
):
    """Other sizes get theirs; the library is not asked for that one again."""
    library.faults[kind] = [WORDS[words]] * (2 if (kind, words) == ("load", "memory") else 1)
    session = load(backend)
    for _ in range(2):
        assert np.array_equal(session.run(ONES)["y"], 2 * ONES["x"])
        assert session.provider == "cpu"
        (note,) = session.fallbacks
    assert note.startswith("stage 'tiny' runs on the CPU for batch 1: stage 'tiny'")
    assert said in note
    assert note.endswith(f"[{code}]")
    assert "\n" not in note
    tried = len(library.told)
    x = np.full((3, 4), 3, np.float32)
    assert np.array_equal(session.run({"x": x})["y"], 2 * x)
    assert session.provider == "cuda, cpu"
    assert len(library.told) == tried + 1


@pytest.mark.parametrize("kind", ["build", "load"])
def test_a_batch_with_too_little_memory_is_left_to_the_receiver(backend, library, kind):
    """Its images may fit one by one; that it does not fit is not tried again."""
    library.faults[kind] = [WORDS["memory"]] * 2
    session, x = load(backend), np.ones((4, 4), np.float32)
    for _ in range(2):
        with pytest.raises(UnavailableError, match="expected enough memory") as caught:
            session.run({"x": x})
        assert caught.value.code == "E_MEMORY"
        library.faults[kind] = []
    session.run(ONES)
    assert session.provider == "cuda"
    (note,) = session.fallbacks
    assert note.startswith("stage 'tiny' has no engine for batch 4: ")


def test_an_engine_that_does_not_load_once_built_is_not_left_there(backend, library):
    library.faults["load"] = [WORDS["device"]]
    load(backend).run(ONES)
    assert files(backend) == []


@pytest.mark.parametrize("kind", ["builder", "runtime"])
@pytest.mark.parametrize("kept", [False, True])
def test_a_library_that_cuda_fails_under_is_in_the_record(
    backend, library, codec_bundle, kind, kept
):
    """The bindings raise a TypeError then; the CPU receives, what is kept stays."""
    if kept:
        Receiver(codec_bundle, backend=backend).receive(symbols(), Csi(7.0), seed=0)
    before = files(backend)
    library.faults[kind] = [WORDS["cuda"]] * 9
    receiver = Receiver(codec_bundle, backend=backend)
    image, record = receiver.receive(symbols(), Csi(7.0), seed=0)
    assert set(before) <= set(files(backend))
    if kept and kind == "builder":  # nothing is to be built
        assert (record.providers, record.fallbacks) == ({"decode": "cuda"}, ())
        return
    truth, _ = Receiver(codec_bundle, backend=TRUTH).receive(symbols(), Csi(7.0), seed=0)
    assert np.array_equal(image, truth)
    assert record.providers == {"decode": "cpu"}
    note = record.fallbacks[0]
    assert note.startswith("stage 'decode' runs on the CPU")
    assert "got 'CUDA initialization failure with error: 35. Please" in note


def test_a_note_that_comes_late_reaches_the_record(backend, library, codec_bundle):
    receiver = Receiver(codec_bundle, backend=backend)
    assert receiver.receive(symbols(), Csi(7.0), seed=0)[1].fallbacks == ()
    library.faults["build"] = [WORDS["tactic"]]
    _, record = receiver.receive(symbols(4, 6), Csi(7.0), seed=0)
    note, between = record.fallbacks
    assert between == BETWEEN
    assert note.startswith("stage 'decode' runs on the CPU for batch 1, height 16, width 24: ")
    assert record.providers == {"decode": "cuda, cpu"}


def test_a_build_keeps_only_its_own_size_waiting(backend, library):
    """Another size runs in the middle of it; the same size is built once."""
    session = load(backend)
    session.run(ONES)
    x = np.full((5, 4), 5, np.float32)
    ran = []

    def run():
        return session.run({"x": x})["y"]

    with ThreadPoolExecutor(4) as pool:

        def meanwhile():
            ran.append(pool.submit(session.run, ONES).result(timeout=60)["y"])

        library.building = meanwhile
        found = list(pool.map(lambda _: run(), range(3)))
    assert np.array_equal(ran[0], 2 * ONES["x"])
    assert all(np.array_equal(each, 2 * x) for each in found)
    assert len(library.told) == 2


def test_engines_are_loaded_when_they_are_used(backend, library):
    for rows in (1, 2, 3):
        load(backend).run({"x": np.ones((rows, 4), np.float32)})
    assert library.loaded == 3
    session = load(backend)
    assert library.loaded == 3
    session.run(ONES)
    session.run(ONES)
    assert library.loaded == 4
    assert len(session._shelf.loaded) == 1


def test_the_least_recently_used_engines_go_where_the_device_is_full(backend, library, cuda):
    """Those in memory first, one by one; their files stay, and load again."""
    session = load(backend)
    for rows in (1, 2, 3, 1):
        session.run({"x": np.ones((rows, 4), np.float32)})
    library.faults["run"] = [WORDS["memory"]] * 2  # as it is, and without what is idle
    session.run({"x": np.ones((3, 4), np.float32)})
    batches = [engine.spans[0].values("batch")[0] for engine in session._shelf.loaded]
    assert sorted(batches) == [1, 3]
    assert len(files(backend)) == len(library.told) == 3
    library.faults["run"] = [WORDS["memory"]] * 9
    session.run(ONES)
    assert session.fallbacks[-1].startswith("stage 'tiny' left a run to the CPU: ")
    assert len(session._shelf.loaded) == 1
    library.faults["run"] = []
    session.run({"x": np.ones((2, 4), np.float32)})
    assert len(library.told) == 3


def test_engines_go_for_one_that_is_loaded_or_built(backend, library):
    session = load(backend)
    for kind, rows in (("load", 2), ("build", 3)):
        session.run(ONES)
        library.faults[kind] = [WORDS["memory"]] * (2 if kind == "load" else 1)
        session.run({"x": np.ones((rows, 4), np.float32)})
        assert len(session._shelf.loaded) == 1
    assert session.fallbacks == ()


def test_an_engine_for_one_size_makes_room_for_another(backend, library):
    """As many as `MOST` stay, in memory and on the disk: those that were used last."""
    session = load(backend)
    sizes = [*range(1, MOST + 1), 1, MOST + 1]
    for rows in sizes:
        session.run({"x": np.ones((rows, 4), np.float32)})
    batches = {engine.spans[0].values("batch")[0] for engine in session._shelf.loaded}
    assert batches == {*range(3, MOST + 2), 1}
    assert len(files(backend)) == MOST
    built = len(library.told)
    session.run({"x": np.ones((2, 4), np.float32)})
    assert len(library.told) in (built, built + 1)
    assert session.fallbacks == ()


def test_engines_of_the_library_s_other_versions_go(backend, library, monkeypatch):
    load(backend).run(ONES)
    (old,) = files(backend)
    monkeypatch.setattr(library, "__version__", "10.4.0")
    load(backend).run(ONES)
    (new,) = files(backend)
    assert new != old


def test_engines_of_other_devices_and_libraries_stay(backend, library, cuda, monkeypatch):
    load(backend).run(ONES)
    cuda.driver.capability = (8, 6)
    install(monkeypatch, library, cuda)
    monkeypatch.setattr(library, "__version__", "10.4.0")
    load(backend).run(ONES)
    rtx = FakeTensorRt(cuda, "1.7.1.116", rtx=True)
    install(monkeypatch, rtx, cuda)
    load(backend).run(ONES)
    assert len(files(backend)) == 3


def test_a_graph_with_other_edges_is_refused(backend):
    other = entry(outputs=(Port("z", "float32", OUT.shape),))
    with pytest.raises(BundleError, match="got graph outputs y FLOAT, expected z FLOAT") as caught:
        load(backend, DOUBLE, other).run(ONES)
    assert caught.value.code == "E_GRAPH_PORTS"


def test_a_graph_that_returns_another_shape_is_refused(backend):
    free, declared = Port("y", "float32", ("batch", "w")), Port("y", "float32", ("batch", 8))
    source = Port("x", "float32", ("batch", "w"))
    data = graph([helper.make_node("Add", ["x", "x"], ["y"])], (source,), (free,))
    with pytest.raises(UnavailableError, match=r"got y of shape \[1, 4\], not \[1, 8\]") as caught:
        load(backend, data, entry((FLOATS,), (declared,))).run(ONES)
    assert caught.value.code == "E_RUN"


def test_arrays_are_held_to_their_ports(backend):
    with pytest.raises(DataError, match=r"stage 'tiny', port 'x': got float64\[1,4\]") as caught:
        load(backend).run({"x": np.zeros((1, 4))})
    assert caught.value.code == "E_PORT"


@pytest.mark.parametrize("dtype", ["float16", "int64", "uint8"])
def test_other_dtypes_cross(backend, dtype):
    ports = Port("x", dtype, ("batch", 4)), Port("y", dtype, ("batch", 4))
    data = graph([helper.make_node("Identity", ["x"], ["y"])], (ports[0],), (ports[1],))
    x = np.arange(8).reshape(2, 4).astype(dtype)
    found = load(backend, data, entry((ports[0],), (ports[1],))).run({"x": x[:, ::-1]})["y"]
    assert found.dtype == dtype
    assert np.array_equal(found, x[:, ::-1])


def test_fixed_shapes_need_no_profile(backend, library):
    ports = Port("x", "float32", (2, 4)), Port("y", "float32", (2, 4))
    data = graph([helper.make_node("Neg", ["x"], ["y"])], (ports[0],), (ports[1],))
    x = np.ones((2, 4), np.float32)
    session = load(backend, data, entry((ports[0],), (ports[1],)))
    assert np.array_equal(session.run({"x": x})["y"], -x)
    assert library.told[0]["profiles"] == []


def test_a_scalar_stays_one(backend):
    """An array of no axes may not get one on the way."""
    source, scalar = Port("x", "float32", ("batch", 4)), Port("s", "float32", ())
    data = graph([helper.make_node("Mul", ["x", "s"], ["y"])], (source, scalar))
    fed = {"x": np.ones((2, 4), np.float32), "s": np.array(3, np.float32)}
    found = load(backend, data, entry((source, scalar))).run(fed)
    assert np.array_equal(found["y"], 3 * fed["x"])


def test_threads_share_an_engine(backend, library, cuda):
    session = load(backend)
    session.run(ONES)

    def run(number):
        x = np.full((1, 4), number, np.float32)
        return np.array_equal(session.run({"x": x})["y"], 2 * x)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(run, range(200)))
    assert len(library.told) == 1
    assert 1 <= len(cuda.driver.streams) <= 4
    session._shelf.loaded[0].shrink()
    assert (cuda.driver.blocks, cuda.driver.streams) == ({}, {})


def test_settings_and_fallback():
    with pytest.raises(UsageError, match="threads: got 0, expected 1 or more"):
        TensorRtBackend(threads=0)
    assert TensorRtBackend(threads=3).fallback() == OnnxRuntimeBackend(threads=3)
    assert make_backend("tensorrt", threads=2) == TensorRtBackend(threads=2)
    with pytest.raises(UsageError, match="providers: got cuda for tensorrt, expected cpu"):
        make_backend("tensorrt", providers=("cuda",))


def test_nothing_is_imported_before_it_is_asked_for():
    script = (
        "import sys, jscc.runtime.commands.engine, jscc.runtime.commands.build\n"
        "import jscc.runtime.backends.tensorrt as backend\n"
        "backend.TensorRtBackend()\n"
        "assert not {'tensorrt', 'tensorrt_rtx', 'cuda'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)

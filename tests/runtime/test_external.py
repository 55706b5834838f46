"""Large weight files stay where they lie, and still nothing but what was verified is run."""

import gc
import hashlib
import mmap
import os
import shutil
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import tiny_bundle
from jscc.runtime import bundle as bundles
from jscc.runtime import external
from jscc.runtime.backends.onnxruntime import OnnxRuntimeBackend, session_builder
from jscc.runtime.bundle import Bundle, write_bundle
from jscc.runtime.csi import Csi
from jscc.runtime.errors import BundleError, UnavailableError
from jscc.runtime.external import External, LargeFile
from jscc.runtime.receiver import Receiver

NAME = "graphs/denoise.onnx.data"
ENGINE = OnnxRuntimeBackend(threads=1)
SIDE = {"context": np.linspace(0, 1, 10, dtype=np.float32).reshape(1, 2, 5)}


@pytest.fixture
def path(tmp_path):
    return tiny_bundle.write_diffusion(tmp_path / "diffusion.jscc").path


@pytest.fixture
def expected(path):
    """What a bundle that was kept in memory receives."""
    return received(Bundle.open(path))


@pytest.fixture
def opened(path, expected, monkeypatch):
    """The bundle, its weight file large by decree."""
    monkeypatch.setattr(bundles, "LARGE", 1)
    return Bundle.open(path)


def received(bundle):
    rng = np.random.default_rng(0)
    symbols = (rng.standard_normal((2, 8, 12)) + 1j * rng.standard_normal((2, 8, 12))) / 2**0.5
    device = Receiver(bundle, backend=ENGINE)
    return device.receive(symbols.astype(np.complex64), Csi(7.0), seed=1, side=SIDE)[0]


def test_the_engine_takes_the_file_from_its_folder(opened, expected, monkeypatch):
    with opened.external("denoise").folder() as folder:
        assert sorted(os.listdir(folder)) == sorted(os.listdir(opened.path / "graphs"))
    monkeypatch.delattr(LargeFile, "read")
    np.testing.assert_array_equal(received(opened), expected)


def test_the_same_bytes_for_who_asks(opened):
    data = (opened.path / NAME).read_bytes()
    files = opened.external("denoise")
    assert list(files) == ["denoise.onnx.data"]
    assert len(files) == 1
    assert bytes(files["denoise.onnx.data"]) == opened.file(NAME) == data
    with pytest.raises(KeyError):
        files["other"]


def test_opening_keeps_none_of_it(tmp_path, monkeypatch):
    manifest, files = tiny_bundle.diffusion()
    files[NAME] += bytes(4 << 20)
    written = write_bundle(tmp_path / "long.jscc", manifest, files)
    monkeypatch.setattr("jscc.runtime.trust.CHUNK", 1 << 16)
    peaks = []
    for limit in (external.LARGE, 1):
        monkeypatch.setattr(bundles, "LARGE", limit)
        tracemalloc.start()
        Bundle.open(written.path)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[0] > 4 << 20
    assert peaks[1] < 1 << 20


@pytest.mark.parametrize("length", [0, 1], ids=["other bytes", "one more"])
def test_changed_in_place_before_opening(path, monkeypatch, length):
    monkeypatch.setattr(bundles, "LARGE", 1)
    data = bytearray((path / NAME).read_bytes())
    data[5] ^= 1
    (path / NAME).write_bytes(data + bytes(length))
    with pytest.raises(BundleError) as failure:
        Bundle.open(path)
    assert failure.value.code == "E_HASH"


def test_cut_before_opening(path, monkeypatch):
    monkeypatch.setattr(bundles, "LARGE", 1)
    os.truncate(path / NAME, 3)
    with pytest.raises(BundleError) as failure:
        Bundle.open(path)
    assert failure.value.code == "E_BUNDLE_TRUNCATED"


def test_changed_in_place_after_opening(opened):
    with (opened.path / NAME).open("r+b") as file:
        file.write(b"\x7f")
    with pytest.raises(BundleError) as failure:
        received(opened)
    assert failure.value.code == "E_HASH"
    with pytest.raises(BundleError) as failure:
        opened.file(NAME)
    assert failure.value.code == "E_HASH"


def test_cut_after_opening(opened):
    os.truncate(opened.path / NAME, 3)
    with pytest.raises(BundleError) as failure:
        received(opened)
    assert failure.value.code == "E_BUNDLE_TRUNCATED"


def test_replaced_after_opening(opened, expected):
    """Another file under the name is not what was verified; the old one is still open."""
    other = opened.path / "other"
    other.write_bytes(bytes((opened.path / NAME).stat().st_size))
    os.replace(other, opened.path / NAME)
    np.testing.assert_array_equal(received(opened), expected)


@pytest.mark.parametrize("back", [False, True], ids=["stays", "put back"])
def test_replaced_while_the_engine_loads(opened, expected, back, monkeypatch):
    """The engine may have read either; so what it loaded is dropped, and the bytes are taken."""
    path, aside, loads = opened.path / NAME, opened.path / "aside", []

    def meanwhile(*arguments, **options):
        if not loads and arguments[0] == opened.graph("denoise"):
            loads.append(1)
            os.rename(path, aside)
            path.write_bytes(bytes(aside.stat().st_size))
            session = load(*arguments, **options)
            if back:
                os.replace(aside, path)
            return session
        return load(*arguments, **options)

    load = ort.InferenceSession
    monkeypatch.setattr(ort, "InferenceSession", meanwhile)
    np.testing.assert_array_equal(received(opened), expected)
    assert loads


def lasting(tmp_path):
    """A graph with weights that the engine reads anew in every run, and their file."""
    size = 4096
    bias = np.arange(size, dtype=np.float32)
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [size]) for n in "xy"]
    node = helper.make_node("Add", ["x", "bias"], ["y"])
    graph = helper.make_graph(
        [node], "add", ports[:1], ports[1:], initializer=[numpy_helper.from_array(bias, "bias")]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path = tmp_path / "add.onnx"
    onnx.save(model, path, save_as_external_data=True, location="add.data", size_threshold=0)
    data = tmp_path / "add.data"
    folder, file = os.open(tmp_path, os.O_RDONLY), os.open(data, os.O_RDONLY)
    digest = hashlib.sha256(data.read_bytes()).hexdigest()
    large = LargeFile(file, folder, "graphs/add.data", size=data.stat().st_size, sha256=digest)
    os.close(folder)
    os.close(file)
    return path.read_bytes(), External({}, {"add.data": large}), data, bias


def mapped(name):
    with open("/proc/self/maps", encoding="utf-8") as maps:
        return [line for line in maps if line.rstrip().endswith(name)]


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="no names for open folders")
def test_a_running_engine_has_let_go_of_the_file(tmp_path):
    """Overwritten, cut or deleted: a receiver that is running does not notice."""
    graph, files, data, bias = lasting(tmp_path)
    session = session_builder("add", graph, files, provider="cpu", threads=1)()
    assert not mapped(data.name)
    data.write_bytes(bytes(10))
    zeros = np.zeros(len(bias), np.float32)
    np.testing.assert_array_equal(session.run(None, {"x": zeros})[0], bias)
    del session


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="no names for open folders")
def test_what_others_have_mapped_of_it_stays_theirs(opened, expected, monkeypatch):
    """An exporter maps all of it for each of its tensors: copies would fill the memory."""
    copied = []
    copy = external._copy_over

    def noted(descriptor, region):
        copied.append(region)
        copy(descriptor, region)

    monkeypatch.setattr(external, "_copy_over", noted)
    with open(opened.path / NAME, "rb") as file:
        theirs = [mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) for _ in range(3)]
    there = _regions(NAME)
    assert there
    assert np.array_equal(received(opened), expected)
    assert not set(copied) & there
    assert _regions(NAME) == there
    for each in theirs:
        each.close()


def _regions(name):
    return set(external._mapped(name.rpartition("/")[2]))


def test_without_that_the_engine_would_hold_it(tmp_path, monkeypatch):
    """What the test above is for: the library itself leaves this file mapped."""
    monkeypatch.setattr(LargeFile, "settle", lambda self, others=(): None)
    monkeypatch.setattr(LargeFile, "mapped", lambda self: ())
    graph, files, data, _ = lasting(tmp_path)
    session = session_builder("add", graph, files, provider="cpu", threads=1)()
    assert mapped(data.name)
    del session


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="no names for open folders")
@pytest.mark.parametrize("fault", ["cannot be copied", "has another number"])
def test_what_cannot_be_let_go_of_is_loaded_from_bytes(tmp_path, monkeypatch, fault):
    def refuse(descriptor, region):
        raise OSError(1, "not here")

    if fault == "cannot be copied":
        monkeypatch.setattr(external, "_copy_over", refuse)
    else:  # as on file systems that lie over others
        real = external._mapped
        monkeypatch.setattr(
            external, "_mapped", lambda leaf: [replace(each, inode=1) for each in real(leaf)]
        )
    graph, files, data, bias = lasting(tmp_path)
    session = session_builder("add", graph, files, provider="cpu", threads=1)()
    assert not mapped(data.name)
    data.write_bytes(bytes(10))
    zeros = np.zeros(len(bias), np.float32)
    np.testing.assert_array_equal(session.run(None, {"x": zeros})[0], bias)


def test_graphs_without_large_files_do_not_wait_for_others(opened):
    with opened.external("denoise").folder():
        assert external._LOADING.locked()
        with opened.external("decode").folder() as folder:
            assert folder is None


def test_many_read_one_file(opened):
    data = (opened.path / NAME).read_bytes()
    large = opened.external("denoise")._large["denoise.onnx.data"]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: large.read().tobytes(), range(64)))
    assert set(found) == {data}


def test_bytes_that_somebody_has_are_not_read_again(opened, monkeypatch):
    files = opened.external("denoise")
    held = files["denoise.onnx.data"]
    monkeypatch.setattr(external, "read_file", None)
    assert opened.external("denoise")["denoise.onnx.data"] == held
    assert "denoise.onnx.data" in files
    assert "other" not in files
    assert files.sha256("denoise.onnx.data") == opened.manifest.files[NAME].sha256


def test_errors_of_reading_are_not_the_graphs(opened, monkeypatch):
    def full(*arguments, **options):
        raise UnavailableError("E_MEMORY", "weights: got too many, expected fewer. Use less.")

    monkeypatch.setattr(external, "_DESCRIPTORS", "/nowhere")
    monkeypatch.setattr(external, "read_file", full)
    with pytest.raises(UnavailableError) as failure:
        received(opened)
    assert failure.value.code == "E_MEMORY"


def test_the_whole_bundle_moved_or_deleted(opened, expected):
    moved = opened.path.with_name("moved.jscc")
    opened.path.rename(moved)
    np.testing.assert_array_equal(received(opened), expected)
    shutil.rmtree(moved)
    np.testing.assert_array_equal(received(opened), expected)


def test_touched_or_linked_is_still_the_same(opened, expected, tmp_path):
    os.utime(opened.path / NAME)
    os.link(opened.path / NAME, tmp_path / "link")
    np.testing.assert_array_equal(received(opened), expected)


def test_a_system_without_names_for_open_folders(opened, expected, monkeypatch):
    monkeypatch.setattr(external, "_DESCRIPTORS", "/nowhere")
    with opened.external("denoise").folder() as folder:
        assert folder is None
    np.testing.assert_array_equal(received(opened), expected)


def test_files_of_which_some_are_in_memory():
    with External({"a": memoryview(b"a")}, {}).folder() as folder:
        assert folder is None


def test_an_archive_is_read_into_memory(tmp_path, monkeypatch, expected):
    monkeypatch.setattr(bundles, "LARGE", 1)
    single = tiny_bundle.write_diffusion(tmp_path / "single.jscc", single_file=True)
    with single.external("denoise").folder() as folder:
        assert folder is None
    np.testing.assert_array_equal(received(single), expected)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="nothing to count them by")
def test_descriptors_are_closed(path, monkeypatch):
    monkeypatch.setattr(bundles, "LARGE", 1)
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    opened = Bundle.open(path)
    assert len(os.listdir("/proc/self/fd")) == before + 2
    del opened
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before

"""jscc receive --meanwhile: images at once, by the engines when they are there; records say so."""

import threading

import numpy as np
import pytest
from PIL import Image

from fake_build import SUCCEEDS, WAITS, instead, is_gone
from fake_cuda import Status
from fake_tensorrt import FakeTensorRt, install, make_device
from jscc.runtime import meanwhile
from jscc.runtime.backends import tensorrt
from jscc.runtime.commands import meanwhile as module
from jscc.runtime.commands import receive
from jscc.runtime.commands.meanwhile import MOST_SHAPES, shapes_of
from jscc.runtime.engine_choice import circumstances, keep, usual_folder
from jscc.runtime.frame import Frame
from jscc.runtime.symbol_files import write_symbols
from jscc.runtime.tensorrt import library as tensorrt_library

OPTIONS = ("--engine", "tensorrt", "--meanwhile", "cpu", "--snr", 7)


@pytest.fixture
def cuda(later_host):
    return make_device(later_host)


@pytest.fixture
def library(cuda, monkeypatch, tmp_path):
    fake = FakeTensorRt(cuda)
    install(monkeypatch, fake, cuda)
    monkeypatch.setattr(tensorrt.Path, "home", lambda: tmp_path)
    yield fake
    tensorrt_library.load_library.cache_clear()


@pytest.fixture
def asked(monkeypatch):
    """What the build was asked for; it goes on until it is ended."""
    lines = []

    def command_line(arguments):
        lines.append(arguments)
        return instead(WAITS)

    monkeypatch.setattr(meanwhile, "command_line", command_line)
    return lines


def make_frame(number=0, rows=4, columns=4, size=None):
    parts = np.random.default_rng(number).standard_normal((2, 2, rows, columns)) * np.sqrt(0.5)
    return Frame((parts[0] + 1j * parts[1]).astype(np.complex64), number, size)


@pytest.fixture
def recording(tmp_path):
    path = tmp_path / "heard.sigmf-meta"
    frames = [make_frame(number, size=(12, 16)) for number in range(3)]
    write_symbols(path, frames, force=False)
    return path


def pictures(folder):
    return [np.asarray(Image.open(path)).astype(int) for path in sorted(folder.glob("*.png"))]


def records(ran):
    assert ran.status == 0, ran.err
    return [row["record"] for row in ran.json["images"]]


def test_a_recording_that_ends_first(jscc, library, asked, codec, recording, tmp_path, monkeypatch):
    """All of it is received on the CPU, nothing is waited for, and nothing is left."""
    started, begun = [], threading.Event()
    real, write = meanwhile.Child, receive.write_file

    def make(command):
        started.append(real(command))
        begun.set()
        return started[-1]

    def write_once_begun(*given, **named):
        assert begun.wait(120)
        write(*given, **named)

    (tmp_path / "cpu").mkdir()
    assert jscc("receive", codec, recording, "-o", tmp_path / "cpu" / "x.png").status == 0
    monkeypatch.setattr(meanwhile, "Child", make)
    monkeypatch.setattr(receive, "write_file", write_once_begun)
    ran = jscc("receive", codec, recording, "-o", tmp_path / "x.png", "--json", *OPTIONS)
    for record in records(ran):
        assert record["providers"] == {"decode": "cpu"}
        (note,) = record["fallbacks"]
        assert note.startswith("engine tensorrt: being built, onnxruntime ")
        assert f"jscc receive: frame {record['frame']}: fell back: {note}" in ran.err
    found, expected = pictures(tmp_path), pictures(tmp_path / "cpu")
    assert len(found) == 3
    assert np.array_equal(found, expected)
    assert is_gone(started[0].pid)
    assert "since it was closed before they were ready; those that are complete are kept" in ran.err
    ((*_, shapes),) = asked
    assert shapes == "16x16"  # padded


def test_the_engines_take_over_between_two_frames(
    jscc, library, codec, recording, tmp_path, monkeypatch
):
    monkeypatch.setattr(meanwhile, "command_line", lambda arguments: instead(SUCCEEDS))
    made = []

    class Watched(meanwhile.MeanwhileReceiver):
        def __init__(self, *given, **named):
            super().__init__(*given, **named)
            made.append(self)

    def write_then_wait(*given, **named):
        write(*given, **named)
        assert made[0].wait(120)

    write = receive.write_file
    monkeypatch.setattr(module, "MeanwhileReceiver", Watched)
    monkeypatch.setattr(receive, "write_file", write_then_wait)
    ran = jscc("receive", codec, recording, "-o", tmp_path / "x.png", "--json", *OPTIONS)
    rest = [(each["backend"], each["fallbacks"]) for each in records(ran)[1:]]
    assert rest == [("tensorrt 10.3.0", [])] * 2
    assert "engine tensorrt: ready, tensorrt 10.3.0 receives from now on" in ran.err


def test_without_a_device_the_cpu_receives_and_that_is_said(
    jscc, library, cuda, codec, recording, tmp_path
):
    cuda.driver.status = Status.CUDA_ERROR_NO_DEVICE
    ran = jscc("receive", codec, recording, "-o", tmp_path / "x.png", "--json", *OPTIONS)
    for record in records(ran):
        assert record["providers"] == {"decode": "cpu"}
        (note,) = record["fallbacks"]
        assert "cuInit: got CUDA_ERROR_NO_DEVICE" in note
    assert ran.err.count("\nengine tensorrt: ") + ran.err.startswith("engine tensorrt: ") == 1


def test_what_jscc_choose_found_counts(
    jscc, library, asked, codec, shared_bundles, recording, tmp_path
):
    keep("tensorrt", circumstances(shared_bundles["codec"].sha256), usual_folder())
    options = ("--meanwhile", "cpu", "--snr", 7, "--json")
    ran = jscc("receive", codec, recording, "-o", tmp_path / "x.png", *options)
    assert len(records(ran)) == 3
    assert len(asked) == 1
    assert "jscc: tensorrt receives, as jscc choose found" in ran.err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "--meanwhile: got cpu for onnxruntime, expected engine tensorrt, for which something"),
        (("--engine", "openvino"), "--meanwhile: got cpu for openvino, expected engine tensorrt"),
        (("--engine", "tensorrt", "--provider", "cuda"), "providers: got cuda for tensorrt, expe"),
    ],
)
def test_what_it_does_not_go_with(jscc, library, asked, codec, recording, tmp_path, options, words):
    out = tmp_path / "x.png"
    ran = jscc("receive", codec, recording, "-o", out, "--meanwhile", "cpu", "--snr", 7, *options)
    assert ran.status == 2
    assert ran.err.startswith(f"jscc receive: {words}")
    assert ran.err.count("\n") == 1
    assert asked == []


def test_only_what_onnx_runtime_may_do_meanwhile(jscc, codec, recording, tmp_path):
    out = tmp_path / "x.png"
    ran = jscc("receive", codec, recording, "-o", out, *OPTIONS[:2], "--meanwhile", "tensorrt")
    assert ran.status == 2
    assert "invalid choice: 'tensorrt'" in ran.err


def test_a_provider_that_is_not_there_is_no_silent_cpu(
    jscc, library, asked, codec, recording, tmp_path
):
    out = tmp_path / "x.png"
    ran = jscc("receive", codec, recording, "-o", out, *OPTIONS[:2], "--meanwhile", "cuda")
    assert ran.status == 69
    assert "[E_EP_MISSING]" in ran.err
    assert asked == []


def test_engines_are_for_the_sizes_of_the_frames(shared_bundles):
    manifest = shared_bundles["codec"].manifest
    grid, sized = make_frame(0, 8, 12), make_frame(1, 4, 4, (9, 15))
    flat = Frame(grid.symbols.ravel(), 2)
    huge = make_frame(3, 4, 4, (10**6, 10**6))
    assert shapes_of([grid, sized, flat, huge, sized], None, manifest) == ("16x16", "32x48")
    assert shapes_of([flat, huge], (30, 47), manifest) == ("32x48",)
    assert shapes_of([flat, huge], None, manifest) == ()
    many = [make_frame(0, 2, 2 * columns) for columns in range(1, 2 * MOST_SHAPES)]
    chosen = shapes_of([*many, many[-1], many[-1], many[-2]][::-1], None, manifest)
    assert len(chosen) == MOST_SHAPES
    assert chosen[:2] == ("8x120", "8x112")

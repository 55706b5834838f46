"""A receiver that serves on the CPU while engines are being built, against fakes of the library."""

import dataclasses
import functools
import gc
import os
import subprocess
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import fake_tensorrt
from fake_build import (
    BREAKS,
    CRASHES,
    ERROR,
    REFUSES,
    SUCCEEDS,
    WAITS,
    Gate,
    Said,
    instead,
    is_gone,
)
from fake_cuda import Status
from fake_tensorrt import WORDS, FakeTensorRt, install, make_device
from jscc.runtime import meanwhile as module
from jscc.runtime.backends.onnxruntime import OnnxRuntimeBackend
from jscc.runtime.backends.tensorrt import TensorRtBackend
from jscc.runtime.bundle import Bundle
from jscc.runtime.csi import Csi
from jscc.runtime.errors import SymbolsError, UsageError
from jscc.runtime.meanwhile import MeanwhileReceiver, make_receiver
from jscc.runtime.receiver import Receiver
from jscc.runtime.tensorrt import library as tensorrt_library

CPU = OnnxRuntimeBackend(threads=1).name
BUILDING = f"engine tensorrt: being built, {CPU} receives meanwhile"
TENSORRT = "tensorrt 10.3.0"
CSI = Csi(7.0)
LIMIT_S = 120


@pytest.fixture
def cuda(later_host):
    return make_device(later_host)


@pytest.fixture
def library(cuda, monkeypatch):
    fake = FakeTensorRt(cuda)
    install(monkeypatch, fake, cuda)
    yield fake
    tensorrt_library.load_library.cache_clear()


@pytest.fixture
def said():
    return Said()


@pytest.fixture
def backend(library, tmp_path, said):
    return TensorRtBackend(threads=1, folder=tmp_path / "engines", tell=said)


@pytest.fixture
def gate(tmp_path, monkeypatch):
    """The build is `jscc build` on a fake library, and waits here."""
    made = Gate(tmp_path / "gate")
    monkeypatch.setattr(module, "command_line", made.command_line)
    return made


@pytest.fixture
def later(library, monkeypatch):
    """The build does nothing, so that the second receiver builds; it waits for this."""
    monkeypatch.setattr(module, "command_line", lambda arguments: instead(SUCCEEDS))
    opened = threading.Event()
    library.building = lambda: opened.wait(LIMIT_S)
    return opened


@pytest.fixture
def codec(shared_bundles):
    return shared_bundles["codec"]


@pytest.fixture
def truth(codec):
    return functools.partial(
        Receiver(codec, backend=OnnxRuntimeBackend(threads=1)).receive, csi=CSI
    )


def symbols(seed=0, rows=8, columns=12):
    parts = np.random.default_rng(seed).standard_normal((2, 2, rows, columns)) * np.sqrt(0.5)
    return (parts[0] + 1j * parts[1]).astype(np.complex64)


def differ(images, others):
    return np.abs(images.astype(int) - others.astype(int)).max()


def check_cpu(receiver, truth, note):
    """It receives as the CPU does, and says why each time."""
    for frame in range(2):
        image, record = receiver.receive(symbols(), CSI, seed=0, frame=frame)
        assert np.array_equal(image, truth(symbols(), seed=0)[0])
        assert record.fallbacks == (note,)
        assert (record.backend, record.providers) == (CPU, {"decode": "cpu"})
    assert receiver.backend == CPU


def test_it_serves_at_once_and_goes_over(codec, backend, library, gate, said, truth):
    with MeanwhileReceiver(codec, backend=backend, shapes=["32x48"]) as receiver:
        said.wait_for("jscc build: decode for sm_89 NVIDIA Fake, 1 of 1")
        check_cpu(receiver, truth, BUILDING)
        assert not receiver.wait(0)
        gate.open()
        assert receiver.wait(LIMIT_S)
        assert receiver.backend == TENSORRT
        for frame in range(2):
            image, record = receiver.receive(symbols(), CSI, seed=0, frame=frame)
            assert differ(image, truth(symbols(), seed=0)[0]) <= 1
            assert (record.backend, record.providers) == (TENSORRT, {"decode": "cuda"})
            assert (record.frame, record.fallbacks) == (frame, ())
    # The engines are those of the other process, and have passed the self-test here.
    assert (library.told, library.loaded) == ([], 1)
    assert said.lines[0] == BUILDING
    assert said.lines[-1] == f"engine tensorrt: ready, {TENSORRT} receives from now on"
    assert said.lines[-2].startswith("jscc build: decode for sm_89 NVIDIA Fake, 1 of 1: done in ")


def test_batches_too(codec, backend, later, said, truth):
    batch = np.stack([symbols(seed) for seed in range(3)])
    expected = np.stack([truth(each, seed=0)[0] for each in batch])
    with MeanwhileReceiver(codec, backend=backend) as receiver:
        images, records = receiver.receive_batch(batch, [CSI] * 3, seed=0, frame=5)
        assert np.array_equal(images, expected)
        assert [record.fallbacks for record in records] == [(BUILDING,)] * 3
        later.set()
        assert receiver.wait(LIMIT_S)
        images, records = receiver.receive_batch(batch, [CSI] * 3, seed=0, frame=5)
    assert differ(images, expected) <= 1
    assert [(record.backend, record.frame) for record in records] == [
        (TENSORRT, frame) for frame in (5, 6, 7)
    ]


def test_it_takes_what_a_receiver_takes(codec, backend, truth):
    """Other arguments arrive, and errors of the caller's leave as they are."""
    with MeanwhileReceiver(codec, backend=backend, command=instead(WAITS)) as receiver:
        image, record = receiver.receive(symbols(), csi=CSI, seed=3, size=(30, 41))
        assert np.array_equal(image, truth(symbols(), seed=3, size=(30, 41))[0])
        assert record.seed == 3
        with pytest.raises(SymbolsError, match=r"expected .*complex64"):
            receiver.receive(symbols().real, CSI, seed=0)


def test_what_is_built(codec, backend, monkeypatch):
    """Stages that receive, for what is asked for and for the self-test."""
    asked = []

    def command_line(arguments):
        asked.append(arguments)
        return instead(WAITS)

    monkeypatch.setattr(module, "command_line", command_line)
    for shapes in ((), ("16x24,32x32", "2x8x8-4x32x32")):
        MeanwhileReceiver(codec, backend=backend, shapes=shapes).close()
    common = ("build", str(codec.path), "--missing", "--output", str(backend.folder))
    assert asked == [
        (*common, "--stage", "decode"),
        (
            *(*common, "--stage", "decode", "--shapes", "8x16", "--shapes", "16x24,32x32"),
            *("--shapes", "2x8x8-4x32x32"),
        ),
    ]


def test_what_is_kept_is_not_built_again(codec, backend, library, gate, said):
    """Although it was built for itself, as sizes are that come when nothing takes them."""
    Receiver(codec, backend=backend)
    with MeanwhileReceiver(codec, backend=backend, shapes=["8x16"]) as receiver:
        assert receiver.wait(LIMIT_S)  # the gate stays closed
        assert receiver.backend == TENSORRT
    assert not any(line.startswith("jscc build: ") for line in said.lines)
    assert len(library.told) == 1


def test_a_size_without_an_engine_waits_for_one(codec, backend, library, later, truth):
    later.set()
    with MeanwhileReceiver(codec, backend=backend) as receiver:
        assert receiver.wait(LIMIT_S)
        assert len(library.told) == 1  # the self-test's
        image, record = receiver.receive(symbols(), CSI, seed=0)
    assert differ(image, truth(symbols(), seed=0)[0]) <= 1
    assert record.providers == {"decode": "cuda"}
    assert len(library.told) == 2


def test_the_first_receiver_and_the_bundle_are_let_go(codec, backend, later):
    opened = Bundle.open(codec.path)
    made = []

    def make(bundle, chosen):
        receiver = make_receiver(bundle, chosen)
        made.append(weakref.ref(receiver))
        return receiver

    with MeanwhileReceiver(opened, backend=backend, make=make) as receiver:
        bundle = weakref.ref(opened)
        del opened
        assert bundle() is not None
        later.set()
        assert receiver.wait(LIMIT_S)
    gc.collect()
    first, second = made
    assert (first(), bundle()) == (None, None)
    assert second() is not None
    receiver.receive(symbols(), CSI, seed=0)


def test_threads_receive_through_the_exchange(codec, backend, later, truth):
    """Each Record fits what received it."""
    expected = [truth(symbols(seed), seed=0)[0] for seed in range(6)]
    begun = threading.Barrier(7)

    def serve(receiver, seed):
        seen = []
        while TENSORRT not in seen:
            image, record = receiver.receive(symbols(seed), CSI, seed=0)
            assert differ(image, expected[seed]) <= 1
            assert (record.backend, record.providers["decode"], record.fallbacks) in (
                (CPU, "cpu", (BUILDING,)),
                (TENSORRT, "cuda", ()),
            )
            if not seen:
                begun.wait(LIMIT_S)
            seen.append(record.backend)
        return seen

    with (
        MeanwhileReceiver(codec, backend=backend) as receiver,
        ThreadPoolExecutor(6) as pool,
    ):
        threads = [pool.submit(serve, receiver, seed) for seed in range(6)]
        begun.wait(LIMIT_S)
        later.set()
        for thread in threads:
            seen = thread.result(LIMIT_S)
            assert seen[0] == CPU
            assert seen[-1] == TENSORRT


LAST = "and last 'jscc build: so far', expected it to build the engines."
FAILURES = {
    "refused": (instead(REFUSES), ERROR),
    "broken": (instead(BREAKS), f"jscc build: got status 3, {LAST}"),
    "killed": (instead(CRASHES), f"jscc build: got signal SIGKILL, {LAST}"),
    "absent": (("/nonexistent/python",), "FileNotFoundError: "),
}


@pytest.mark.parametrize("kind", FAILURES)
def test_a_build_that_fails_leaves_the_cpu(codec, backend, library, said, truth, kind):
    command, reason = FAILURES[kind]
    with MeanwhileReceiver(codec, backend=backend, command=command) as receiver:
        assert receiver.wait(LIMIT_S)
        note = said.lines[-1]
        assert note.startswith(f"engine tensorrt: {CPU} receives, since {reason}")
        check_cpu(receiver, truth, note)
    assert said.lines.count(note) == 1
    assert library.loaded == 0


@pytest.mark.parametrize(
    ("missing", "words"), [("library", "module 'tensorrt'"), ("device", "CUDA_ERROR_NO_DEVICE")]
)
def test_what_is_missing_is_known_before_anything_is_started(
    codec, backend, library, cuda, said, truth, monkeypatch, missing, words
):
    if missing == "library":
        install(monkeypatch, None, cuda)
    else:
        cuda.driver.status = Status.CUDA_ERROR_NO_DEVICE
    monkeypatch.setattr(module, "Child", None)
    with MeanwhileReceiver(codec, backend=backend) as receiver:
        assert receiver.wait(0)
        (note,) = said.lines
        assert words in note
        check_cpu(receiver, truth, note)


def test_without_a_self_test_nothing_is_built(shared_bundles, backend, said, monkeypatch):
    monkeypatch.setattr(module, "Child", None)
    with MeanwhileReceiver(shared_bundles["diffusion"], backend=backend) as receiver:
        side = {"context": np.ones((1, 2, 5), np.float32)}
        _, record = receiver.receive(symbols(), CSI, seed=0, side=side)
    reason = "the bundle has no self-test to hold engines to"
    assert [*record.fallbacks] == said.lines
    assert said.lines == [f"engine tensorrt: {CPU} receives, since {reason}"]


def test_engines_that_fail_their_self_test_leave_the_cpu(
    codec, backend, later, said, truth, monkeypatch
):
    """And no third receiver is made."""
    right = fake_tensorrt._Context._compute

    def wrong(self, shapes, addresses):
        right(self, shapes, addresses)
        for name in self.engine.outputs:
            result = self._at(name, self.get_tensor_shape(name), addresses)
            result[...] = result[..., ::-1].copy()

    monkeypatch.setattr(fake_tensorrt._Context, "_compute", wrong)
    made = []

    def make(bundle, chosen):
        made.append(chosen.name)
        return make_receiver(bundle, chosen)

    later.set()
    with MeanwhileReceiver(codec, backend=backend, make=make) as receiver:
        assert receiver.wait(LIMIT_S)
        note = said.lines[-1]
        words = (
            f"engine tensorrt: {CPU} receives, since self-test on {TENSORRT} (cuda): got an image "
        )
        assert note.startswith(words)
        assert note.endswith("[E_SELFTEST]")
        check_cpu(receiver, truth, note)
    assert made == [CPU, TENSORRT]


def test_engines_that_run_no_stage_are_no_exchange(codec, backend, library, said, truth):
    """What the CPU passes in their place says nothing of them."""
    library.faults["build"] = [WORDS["tactic"]] * 9
    with MeanwhileReceiver(codec, backend=backend, command=instead(SUCCEEDS)) as receiver:
        assert receiver.wait(LIMIT_S)
        note = said.lines[-1]
        assert f"since self-test on {TENSORRT}: got no stage on the device (stage 'decode'" in note
        assert "Could not find any implementation" in note
        check_cpu(receiver, truth, note)


def test_an_engine_that_crashed_the_library_once_is_not_built_behind_our_back(
    codec, backend, gate, said, truth
):
    Receiver(codec, backend=backend)
    (engine,) = backend.folder.glob("*.engine")
    engine.with_name(f"{engine.name}.4711-0123-0.loading.ended").touch()
    with MeanwhileReceiver(codec, backend=backend) as receiver:
        assert receiver.wait(LIMIT_S)
        note = said.lines[-1]
        assert "got process 4711 ended by loading it" in note
        assert note.endswith("[E_ENGINE_CRASH]")
        check_cpu(receiver, truth, note)


def children(monkeypatch):
    """The processes that are started from now on."""
    started = []
    real = module.Child

    def make(command):
        started.append(real(command))
        return started[-1]

    monkeypatch.setattr(module, "Child", make)
    return started


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "engines"]


@pytest.mark.parametrize("how", ["closed", "closed twice", "context", "forgotten"])
def test_nothing_is_left_of_a_build_that_is_ended(codec, backend, said, truth, monkeypatch, how):
    started = children(monkeypatch)
    receiver = MeanwhileReceiver(codec, backend=backend, command=instead(WAITS))
    said.wait_for("so far")
    assert not is_gone(started[0].pid)
    note = (
        f"engine tensorrt: {CPU} receives, since it was closed before they were ready; "
        "those that are complete are kept"
    )
    if how == "forgotten":
        del receiver
        gc.collect()
    elif how == "context":
        with receiver:
            pass
    else:
        for _ in range(1 + how.endswith("twice")):
            receiver.close()
    assert is_gone(started[0].pid)
    assert threads() == []
    assert said.lines[-1] == note
    if how != "forgotten":
        check_cpu(receiver, truth, note)


def test_nothing_is_left_after_the_exchange(codec, backend, later, monkeypatch):
    started = children(monkeypatch)
    later.set()
    receiver = MeanwhileReceiver(codec, backend=backend)
    assert receiver.wait(LIMIT_S)
    assert is_gone(started[0].pid)
    receiver.close()
    assert threads() == []
    assert receiver.receive(symbols(), CSI, seed=0)[1].backend == TENSORRT


def test_a_build_that_ends_as_it_is_closed_is_no_exchange(codec, backend, monkeypatch, said, truth):
    """The second receiver, which was just being made, is dropped."""
    begun, closing = threading.Event(), threading.Event()

    def make(bundle, chosen):
        if threading.current_thread().name == "engines":
            begun.set()
            assert closing.wait(LIMIT_S)
        return make_receiver(bundle, chosen)

    receiver = MeanwhileReceiver(codec, backend=backend, make=make, command=instead(SUCCEEDS))
    assert begun.wait(LIMIT_S)
    real = threading.Thread.join

    def join(self, *given):
        closing.set()
        real(self, *given)

    monkeypatch.setattr(threading.Thread, "join", join)
    receiver.close()
    check_cpu(receiver, truth, said.lines[-1])
    assert "closed" in said.lines[-1]


def test_a_process_that_ends_takes_its_build_with_it(codec, tmp_path):
    """Although nobody closed it; the child is one of those that do not watch their stdin."""
    script = """
import sys, threading
from pathlib import Path
from jscc.runtime import meanwhile as module
from jscc.runtime.backends.tensorrt import TensorRtBackend
from jscc.runtime.bundle import Bundle
module.find_place = lambda folder: None
begun = threading.Event()
def tell(text):
    print(text, flush=True)
    begun.set() if "so far" in text else None
child = "import signal, sys; print('so far', file=sys.stderr, flush=True); signal.pause()"
real = module.Child
def make(command):
    made = real(command)
    print(made.pid, flush=True)
    return made
module.Child = make
receiver = module.MeanwhileReceiver(
    Bundle.open(Path(sys.argv[1])), backend=TensorRtBackend(folder=Path(sys.argv[2]), tell=tell),
    command=(sys.executable, "-c", child),
)
assert begun.wait(120)
"""
    ran = subprocess.run(
        [sys.executable, "-c", script, codec.path, tmp_path / "engines"],
        capture_output=True, text=True, check=False, timeout=LIMIT_S,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )  # fmt: skip
    assert (ran.returncode, ran.stderr) == (0, "")
    lines = ran.stdout.splitlines()
    assert "closed before they were ready" in lines[-1]
    (pid,) = (int(line) for line in lines if line.isdecimal())
    assert is_gone(pid)


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        (["big"], "--shapes: got 'big', expected "),
        (["99999x99999"], "--shapes: got 99999x99999, expected at most "),
    ],
)
def test_sizes_that_cannot_be_are_the_caller_s_error(codec, backend, shapes, words):
    with pytest.raises(UsageError, match=words):
        MeanwhileReceiver(codec, backend=backend, shapes=shapes)


def test_tf32_is_refused(codec, backend):
    with pytest.raises(UsageError, match="got one with TF32, expected one without") as caught:
        MeanwhileReceiver(codec, backend=dataclasses.replace(backend, tf32=True))
    assert caught.value.code == "E_MEANWHILE"

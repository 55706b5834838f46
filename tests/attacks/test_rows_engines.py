"""Rows 49 to 52 of the fault table: engines, kernels, and the folders that keep them.

Everywhere: an image all the same, and a record that says what it was received on and why.
"""

import dataclasses
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

import tiny_bundle
from array_kernels import ArrayKernels
from fake_build import Gate, Said
from fake_cuda import Status, make_cuda
from fake_tensorrt import WORDS, FakeTensorRt, install, make_device
from jscc.__main__ import main
from jscc.kernels.sources import entries_of
from jscc.runtime import meanwhile
from jscc.runtime.backends.engines import make_backend
from jscc.runtime.backends.onnxruntime import OnnxRuntimeBackend
from jscc.runtime.backends.tensorrt import TensorRtBackend
from jscc.runtime.csi import Csi
from jscc.runtime.device.bindings import import_cuda
from jscc.runtime.device.cubins import CubinCache
from jscc.runtime.device.device import Device
from jscc.runtime.device.loader import KernelLoader
from jscc.runtime.errors import UnavailableError, UsageError
from jscc.runtime.meanwhile import MeanwhileReceiver
from jscc.runtime.receiver import Receiver
from jscc.runtime.tensorrt import library as tensorrt_library
from jscc.runtime.tensorrt.cache import MOST_ENDS, EngineCache
from jscc.runtime.tensorrt.session import MOST_SHORT

CSI = Csi(7.0)
SIDE = {"context": np.ones((1, 2, 5), np.float32)}
KNOWN = (2, 2, 4)  # shape of the symbols of the bundle's self-test
MEMORY = [WORDS["memory"]] * 1000


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    return tiny_bundle.write_codec(tmp_path_factory.mktemp("rows") / "codec.jscc")


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
    return []


@pytest.fixture
def backend(library, tmp_path, said):
    return TensorRtBackend(threads=1, folder=tmp_path / "engines", tell=said.append)


def good(seed=0, shape=(2, 8, 12)):
    parts = np.random.default_rng(seed).standard_normal((2, *shape))
    symbols = (parts[0] + 1j * parts[1]).astype(np.complex64)
    return symbols / np.float32(np.sqrt(np.mean(np.abs(symbols) ** 2)))


@pytest.fixture(scope="module")
def truth(codec):
    """Images of ONNX Runtime on the CPU."""
    receiver = Receiver(codec, backend=OnnxRuntimeBackend(threads=1))
    return lambda symbols: receiver.receive(symbols, CSI, seed=0)[0].astype(int)


@pytest.fixture
def receive(codec, truth):
    """Receives with some backend as a process newly started would; the image must be right."""

    def call(backend, frames=1, symbols=None):
        receiver = Receiver(codec, backend=backend)
        symbols = good() if symbols is None else symbols
        records = []
        for frame in range(frames):
            image, record = receiver.receive(symbols, CSI, seed=0, frame=frame)
            assert np.abs(image - truth(symbols)).max() <= 1
            records.append(record)
        return records

    return call


def engines(backend):
    return sorted(path.name for path in backend.folder.glob("*.engine"))


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("library", "module 'tensorrt' or 'tensorrt_rtx': got nothing, expected it installed."),
        (
            "bindings",
            "module 'cuda.bindings': got nothing, expected it installed. Run: pip install",
        ),
        ("driver", "cuInit: got CUDA_ERROR_NO_DEVICE, expected a CUDA device"),
        ("device", "cuDeviceGetCount: got 0 devices, expected a CUDA device"),
    ],
)
def test_row_49_an_engine_that_is_missing_is_in_every_record(
    cuda, tmp_path, monkeypatch, receive, capfd, missing, words
):
    if missing == "driver":
        cuda.driver.status = Status.CUDA_ERROR_NO_DEVICE
    cuda.driver.devices = int(missing != "device")
    library = None if missing == "library" else FakeTensorRt(cuda)
    install(monkeypatch, library, None if missing == "bindings" else cuda)
    records = receive(TensorRtBackend(threads=1, folder=tmp_path / "engines"), frames=3)
    for record in records:
        assert record.backend.startswith("onnxruntime ")
        assert record.providers == {"decode": "cpu"}
        (reason,) = record.fallbacks
        assert reason.startswith(f"the CPU takes TensorRT's place: {words}")
    assert not (tmp_path / "engines").exists()
    assert capfd.readouterr() == ("", "")
    tensorrt_library.load_library.cache_clear()


@pytest.mark.parametrize("json", [(), ("--json",)], ids=["text", "json"])
def test_row_49_the_summary_of_a_command_says_so(
    codec, library, cuda, tmp_path, monkeypatch, capsys, json
):
    monkeypatch.setattr("jscc.runtime.backends.tensorrt.Path.home", lambda: tmp_path)
    cuda.driver.devices = 0
    photo = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)).save(photo)
    arguments = ["simulate", str(codec.path), str(photo), "--snr", "7", "--engine", "tensorrt"]
    assert main([*arguments, "-o", str(tmp_path / "pictures"), *json]) == 0
    told = capsys.readouterr()
    assert "fell back: the CPU takes TensorRT's place: cuDeviceGetCount: got 0 d" in told.err
    assert ("the CPU takes TensorRT's place" in told.out) == bool(json)


@pytest.mark.parametrize("name", ["tensorrt11", "TensorRT", "", "cuda"])
def test_row_49_an_engine_that_is_unknown(name):
    with pytest.raises(UsageError, match=rf"engine: got '{name}', expected one of .*tensorrt") as e:
        make_backend(name)
    assert e.value.code == "E_ENGINE"


def test_row_49_an_engine_that_takes_some_stages_only(backend, library, diffusion_bundle):
    """`ReduceMean` is in `denoise` alone."""
    library.refused = ("ReduceMean",)
    receiver = Receiver(diffusion_bundle, backend=backend)
    reference = Receiver(diffusion_bundle, backend=OnnxRuntimeBackend(threads=1))
    expected, _ = reference.receive(good(), CSI, seed=0, side=SIDE)
    for frame in range(2):
        image, record = receiver.receive(good(), CSI, seed=0, frame=frame, side=SIDE)
        assert record.providers == {
            "decode": "cuda", "condition": "cuda", "denoise": "cpu", "render": "cuda",
        }  # fmt: skip
        reason, between = record.fallbacks
        assert between.startswith(
            "what lies between the stages stays on the host: stage 'denoise' "
        )
        assert reason.startswith("stage 'denoise' runs on the CPU: stage 'denoise', node ")
        assert reason.endswith("[E_GRAPH_LOAD]")
        if frame == 0:
            assert np.abs(image.astype(int) - expected).max() <= 1


def test_row_49_kernels_without_cuda_python(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
    with pytest.raises(UnavailableError, match=r"Run: pip install 'jscc-edge\[cuda\]'") as caught:
        import_cuda()
    assert (caught.value.code, caught.value.exit_status) == ("E_MODULE", 69)


def test_row_50_a_run_out_of_memory_is_repeated(backend, library, receive):
    assert receive(backend)[0].fallbacks == ()
    library.faults["run"] = [WORDS["memory"]]
    (record,) = receive(backend)
    assert (record.providers, record.fallbacks) == ({"decode": "cuda"}, ())


@pytest.mark.parametrize("kind", ["run", "context", "load", "build"])
def test_row_50_memory_that_stays_short_loses_no_image(backend, library, codec, truth, kind):
    """Each is received on the CPU and says so; the device is tried a bounded number of times."""
    receiver = Receiver(codec, backend=backend)
    tries = []
    fails = library.fails
    library.fails = lambda *given: tries.append(given[0]) or fails(*given)
    library.faults[kind] = MEMORY.copy()
    for frame in range(20):
        image, record = receiver.receive(good(), CSI, seed=0, frame=frame)
        assert np.abs(image - truth(good())).max() <= 1
        assert "cpu" in record.providers["decode"]
        assert any(note.endswith("[E_MEMORY]") for note in record.fallbacks)
    # For each of the first images: as it is, without what is idle, without the other engine.
    assert tries.count(kind) <= 3 * MOST_SHORT
    assert len(library.told) <= 2
    library.faults[kind] = []
    _, record = receiver.receive(good(0, KNOWN), CSI, seed=0)  # another size, and its engine
    assert "cuda" in record.providers["decode"]


def test_row_50_a_batch_that_does_not_fit_goes_one_by_one(backend, library, cuda, codec, truth):
    receiver = Receiver(codec, backend=backend)
    receiver.receive(good(), CSI, seed=0)
    held = sum(size for _, size in cuda.driver.blocks.values())
    cuda.driver.memory = 2 * held
    batch = np.stack([good(seed) for seed in range(4)])
    images, records = receiver.receive_batch(batch, [CSI] * 4, seed=0)
    for symbols, image, record in zip(batch, images, records, strict=True):
        assert np.abs(image - truth(symbols)).max() <= 1
        assert record.providers == {"decode": "cuda"}
        assert record.fallbacks == ("ran out of memory: tried again, images one by one",)


def test_row_50_a_device_that_is_lost_loses_no_image(backend, library, cuda, codec, truth):
    """After such a fault every call to it fails in this process."""
    receiver = Receiver(codec, backend=backend)
    receiver.receive(good(), CSI, seed=0)
    kept = engines(backend)
    cuda.driver.status = Status.CUDA_ERROR_ILLEGAL_ADDRESS
    for frame, shape in enumerate([(2, 8, 12), (2, 8, 12), (2, 4, 6)]):
        image, record = receiver.receive(good(0, shape), CSI, seed=0, frame=frame)
        assert np.abs(image - truth(good(0, shape))).max() <= 1
        assert record.providers == {"decode": "cuda, cpu"}
        reason, between = record.fallbacks
        assert between.startswith("what lies between the stages stays on the host: ")
        assert reason.startswith(
            "stage 'decode' runs on the CPU: device 'NVIDIA Fake': got CUDA_ERROR_"
        )
    assert engines(backend) == kept


def test_row_50_kernels_give_back_what_they_took():
    cuda = make_cuda()
    with Device(cuda) as device:
        kernels = ArrayKernels(device, KernelLoader(cuda, device))
        for _ in range(3):
            cuda.driver.failures["cuMemAlloc"] = Status.CUDA_ERROR_OUT_OF_MEMORY
            with pytest.raises(UnavailableError, match="expected enough memory") as caught:
                kernels.unpack(good())
            assert caught.value.code == "E_MEMORY"
            assert cuda.driver.blocks == {}


def flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def swap(path):
    """Another stage's engine under this one's name, as a cache by names of nodes would take it."""
    path.write_bytes(path.read_bytes().replace(b'"graph": "', b'"graph": "0', 1))


DAMAGES = {
    "truncated": lambda path: os.truncate(path, path.stat().st_size - 1),
    "empty": lambda path: os.truncate(path, 0),
    "a flipped bit": flip,
    "another key": swap,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_row_51_a_damaged_engine_is_built_again(backend, library, receive, said, damage):
    receive(backend)
    whole = {name: (backend.folder / name).read_bytes() for name in engines(backend)}
    for name in whole:
        DAMAGES[damage](backend.folder / name)
    said.clear()
    (record,) = receive(backend)
    assert record.providers == {"decode": "cuda"}
    for reason in record.fallbacks:
        assert reason.startswith("stage 'decode': an engine is built again, since engine ")
        assert reason in said
    assert len(record.fallbacks) == len(whole) == 2
    assert sum("building an engine for " in line and line.endswith(" …") for line in said) == 2
    assert sum(" done in " in line for line in said) == 2
    assert engines(backend) == sorted(whole)
    assert receive(backend)[0].fallbacks == ()


def test_row_51_engines_of_another_user(backend, library, receive):
    """Neither used nor removed, nor written over."""
    receive(backend)
    built = len(library.told)
    for name in engines(backend):
        give_away(backend.folder / name)
    (record,) = receive(backend)
    assert len(library.told) == 2 * built
    assert all(reason.endswith("[E_ENGINE_OWNER]") for reason in record.fallbacks)


def give_away(path):
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    os.chown(path, 4711, -1)


@pytest.mark.parametrize("fault", ["mode", "owner", "link"])
def test_row_51_a_folder_that_is_not_ours_alone(backend, library, receive, tmp_path, fault):
    receive(backend)
    before = {name: (backend.folder / name).read_bytes() for name in engines(backend)}
    if fault == "mode":
        backend.folder.chmod(0o777)
    elif fault == "owner":
        give_away(backend.folder)
    else:
        backend.folder.rename(tmp_path / "elsewhere")
        backend.folder.symlink_to(tmp_path / "elsewhere")
    (record,) = receive(backend)
    assert record.providers == {"decode": "cuda"}
    codes = {"mode": "E_ENGINE_MODE", "owner": "E_ENGINE_OWNER", "link": "E_ENGINE_FILETYPE"}
    assert record.fallbacks[0].startswith("stage 'decode': kept engines are not used, since ")
    assert all(reason.endswith(f"[{codes[fault]}]") for reason in record.fallbacks)
    assert {name: (backend.folder / name).read_bytes() for name in engines(backend)} == before


@pytest.mark.parametrize("change", ["library", "device", "tf32"])
def test_row_51_a_mismatch_builds_again_and_says_why(
    backend, library, cuda, receive, said, monkeypatch, change
):
    receive(backend)
    said.clear()
    if change == "library":
        monkeypatch.setattr(library, "__version__", "10.4.0")
    elif change == "device":
        cuda.driver.capability = (8, 6)
        install(monkeypatch, library, cuda)  # as a new process finds it
    else:
        object.__setattr__(backend, "tf32", True)
    (record,) = receive(backend)
    assert (record.providers, record.fallbacks) == ({"decode": "cuda"}, ())
    here = {
        "library": "tensorrt 10.4.0 for sm_89 NVIDIA Fake",
        "device": "tensorrt 10.3.0 for sm_86 NVIDIA Fake",
        "tf32": "tensorrt 10.3.0 for sm_89 NVIDIA Fake with TF32",
    }
    assert said[0] == (
        "stage 'decode': engines that are kept are of tensorrt 10.3.0 for sm_89 NVIDIA Fake; here "
        f"is {here[change]}"
    )
    assert said[1].endswith(" …")
    assert " done in " in said[2]
    assert not any(line.startswith("stage 'decode': engines that") for line in said[1:])


@pytest.mark.parametrize("words", ["version", "device", "plan"])
def test_row_51_what_the_library_itself_refuses(backend, library, receive, words):
    """A driver that was changed under an engine shows here only."""
    receive(backend)
    library.faults["load"] = [WORDS[words]]
    (record,) = receive(backend)
    (reason,) = record.fallbacks
    assert reason.startswith("stage 'decode': an engine is built again, since ")
    assert WORDS[words][:60] in reason
    assert receive(backend)[0].fallbacks == ()


# A process as a supervisor starts it, with stand-ins for the libraries. What it does comes last.
PROCESS = """
import os, resource, signal, sys
from pathlib import Path
from fake_tensorrt import FakeTensorRt, make_device
import numpy as np
from jscc.runtime.backends.tensorrt import TensorRtBackend
from jscc.runtime.bundle import Bundle
from jscc.runtime.csi import Csi
from jscc.runtime.noise import PhiloxNoise
from jscc.runtime.meanwhile import MeanwhileReceiver
from jscc.runtime.receiver import Receiver

class Noise(PhiloxNoise):
    pass

cuda = make_device()
library = FakeTensorRt(cuda)
sys.modules.update({"tensorrt": library, "tensorrt_rtx": None})
sys.modules.update({"cuda.bindings.driver": cuda.driver, "cuda.bindings.nvrtc": cuda.nvrtc})
bundle, folder = Bundle.open(Path(sys.argv[1])), Path(sys.argv[2])
said = []
backend = TensorRtBackend(threads=1, folder=folder, tell=said.append)

def die(*given, **named):
    os.kill(os.getpid(), signal.SIGKILL)

def receive():
    symbols = np.exp(1j * np.arange(192).reshape(2, 8, 12)).astype(np.complex64)
    # No kernels are compiled in such a process, and a noise of its own needs none.
    receiver = Receiver(bundle, backend=backend, noise=Noise())
    _, record = receiver.receive(symbols, Csi(7.0), seed=0)
    own = "what lies between the stages stays on the host: the noise is the caller's own"
    said = [each for each in record.fallbacks if each != own]
    print(record.providers["decode"], *said, sep="\\n")
"""


@pytest.fixture
def process(codec, tmp_path):
    """Runs a process with `PROCESS` and more; what it printed, and how it ended."""

    def call(code, folder=None):
        paths = os.pathsep.join(path for path in sys.path if path)
        command = [sys.executable, "-c", PROCESS + code, codec.path, folder or tmp_path / "engines"]
        ran = subprocess.run(
            command, env={"PYTHONPATH": paths, "PATH": os.defpath}, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert ran.returncode <= 0, ran.stderr
        return ran.returncode, ran.stdout.splitlines()

    return call


CRASH = "library.fails = lambda kind, *given: kind == 'load' and os.abort()\n"
FULL = "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"  # no file may hold a byte


@pytest.mark.parametrize("disk", ["", FULL], ids=["roomy", "full"])
def test_row_51_an_engine_that_crashes_the_library_does_so_once(process, tmp_path, disk):
    """A disk that is full must not take away the memory of it."""
    (tmp_path / "engines").mkdir(mode=0o700)
    endings = [process(disk + CRASH + "receive()\n") for _ in range(3)]
    assert [status for status, _ in endings] == [-signal.SIGABRT, 0, 0]
    for _, (provider, reason) in endings[1:]:
        assert provider == "cpu"
        assert "ended by loading it, expected one that loads. Update the library" in reason
        assert reason.endswith("[E_ENGINE_CRASH]")


def test_row_51_a_full_disk_costs_the_cache_only(process, tmp_path):
    (tmp_path / "engines").mkdir(mode=0o700)
    for _ in range(2):
        status, (provider, *reasons) = process(FULL + "receive()\n")
        assert (status, provider) == (0, "cuda")
        assert len(reasons) == 2  # of the self-test's size, and of the image's
        for reason in reasons:
            assert reason.startswith("stage 'decode': its engine is not kept: output ")
            assert reason.endswith("[E_DISK_FULL]")
        assert list((tmp_path / "engines").iterdir()) == []
    assert process("receive()\n") == (0, ["cuda"])
    assert len(list((tmp_path / "engines").glob("*.engine"))) == 2


def test_row_51_a_crash_while_another_process_loads_is_remembered(process, backend, receive):
    receive(backend)
    code = """
from jscc.runtime.tensorrt.cache import EngineCache
with EngineCache(folder).loading(min(folder.glob("*.engine")).name):
    os.abort()
"""
    with EngineCache(backend.folder).loading(engines(backend)[0]):
        assert process(code) == (-signal.SIGABRT, [])
    (record,) = receive(backend)
    assert record.providers == {"decode": "cpu"}
    (reason,) = record.fallbacks
    assert reason.endswith("[E_ENGINE_CRASH]")


def cubin_cache(folder):
    """One process' first use of a kernel; what it compiled, and what it noted."""
    cuda = make_cuda()
    with Device(cuda) as device:
        loader = KernelLoader(cuda, device, CubinCache(folder))
        for entry in entries_of("unpack"):
            assert loader.function("unpack", entry) == ("unpack", entry)
    return len(cuda.nvrtc.programs), loader.notes


@pytest.mark.parametrize("damage", [*DAMAGES, "owner", "folder's owner", "folder's mode"])
def test_row_51_kernels_are_compiled_again(tmp_path, damage):
    folder = tmp_path / "kernels"
    assert cubin_cache(folder) == (1, ())
    (path,) = folder.iterdir()
    whole = path.read_bytes()
    if damage == "another key":
        path.write_bytes(whole.replace(b"unpack", b"repack", 1))
    elif damage in DAMAGES:
        DAMAGES[damage](path)
    elif damage == "folder's mode":
        folder.chmod(0o770)
    else:
        give_away(path if damage == "owner" else folder)
    compiled, notes = cubin_cache(folder)
    assert compiled == 1
    assert notes[0].startswith("cache of kernels: ")
    if damage in DAMAGES:
        assert path.read_bytes() == whole
        assert cubin_cache(folder) == (0, ())


def test_row_51_kernels_on_a_full_disk(tmp_path, process):
    code = """
from fake_cuda import make_cuda
from jscc.runtime.device.cubins import CubinCache
from jscc.runtime.device.device import Device
from jscc.runtime.device.loader import KernelLoader
cuda = make_cuda()
with Device(cuda) as device:
    loader = KernelLoader(cuda, device, CubinCache(folder))
    print(loader.function("unpack", "unpack"), *loader.notes, sep="\\n")
"""
    folder = tmp_path / "kernels"
    status, (function, note) = process(FULL + code, folder)
    assert (status, function) == (0, "('unpack', 'unpack')")
    assert note.startswith("cache of kernels: output ")
    assert note.endswith("[E_DISK_FULL]")
    assert list(folder.iterdir()) == []


def test_row_52_a_build_is_announced_and_other_sizes_go_on(backend, library, codec, truth, said):
    receiver = Receiver(codec, backend=backend)
    receiver.receive(good(), CSI, seed=0)
    said.clear()
    started, served = threading.Event(), threading.Event()

    def minutes():
        started.set()
        assert served.wait(60)

    library.building = minutes
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(receiver.receive, good(0, (2, 4, 6)), CSI, seed=0)
        assert started.wait(60)
        assert said == ["stage 'decode': building an engine for batch 1, height 16, width 24 …"]
        for frame in range(5):
            image, record = receiver.receive(good(), CSI, seed=0, frame=frame)
            assert np.abs(image - truth(good())).max() <= 1
            assert record.providers == {"decode": "cuda"}
        assert not waiting.done()
        served.set()
        assert waiting.result(60)[1].providers == {"decode": "cuda"}
    assert "done in" in said[-1]


def test_row_52_a_receiver_is_there_when_it_can_decode(backend, library, codec):
    """Its engine is built and has passed the self-test; the image of that size waits for none."""
    receiver = Receiver(codec, backend=backend)
    built = len(library.told)
    assert built == library.loaded == 1
    library.faults["build"] = [WORDS["tactic"]] * 9
    _, record = receiver.receive(good(0, KNOWN), CSI, seed=0)
    assert (record.providers, record.fallbacks) == ({"decode": "cuda"}, ())
    assert len(library.told) == built


def test_row_52_the_cpu_serves_meanwhile_and_after_a_kill(
    backend, codec, truth, tmp_path, monkeypatch
):
    """What is killed half-way leaves no engine, and every record says so; the next start has it."""
    gate, said = Gate(tmp_path / "gate"), Said()
    monkeypatch.setattr(meanwhile, "command_line", gate.command_line)
    backend = dataclasses.replace(backend, tell=said)

    def receive(receiver, level):
        image, record = receiver.receive(good(), CSI, seed=0)
        assert np.abs(image - truth(good())).max() <= level
        return record.providers["decode"], record.fallbacks

    with MeanwhileReceiver(codec, backend=backend) as receiver:
        said.wait_for("jscc build: decode for sm_89 NVIDIA Fake, 1 of 1 …")
        provider, (note,) = receive(receiver, 0)
        assert (provider, note.partition(", ")[0]) == ("cpu", "engine tensorrt: being built")
        os.kill(receiver._exchange._child.pid, signal.SIGKILL)
        assert receiver.wait(120)
        provider, (note,) = receive(receiver, 0)
        assert provider == "cpu"
        assert "since jscc build: got signal SIGKILL" in note
        assert note.endswith("[E_ENGINE_BUILD]")
    assert engines(backend) == []
    gate.open()
    with MeanwhileReceiver(codec, backend=backend, shapes=["32x48"]) as receiver:
        assert receiver.wait(120)
        assert receive(receiver, 1) == ("cuda", ())


KILLS = {
    "in the build": "library.building = die\n",
    "in the file": """
real = os.fsync
def die_in_a_file(descriptor):
    if os.readlink(f"/proc/self/fd/{descriptor}").endswith(".tmp"):
        die()
    real(descriptor)
os.fsync = die_in_a_file
""",
    "before its name": "os.replace = die\n",
}


@pytest.mark.parametrize("kill", KILLS)
def test_row_52_a_process_killed_half_way_leaves_no_engine(process, tmp_path, kill):
    """Nobody takes what it left for an engine, and it goes when it is old."""
    folder = tmp_path / "engines"
    assert process(KILLS[kill] + "receive()\n") == (-signal.SIGKILL, [])
    assert list(folder.glob("*.engine")) == []
    left = [path for path in folder.iterdir() if path.name.endswith(".tmp")]
    assert len(left) == int(kill != "in the build")
    for path in left:
        os.utime(path, (0, 0))
    assert process("receive()\n") == (0, ["cuda"])
    names = [path.name for path in folder.iterdir() if path.suffix != ".timings"]
    assert len(names) == 2
    assert all(name.endswith(".engine") for name in names)


def test_row_52_a_build_that_is_killed_again_and_again(process, tmp_path, codec):
    """Too little memory on the machine, mostly: the CPU takes that size, and only that one."""
    code = "library.building = lambda: 'height 32, width 48' in said[-1] and die()\n"
    folder = tmp_path / "engines"
    endings = [process(code + "receive()\n") for _ in range(4)]
    assert [status for status, _ in endings] == [-signal.SIGKILL] * MOST_ENDS + [0] * 2
    for _, (provider, reason) in endings[MOST_ENDS:]:
        assert provider == "cuda, cpu"  # the self-test's size has its engine
        assert reason.startswith("stage 'decode' runs on the CPU for batch 1, height 32, width 48")
        assert "ended by building it, expected it built. Free memory and run jscc build" in reason
        assert reason.endswith("[E_ENGINE_KILLED]")
    assert len(list(folder.glob("*.engine"))) == 1
    build = """
from jscc.runtime.commands.build import main
print(main([sys.argv[1], "--shapes", "32x48", "--stage", "decode", "-o", sys.argv[2]]))
"""
    status, lines = process(build)
    assert (status, lines[-1]) == (0, "0")
    assert process("receive()\n") == (0, ["cuda"])

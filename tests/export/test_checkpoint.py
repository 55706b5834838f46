"""Checkpoints: what torch.save and safetensors wrote comes back bit for bit, and lazily."""

import argparse
import contextlib
import gc
import hashlib
import io
import os
import pathlib
import pickle
import re
import struct
import subprocess
import sys
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from jscc.export.checkpoint import read_checkpoint
from jscc.export.pickles import Global
from jscc.export.tensor_file import StoredTensors
from jscc.export.torch_pickle import TorchMeanings
from jscc.runtime.errors import CheckpointError, JsccError, StorageError
from jscc.runtime.machine import peak_rss_mib

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "golden" / "diffjscc"
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"no golden vectors at {GOLDEN}")
BESIDE = (
    *("epoch", "global_step", "pytorch-lightning_version"),
    *("callbacks", "optimizer_states", "lr_schedulers"),
)
LAYOUT_ROOTS = {
    "'model', 'step'": {"model": {"a": torch.zeros(1)}, "step": 1},
    "'weights', 'scale'": {"weights": {"a": torch.zeros(1)}, "scale": torch.zeros(1)},
    "a dict with the keys none": {},
    "got a list": [torch.zeros(1)],
    "'state_dict' is a int": {"state_dict": 5},
    "'state_dict' is empty": {"state_dict": {}},
    "no tensors": {"state_dict": {"a": 1}},
    "whose keys are not all text": {1: torch.zeros(1)},
}


def tensors() -> dict[str, torch.Tensor]:
    """One tensor of every kind that checkpoints hold."""
    generator = torch.Generator().manual_seed(1)
    base = torch.randn(6, 8, generator=generator)
    whole = {
        str(dtype): torch.randint(0, 100, (2, 3), generator=generator).to(dtype)
        for dtype in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
    }
    floating = {
        str(dtype): torch.randn(3, 2, generator=generator).to(dtype)
        for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    }
    return {
        **whole,
        **floating,
        "complex": torch.randn(4, dtype=torch.complex64, generator=generator),
        "float8": torch.randn(4, generator=generator).to(torch.float8_e4m3fn),
        "uint16": torch.tensor([1, 2, 65535], dtype=torch.uint16),
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 4),
        "transposed": base.t(),
        "view": base[2:4, 1:7:2],
        "tied": base,
        "column": base[:, 3],
        "last": base[5, 7],
    }


def save(path: Path, root, *, legacy: bool = False) -> Path:
    torch.save(root, path, _use_new_zipfile_serialization=not legacy)
    return path


def assert_same(found, expected) -> None:
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert found[name].shape == tensor.shape, name
        assert found[name].stride() == tensor.stride() or tensor.numel() <= 1, name
        left, right = (
            each.contiguous().flatten().view(torch.uint8) for each in (found[name], tensor)
        )
        assert torch.equal(left, right), name


@needs_golden
@pytest.mark.parametrize(
    ("folder", "count", "extra"),
    [
        ("tiny-cnn", 1108, ("pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",)),
        ("tiny-cnn-rayleigh", 159, ()),
        ("tiny-swin", 378, ()),
    ],
)
def test_official_layout_loads_whole(folder, count, extra):
    checkpoint = read_checkpoint(GOLDEN / folder)
    assert checkpoint.path == GOLDEN / folder / "model.ckpt"
    assert (len(checkpoint.tensors), checkpoint.container) == (count, "torch-zip")
    assert checkpoint.extra_objects == extra
    assert checkpoint.ignored == BESIDE
    assert checkpoint.sha256 == hashlib.sha256(checkpoint.path.read_bytes()).hexdigest()


@needs_golden
@pytest.mark.parametrize("folder", ["tiny-cnn-rayleigh", "tiny-swin"])
def test_official_layout_equals_torch(folder):
    path = GOLDEN / folder / "model.ckpt"
    expected = torch.load(path, weights_only=True)["state_dict"]
    assert_same(read_checkpoint(path).tensors, expected)


@needs_golden
def test_official_class_keyed_callbacks_do_not_hide_the_weights():
    """Torch refuses this file; with its one class named, torch reads the same tensors."""
    path = GOLDEN / "tiny-cnn" / "model.ckpt"
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    name = "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"
    with torch.serialization.safe_globals([(OrderedDict, name)]):
        expected = torch.load(path, weights_only=True)["state_dict"]
    assert_same(read_checkpoint(path).tensors, expected)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_every_kind_of_tensor_comes_back(tmp_path, legacy):
    expected = tensors()
    if legacy:
        del expected["uint16"], expected["float8"]  # torch cannot write these so
    path = save(tmp_path / "model.pt", {"state_dict": expected}, legacy=legacy)
    checkpoint = read_checkpoint(path)
    assert checkpoint.container == ("torch-legacy" if legacy else "torch-zip")
    assert_same(checkpoint.tensors, expected)
    assert_same(checkpoint.tensors, torch.load(path, weights_only=True)["state_dict"])


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_pickle_protocol(tmp_path, protocol):
    expected = tensors()
    torch.save(expected, tmp_path / "model.pt", pickle_protocol=protocol)
    assert_same(read_checkpoint(tmp_path / "model.pt").tensors, expected)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_module_and_its_optimizer(tmp_path, legacy):
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.ones(1, 3, 5, 5)).sum().backward()
    optimizer.step()
    root = {"state_dict": module.state_dict(), "optimizer_states": [optimizer.state_dict()]}
    checkpoint = read_checkpoint(save(tmp_path / "model.ckpt", root, legacy=legacy))
    assert_same(checkpoint.tensors, module.state_dict())
    assert checkpoint.ignored == ("optimizer_states",)


def test_parameters_are_tensors(tmp_path):
    parameter = nn.Parameter(torch.ones(2, 2))
    checkpoint = read_checkpoint(save(tmp_path / "model.pt", {"a": parameter}))
    assert torch.equal(checkpoint.tensors["a"], torch.ones(2, 2))
    assert not checkpoint.tensors["a"].requires_grad


def test_names_lose_a_common_module_prefix(tmp_path):
    path = save(tmp_path / "model.pt", {"module.a": torch.ones(1), "module.b": torch.ones(1)})
    assert list(read_checkpoint(path).tensors) == ["a", "b"]
    path = save(tmp_path / "mixed.pt", {"module.a": torch.ones(1), "b": torch.ones(1)})
    assert list(read_checkpoint(path).tensors) == ["module.a", "b"]


def test_what_is_no_tensor_is_listed(tmp_path):
    path = save(tmp_path / "model.pt", {"a": torch.ones(1), "_extra": None, "epoch": 3})
    assert read_checkpoint(path).ignored == ("_extra", "epoch")


@pytest.mark.parametrize("got", LAYOUT_ROOTS)
def test_nothing_is_guessed_about_other_layouts(tmp_path, got):
    with pytest.raises(CheckpointError, match=got) as caught:
        read_checkpoint(save(tmp_path / "model.pt", LAYOUT_ROOTS[got]))
    assert caught.value.code == "E_CKPT_LAYOUT"


def test_harmless_objects_are_left_out_and_listed(tmp_path):
    root = {
        "state_dict": {"a": torch.ones(2)},
        "hyper_parameters": argparse.Namespace(lr=np.float64(0.1), out=pathlib.PurePosixPath("x")),
        "rng": np.random.default_rng(0),
        "shape": torch.Size([2, 3]),
        "device": torch.device("cpu"),
        "tags": {"a", "b"},
    }
    checkpoint = read_checkpoint(save(tmp_path / "model.pt", root))
    assert list(checkpoint.tensors) == ["a"]
    assert {"argparse.Namespace", "numpy.dtype", "torch.device"} <= set(checkpoint.extra_objects)
    assert "pathlib.PurePosixPath" in checkpoint.extra_objects
    assert checkpoint.ignored == ("hyper_parameters", "rng", "shape", "device", "tags")


def test_safetensors(tmp_path):
    expected = {name: tensor.contiguous().clone() for name, tensor in tensors().items()}
    del expected["complex"]
    save_file(expected, tmp_path / "weights.bin", {"format": "pt"})
    checkpoint = read_checkpoint(tmp_path / "weights.bin")
    assert (checkpoint.container, checkpoint.ignored) == ("safetensors", ())
    assert_same(checkpoint.tensors, expected)


def test_a_folder_means_its_weights(tmp_path):
    save(tmp_path / "model.ckpt", {"a": torch.zeros(1)})
    assert read_checkpoint(tmp_path).container == "torch-zip"
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    assert read_checkpoint(tmp_path).container == "safetensors"
    with pytest.raises(CheckpointError, match=r"got a folder without model\.safetensors or"):
        read_checkpoint(tmp_path.parent)


def test_each_look_up_reads_a_tensor_of_its_own(tmp_path):
    path = save(tmp_path / "model.pt", {"a": torch.ones(3), "b": torch.ones(3)})
    found = read_checkpoint(path).tensors
    found["a"].zero_()
    assert torch.equal(found["a"], torch.ones(3))
    with pytest.raises(KeyError):
        found["c"]


def test_a_flipped_bit_in_a_weight_is_noticed(tmp_path):
    path = save(tmp_path / "model.pt", {"a": torch.full((1000,), 7.0)})
    data = bytearray(path.read_bytes())
    data[data.index(struct.pack("<f", 7.0) * 10) + 1000] ^= 1
    path.write_bytes(data)
    checkpoint = read_checkpoint(path)
    with pytest.raises(CheckpointError, match=r"tensor 'a': got CRC-32 [0-9a-f]{8}") as caught:
        checkpoint.tensors["a"]
    assert caught.value.code == "E_CKPT_CORRUPT"


def test_a_flipped_bit_in_the_pickle_is_noticed(tmp_path):
    path = save(tmp_path / "model.pt", {"weight_a": torch.ones(3)})
    path.write_bytes(path.read_bytes().replace(b"weight_a", b"weight_b"))
    with pytest.raises(CheckpointError, match=r"data\.pkl: got CRC-32") as caught:
        read_checkpoint(path)
    assert caught.value.code == "E_CKPT_CORRUPT"


def test_files_without_checksums_load(tmp_path):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        path = save(tmp_path / "model.pt", {"a": torch.ones(3)})
    finally:
        torch.serialization.set_crc32_options(before)
    assert torch.equal(read_checkpoint(path).tensors["a"], torch.ones(3))


def test_a_file_that_changes_under_us_is_noticed(tmp_path):
    path = save(tmp_path / "model.pt", {"a": torch.ones(100_000)})
    checkpoint = read_checkpoint(path)
    os.truncate(path, 1000)
    for read in (lambda: checkpoint.tensors["a"], lambda: checkpoint.sha256):
        with pytest.raises(CheckpointError, match=r"end of the file|that changed") as caught:
            read()
        assert caught.value.code in ("E_CKPT_TRUNCATED", "E_CKPT_CHANGED")


def test_a_file_that_is_replaced_is_still_the_old_one(tmp_path):
    path = save(tmp_path / "model.pt", {"a": torch.ones(3)})
    checkpoint = read_checkpoint(path)
    save(tmp_path / "new.pt", {"a": torch.zeros(3)}).replace(path)
    assert torch.equal(checkpoint.tensors["a"], torch.ones(3))


def test_links_are_followed_and_other_kinds_refused(tmp_path):
    path = save(tmp_path / "blob", {"a": torch.ones(3)})
    (tmp_path / "model.ckpt").symlink_to(path)
    assert list(read_checkpoint(tmp_path).tensors) == ["a"]
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="got a pipe") as caught:
        read_checkpoint(tmp_path / "pipe")
    assert caught.value.code == "E_CKPT_FILETYPE"
    with pytest.raises(CheckpointError, match="got a device"):
        read_checkpoint(Path("/dev/null"))
    for missing in (tmp_path / "missing", path / "below", Path("nul\0")):
        with pytest.raises(CheckpointError, match="got no such file") as caught:
            read_checkpoint(missing)
        assert caught.value.code == "E_CKPT_NOT_FOUND"
    with pytest.raises(StorageError, match="got File name too long") as unreadable:
        read_checkpoint(tmp_path / ("x" * 300))
    assert unreadable.value.code == "E_IO"


def test_no_descriptor_is_left_open(tmp_path):
    path = save(tmp_path / "model.pt", {"a": torch.ones(3)})
    legacy = save(tmp_path / "old.pt", {"a": torch.ones(3)}, legacy=True)
    gc.collect()  # what earlier tests left behind must not go while we count
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        assert read_checkpoint(path).tensors["a"].sum() == 3
        assert read_checkpoint(legacy).tensors["a"].sum() == 3
    assert len(os.listdir("/proc/self/fd")) == before


def test_torchscript_is_a_program(tmp_path):
    with zipfile.ZipFile(tmp_path / "model.pt", "w") as archive:
        for name in ("model/data.pkl", "model/constants.pkl", "model/version"):
            archive.writestr(name, b"N.")
    with pytest.raises(CheckpointError, match="got a TorchScript archive") as caught:
        read_checkpoint(tmp_path / "model.pt")
    assert caught.value.code == "E_CKPT_FORMAT"


def test_big_endian_files_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "model.pt", "w") as archive:
        archive.writestr("model/data.pkl", b"}.")
        archive.writestr("model/byteorder", b"big")
    with pytest.raises(CheckpointError, match="not little-endian") as caught:
        read_checkpoint(tmp_path / "model.pt")
    assert caught.value.code == "E_CKPT_FORMAT"


def test_files_beyond_4_gib(tmp_path):
    """Sparse, with zip64 numbers everywhere, as the published 9.9 GB files have them."""
    count = 5 << 28
    path = tmp_path / "model.ckpt"
    root = {"state_dict": {"big": Stored("0", count), "a": Stored("1", 3)}}
    entries = {"m/data.pkl": pickled(root), "m/data/0": 4 * count, "m/data/1": b"\0\0\x80?" * 3}
    entries["m/version"] = b"3\n"
    write_zip64(path, entries)
    checkpoint = read_checkpoint(path)
    assert torch.equal(checkpoint.tensors["a"], torch.ones(3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = torch.load(path, mmap=True, weights_only=True)  # the file is what we say it is
    assert torch.equal(loaded["state_dict"]["a"], torch.ones(3))


class Stored:
    """Pickles as a float32 tensor whose elements lie in the entry ``data/KEY``."""

    def __init__(self, key: str, count: int):
        self.key, self.count = key, count

    def __reduce__(self):
        view = (Storage(self), 0, (self.count,), (1,), False, OrderedDict())
        return torch._utils._rebuild_tensor_v2, view


class Storage:
    """Pickles as the persistent id of a tensor's storage."""

    def __init__(self, of: Stored):
        self.identity = ("storage", torch.FloatStorage, of.key, "cpu", of.count)


class StoragePickler(pickle.Pickler):
    """Writes `Storage` objects as torch does."""

    def persistent_id(self, obj):
        return obj.identity if isinstance(obj, Storage) else None


def pickled(root) -> bytes:
    memory = io.BytesIO()
    StoragePickler(memory, 2).dump(root)
    return memory.getvalue()


def write_zip64(path: Path, entries: dict[str, bytes | int]) -> None:
    """A stored zip; an entry given as a number is that many zeros, which take no room."""
    directory = b""
    with path.open("wb") as file:
        for name, content in entries.items():
            raw, offset = name.encode(), file.tell()
            size = content if isinstance(content, int) else len(content)
            numbers = struct.pack("<HH3Q", 1, 24, size, size, offset)
            file.write(
                struct.pack(
                    "<4s5H3L2H", b"PK\3\4", 45, 0, 0, 0, 0, 0, *[2**32 - 1] * 2, len(raw), 20
                )
            )
            file.write(raw + struct.pack("<HH2Q", 1, 16, size, size))
            if isinstance(content, int):
                file.seek(content, os.SEEK_CUR)
            else:
                file.write(content)
            directory += struct.pack(
                "<4s6H3L5H2L",
                b"PK\1\2",
                45,
                45,
                0,
                0,
                0,
                0,
                0,
                *[2**32 - 1] * 2,
                len(raw),
                len(numbers),
                0,
                0,
                0,
                0,
                2**32 - 1,
            )
            directory += raw + numbers
        begin = file.tell()
        file.write(directory)
        count = len(entries)
        file.write(
            struct.pack(
                "<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, len(directory), begin
            )
        )
        file.write(struct.pack("<4sLQL", b"PK\6\7", 0, begin + len(directory), 1))
        file.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, *[2**16 - 1] * 2, *[2**32 - 1] * 2, 0))


PEAK = """
import sys, torch
from pathlib import Path
from torch import nn
from jscc.export.checkpoint import load_into, read_checkpoint, select
from jscc.runtime.machine import peak_rss_mib
torch.set_num_threads(1)
torch.aminmax(torch.ones(10).half().float())
checkpoint = read_checkpoint(Path(sys.argv[1]))
with torch.device("meta"):
    module = nn.ModuleList(nn.Linear(1024, 1024, bias=False) for _ in range(8))
before = peak_rss_mib()
load_into(module, select(checkpoint.tensors, "net."), where="test")
print(peak_rss_mib() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(peak_rss_mib() is None, reason="this system does not tell a peak")
def test_only_the_tensors_asked_for_take_memory(tmp_path):
    """32 MiB are kept of a file with as much that is not and 256 MiB of optimizer states."""
    kinds = (torch.float32, torch.float16)
    state = {
        f"{net}.{i}.weight": torch.ones(1024, 1024, dtype=kinds[i % 2])
        for net in ("net", "other")
        for i in range(8)
    }
    moments = {i: {"exp_avg": torch.zeros(16, 1024, 1024)} for i in range(4)}
    root = {"state_dict": state, "optimizer_states": [{"state": moments}]}
    path = save(tmp_path / "model.ckpt", root)
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(path)], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < 1.3 * 8 * 4


def name_of(path: str) -> Global:
    return Global(*path.rsplit(".", 1))


@pytest.mark.parametrize(
    "path",
    [
        *("os.system", "posix.system", "nt.system", "builtins.eval", "builtins.exec"),
        *("builtins.getattr", "builtins.__import__", "subprocess.Popen", "runpy.run_path"),
        *("torch.hub.load", "torch.load", "numpy.load", "numpy.testing._private.utils.runstring"),
        *("commands.getoutput", "pickle.loads", "functools.reduce", "operator.attrgetter"),
        *("pip._internal.main", "torch.utils.cpp_extension.load_inline", "importlib.import_module"),
    ],
)
def test_code_is_never_taken_for_an_object(path):
    for allow in ((), (path,)):
        with pytest.raises(CheckpointError, match=f"got a call of '{re.escape(path)}'") as caught:
            TorchMeanings("file", allow).admit(name_of(path))
        assert caught.value.code == "E_CKPT_UNSAFE"


def test_names_that_reach_through_a_module_are_code():
    with pytest.raises(CheckpointError, match=r"got a call of 'helpers\.os\.system'"):
        TorchMeanings("file", ("helpers.os.system",)).admit(Global("helpers", "os.system"))


def test_classes_of_torch_are_unknown_not_unsafe():
    meanings = TorchMeanings("file", ())
    meanings.admit(name_of("torch.nn.modules.linear.Linear"))
    meanings.admit(Global("project.model", "Outer.Inner"))
    with pytest.raises(
        CheckpointError, match=r"torch\.nn\.modules\.linear\.Linear, project\.model"
    ):
        meanings.check_unknown()


def bare_bytes(kind: str) -> bytes:
    """A small file of each container, without checksums that would hide what lies behind."""
    root = {"state_dict": OrderedDict(a=torch.ones(2, 3), b=torch.ones(2)), "hyper": {"x": [1.5]}}
    memory = io.BytesIO()
    if kind == "safetensors":
        return safetensors.torch.save(root["state_dict"])
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(root, memory, _use_new_zipfile_serialization=kind == "torch-zip")
    finally:
        torch.serialization.set_crc32_options(before)
    return memory.getvalue()


BARE = {kind: bare_bytes(kind) for kind in ("torch-zip", "torch-legacy", "safetensors")}
SPLICES = st.lists(
    st.tuples(st.integers(0, 10_000), st.integers(0, 8), st.binary(max_size=8)),
    min_size=1,
    max_size=6,
)


def mutate(data: bytes, splices) -> bytes:
    for at, cut, put in splices:
        at %= len(data) + 1
        data = data[:at] + put + data[at + cut :]
    return data


def read_wholly(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    checkpoint = read_checkpoint(path)
    assert isinstance(checkpoint.tensors, StoredTensors)
    for tensor in checkpoint.tensors.values():
        tensor.double() if not tensor.is_complex() else tensor


@pytest.mark.parametrize("kind", BARE)
@given(splices=SPLICES)
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_mutant_gives_a_checkpoint_or_an_error(tmp_path, kind, splices):
    with contextlib.suppress(JsccError):
        read_wholly(tmp_path / "file", mutate(BARE[kind], splices))


@pytest.mark.parametrize("kind", BARE)
def test_every_truncation_is_an_error(tmp_path, kind):
    data = BARE[kind]
    for size in (*range(100), *range(100, len(data), 7), len(data) - 1):
        with pytest.raises(CheckpointError) as caught:
            read_wholly(tmp_path / "file", data[:size])
        assert caught.value.code in ("E_CKPT_TRUNCATED", "E_CKPT_EMPTY"), size


@given(splices=SPLICES)
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_safetensors_are_read_that_the_library_refuses(tmp_path, splices):
    data = mutate(BARE["safetensors"], splices)
    try:
        read_wholly(tmp_path / "file", data)
    except JsccError:
        return
    assert set(safetensors.torch.load(data)) == set(read_checkpoint(tmp_path / "file").tensors)


@pytest.mark.parametrize(
    ("header", "got"),
    [
        (b"[]", "no object"),  # not reached as a safetensors file
        (b'{"a":1,"a":2}', "no JSON"),
        (b'{"a":NaN}', "no JSON"),
        (b'{"a":' * 100_000, "no JSON"),
        (b'{"a":{}}', "no description of tensor 'a'"),
        (b'{"a":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}', "of type 'F99'"),
        (b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}', "malformed numbers"),
        (b'{"a":{"dtype":"F32","shape":[true],"data_offsets":[0,4]}}', "malformed numbers"),
        (b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}', "of 8 bytes at"),
        (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}', "tensor 'a' at"),
        (b'{"__metadata__":{}}', "4 bytes behind the last tensor"),
    ],
)
def test_malformed_safetensors(tmp_path, header, got):
    path = tmp_path / "file"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    expected = got if header.startswith(b"{") else "expected a torch or safetensors checkpoint"
    with pytest.raises(CheckpointError, match=expected) as caught:
        read_checkpoint(path)
    assert caught.value.code == "E_CKPT_FORMAT"


def test_safetensors_of_another_size(tmp_path):
    path = tmp_path / "file"
    header = b'{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,12]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(11))
    with pytest.raises(CheckpointError, match="got 74 bytes, expected 75") as caught:
        read_checkpoint(path)
    assert caught.value.code == "E_CKPT_TRUNCATED"
    path.write_bytes((10**9).to_bytes(8, "little") + header)
    with pytest.raises(CheckpointError, match="a header of 1000000000 bytes"):
        read_checkpoint(path)

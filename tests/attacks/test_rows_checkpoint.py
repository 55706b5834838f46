"""Rows 1-6 of the fault table: what a hostile or broken checkpoint may and may not do."""

import argparse
import builtins
import functools
import io
import os
import pickle
import subprocess
import sys
import tracemalloc
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from effort import little_effort
from jscc.export.checkpoint import load_into, read_checkpoint
from jscc.export.convert import main as convert
from jscc.runtime.errors import CheckpointError

torch.set_num_threads(1)

HAND_MADE = {  # opcodes that Python's own pickler does not write
    "INST": b"(X\x04\x00\x00\x00true" + b"ios\nsystem\n.",
    "OBJ": b"(cos\nsystem\nX\x04\x00\x00\x00trueo.",
    "GLOBAL of protocol 0": b"cos\nsystem\n(Vtrue\ntR.",
    "STACK_GLOBAL": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.",
    "attribute of a module": b"\x80\x04\x8c\x05torch\x8c\x09os.system\x93\x8c\x04true\x85R.",
    "attribute of a project": b"\x80\x04\x8c\x03abc\x8c\x09os.system\x93\x8c\x04true\x85R.",
    "Python 2": b"c__builtin__\neval\n(X\x01\x00\x00\x001tR.",
    "extension": b"\x80\x02\x82\x01)R.",
    "never called": b"cos\nsystem\n0}.",
    "key of a dict": b"}cposix\nsystem\nK\x01s.",
    "after a harmless class": b"cargparse\nNamespace\n)R}(X\x01\x00\x00\x00acos\nsystem\nub.",
    "behind an unknown class": b"cresearch\nNet\n)R0cos\nsystem\n)R.",
}


class Payload:
    """Unpickles as a call."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def payloads(marker: Path) -> dict[str, object]:
    """Objects that make `marker` when they are unpickled, by the name of what they call."""
    command = f"touch {marker}"
    code = f"open({str(marker)!r}, 'w')"
    return {
        f"{os.system.__module__}.system": Payload(os.system, command),
        "builtins.eval": Payload(eval, code),
        "builtins.exec": Payload(exec, code),
        "subprocess.Popen": Payload(subprocess.Popen, command.split()),
        "builtins.getattr": Payload(getattr, Payload(builtins.__import__, "os"), "system"),
        "builtins.map": Payload(list, Payload(map, functools.partial(os.system), [command])),
        "torch.hub.load": Payload(torch.hub.load, str(marker), "x"),
        "torch.serialization.load": Payload(torch.load, str(marker)),
        "numpy.load": Payload(np.load, str(marker)),
    }


def zipped(pickled: bytes, **options) -> bytes:
    """A zip file as torch.save writes it, around any pickle."""
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", **options) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/data/0", bytes(16))
    return memory.getvalue()


def refuse(path: Path, data: bytes, code: str, match: str = ".") -> str:
    """Hold `data` to being refused with `code` after little effort; gives the message."""
    path.write_bytes(data)
    with little_effort(), pytest.raises(CheckpointError, match=match) as caught:
        list(read_checkpoint(path).tensors.values())
    assert caught.value.code == code
    assert caught.value.exit_status == 65
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_row_01_pickle_payload(tmp_path):
    """Nothing is run, whatever calls it, wherever it hides; the call is named."""
    marker, path = tmp_path / "marker", tmp_path / "model.ckpt"
    places = (
        lambda payload: payload,
        lambda payload: {"state_dict": {"a": torch.ones(2)}, "callbacks": {"x": [payload]}},
        lambda payload: {"state_dict": OrderedDict(a=payload)},
    )
    for name, payload in payloads(marker).items():
        for place in places:
            for options in ({"pickle_protocol": 2}, {"pickle_protocol": 4}):
                for legacy in (False, True):
                    memory = io.BytesIO()
                    torch.save(
                        place(payload),
                        memory,
                        _use_new_zipfile_serialization=not legacy,
                        **options,
                    )
                    message = refuse(path, memory.getvalue(), "E_CKPT_UNSAFE", "got a call of")
                    called = (name, "builtins.__import__", "posix.system")
                    assert any(f"'{each}'" in message for each in called), message
                    assert "weights_only" not in message
    for pickled in HAND_MADE.values():
        message = refuse(path, zipped(pickled), "E_CKPT_UNSAFE")
        assert "weights_only" not in message
    assert not marker.exists()
    assert "research" not in sys.modules


def test_row_02_benign_objects(tmp_path, capsys):
    """Known harmless objects are left out and listed; unknown ones stop, with the way out."""
    path = tmp_path / "model.ckpt"
    state = {"a": torch.ones(2)}
    harmless = {
        "args": argparse.Namespace(rate=0.1, out=Path("x")),
        "score": np.float64(0.5),
        "curve": np.arange(3),
        "state_dict": state,
    }
    torch.save(harmless, path)
    found = read_checkpoint(path)
    assert {"argparse.Namespace", "numpy.dtype"} <= set(found.extra_objects)
    assert list(found.tensors) == ["a"]

    unknown = b"}(X\x05\x00\x00\x00hypercresearch.config\nHyper\n)R}X\x01\x00\x00\x00aK\x01sb"
    unknown += b"X\x03\x00\x00\x00optcother\nOuter\n)R"
    unknown += b"X\x0a\x00\x00\x00state_dict}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n"
    unknown += b"((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00"
    unknown += b"\x00cpuK\x04tQK\x00K\x04\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtRsu."
    message = refuse(path, zipped(unknown), "E_CKPT_EXTRA_OBJECTS", r"research\.config\.Hyper")
    assert "objects of research.config.Hyper, other.Outer, expected tensors" in message
    assert "weights_only" not in message
    command = message.split("python -m jscc.export.convert ")[1].removesuffix(
        " [E_CKPT_EXTRA_OBJECTS]"
    )
    out = tmp_path / "out.safetensors"
    assert convert(command.replace("OUT.safetensors", str(out)).split()) == 0
    assert torch.equal(read_checkpoint(out).tensors["a"], torch.zeros(4))
    assert not {"research", "research.config", "other"} & set(sys.modules)
    capsys.readouterr()


def test_row_03_bombs(tmp_path):
    """Compressed, overlapping and oversold bytes are refused from the directory."""
    path = tmp_path / "model.pt"
    deflated = io.BytesIO()
    with zipfile.ZipFile(deflated, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"N.")
        archive.writestr("archive/data/0", bytes(50_000_000))
    good = zipped(b"}.")
    at = good.rindex(b"PK\1\2")
    oversold = good[: at + 20] + b"\xff\xff\xff\x7f" * 2 + good[at + 28 :]
    tracemalloc.start()
    refuse(path, deflated.getvalue(), "E_CKPT_BOMB", "entry 'archive/data.pkl' compressed")
    refuse(path, oversold, "E_CKPT_BOMB", "over what is stored beside it")
    expanded = {"a": torch.ones(1).expand(1 << 20, 1 << 20)}
    memory = io.BytesIO()
    torch.save(expanded, memory)
    refuse(path, memory.getvalue(), "E_CKPT_BOMB", r"tensor 'a': got shape \(1048576, 1048576\)")
    listed = b"](" + b"K\x01K\x02\x86" * 1000 + b"eq\x00"
    copies = b"0ccollections\nOrderedDict\nh\x00\x85R" * 200
    refuse(path, zipped(listed + copies + b"."), "E_CKPT_FORMAT", "OrderedDict with unknown arg")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 20


def test_row_04_not_a_checkpoint(tmp_path):
    """Each usual accident of a download has a code of its own."""
    path = tmp_path / "model.ckpt"
    memory = io.BytesIO()
    torch.save({"a": torch.ones(100)}, memory)
    whole = memory.getvalue()
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9859655693\n"
    refuse(path, b"", "E_CKPT_EMPTY", "got an empty file")
    refuse(path, pointer, "E_CKPT_LFS_POINTER", "got a git-lfs pointer")
    for page in (b"<!DOCTYPE html><html>", b"\n\n <HTML>", b"\xef\xbb\xbf<?xml version='1.0'?>"):
        refuse(path, page + b" " * 100, "E_CKPT_HTML", "got a web page")
    for size in (2, 5, 100, len(whole) // 2, len(whole) - 1):
        refuse(path, whole[:size], "E_CKPT_TRUNCATED", f"got {size} bytes")
    for data, got in (
        (pickle.dumps({"a": 1}), "a pickle that torch.save did not write"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "an HDF5 file"),
        (b"GGUF" + bytes(100), "a GGUF file"),
        (b"\x93NUMPY" + bytes(100), "a NumPy array"),
        (b"\x1f\x8b\x08" + bytes(100), "a gzip file"),
        (b"7z\xbc\xaf\x27\x1c" + bytes(100), "a 7z archive"),
        (b"PK\x05\x06" + bytes(18), "an empty zip file"),
        (bytes(257) + b"ustar" + bytes(250), "a tar archive"),
        (b"Not Found, sorry", "4e 6f 74 20 46 6f 75 6e"),
        (b"PK\x03\x04" + zipped(b"}.")[4:].replace(b"data.pkl", b"data.txt"), "0 entries named"),
    ):
        refuse(path, data, "E_CKPT_FORMAT", got)


def test_row_05_keys(tmp_path):
    """Ten of each are listed with what was expected; the module stays as it was."""
    module = nn.Sequential(*(nn.Linear(3, 3) for _ in range(15)))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    path = tmp_path / "model.pt"
    torch.save({f"net.{i}.weight": torch.ones(3, 3) for i in range(12)}, path)
    found = read_checkpoint(path).tensors
    with pytest.raises(CheckpointError) as caught:
        load_into(module, found, where="model.pt")
    message = str(caught.value)
    assert "got 30 of 30 missing (0.weight, 0.bias, " in message
    assert "4.bias, … 20 more) and 12 extra (net.0.weight, " in message
    assert "net.9.weight, … 2 more), expected the 30 weights of this model" in message
    torch.save({name: torch.ones(2, *tensor.shape) for name, tensor in before.items()}, path)
    with pytest.raises(CheckpointError) as misshapen:
        load_into(module, read_checkpoint(path).tensors, where="model.pt")
    message = str(misshapen.value)
    assert "got 30 weights of another shape (0.weight: float32[2,3,3] for float32[3,3], " in message
    assert message.count(" for ") == 10
    assert caught.value.code == misshapen.value.code == "E_CKPT_KEYS"
    assert all(torch.equal(before[name], each) for name, each in module.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_row_06_weights_that_are_no_numbers(tmp_path, dtype):
    """NaN, infinity and all zeros are refused by name, unless the caller insists."""
    path = tmp_path / "model.pt"
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    for name, place, value, named in (
        ("0.weight", (1, 2, 0, 0), float("nan"), "0.weight"),
        ("0.bias", (3,), float("inf"), "0.bias"),
        ("1.running_var", (0,), float("-inf"), "1.running_var"),
        ("0.weight", (...,), 0.0, "0.weight"),
    ):
        state = {key: tensor.clone() for key, tensor in module.state_dict().items()}
        state = {k: t.to(dtype) if t.is_floating_point() else t for k, t in state.items()}
        state[name][place] = value
        torch.save(state, path)
        found = read_checkpoint(path).tensors
        target = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        before = target[0].weight.detach().clone()
        with pytest.raises(CheckpointError, match=named.replace(".", r"\.")) as caught:
            load_into(target, found, where="model.pt")
        assert caught.value.code == "E_WEIGHTS_NONFINITE"
        assert torch.equal(target[0].weight, before)
        load_into(target, found, where="model.pt", allow_nonfinite=True)

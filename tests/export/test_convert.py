"""The converter extracts tensors past unknown classes, and never past code."""

import sys
import tracemalloc

import pytest
import safetensors.torch
import torch

from jscc.export.checkpoint import read_checkpoint
from jscc.export.convert import convert, main
from jscc.runtime.errors import CheckpointError, OutputError, StorageError


class Hyper:
    """Somebody's settings."""

    def __init__(self):
        self.rate = 0.1


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A checkpoint with an object of the class ``research.config.Hyper``."""
    monkeypatch.setattr(Hyper, "__module__", "research.config")
    monkeypatch.setitem(sys.modules, "research", type(sys)("research"))
    monkeypatch.setitem(sys.modules, "research.config", type(sys)("research.config"))
    sys.modules["research.config"].Hyper = Hyper
    state = {
        "a": torch.arange(6.0).reshape(2, 3).t(),
        "b": torch.ones(3, dtype=torch.bfloat16),
        "c": torch.tensor(True),
        "d": torch.empty(0, 2),
    }
    torch.save({"state_dict": state, "hyper": Hyper()}, tmp_path / "model.ckpt")
    return tmp_path / "model.ckpt"


def test_the_library_reads_what_was_extracted(source, tmp_path, capsys):
    out = tmp_path / "out.safetensors"
    assert main([str(source), str(out), "--allow", "research.config.Hyper"]) == 0
    expected = torch.load(source, weights_only=False)["state_dict"]
    for found in (safetensors.torch.load_file(out), read_checkpoint(out).tensors):
        assert set(found) == set(expected)
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        assert all(found[name].dtype == expected[name].dtype for name in expected)
    assert "4 tensors; left out research.config.Hyper" in capsys.readouterr().out
    with safetensors.safe_open(out, "pt") as file:
        assert (
            file.metadata()["source_sha256"]
            == read_checkpoint(source, allow=("research.config.Hyper",)).sha256
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.ckpt", "out.safetensors"]


def test_classes_are_allowed_by_their_exact_name(source, tmp_path, capsys):
    out = tmp_path / "out.safetensors"
    for wrong in ([], ["--allow", "Hyper"], ["--allow", "research.*"]):
        assert main([str(source), str(out), *wrong]) == 65
        assert "E_CKPT_EXTRA_OBJECTS" in capsys.readouterr().err
    assert not out.exists()


def test_an_existing_file_is_kept(source, tmp_path):
    out = tmp_path / "out.safetensors"
    out.write_text("mine")
    with pytest.raises(OutputError, match=r"out\.safetensors': got an existing file") as caught:
        convert(source, out, allow=("research.config.Hyper",))
    assert caught.value.code == "E_EXISTS"
    assert out.read_text() == "mine"


def test_no_folder_to_write_in(source, tmp_path):
    with pytest.raises(OutputError, match="got No such file or directory") as caught:
        convert(source, tmp_path / "no" / "out.st", allow=("research.config.Hyper",))
    assert caught.value.code == "E_OUTPUT"


def test_a_full_disk_leaves_nothing(source, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("jscc.export.convert.os.fsync", full)
    with pytest.raises(StorageError, match="got No space left on device") as caught:
        convert(source, tmp_path / "out.st", allow=("research.config.Hyper",))
    assert caught.value.code == "E_DISK_FULL"
    assert [path.name for path in tmp_path.iterdir()] == ["model.ckpt"]


def test_types_without_a_name_are_refused(tmp_path):
    torch.save({"a": torch.ones(2, dtype=torch.complex128)}, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"tensor 'a': got torch\.complex128"):
        convert(tmp_path / "model.pt", tmp_path / "out.st")


def test_one_tensor_at_a_time(tmp_path):
    torch.save({str(i): torch.ones(1 << 18) for i in range(40)}, tmp_path / "model.pt")
    tracemalloc.start()
    convert(tmp_path / "model.pt", tmp_path / "out.st")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 32 << 20  # what Python allocates: buffers of hashing and writing
    assert (tmp_path / "out.st").stat().st_size > 40 << 20

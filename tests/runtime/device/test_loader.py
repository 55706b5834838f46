"""Kernels are compiled once, found again, and compiled again whenever anything differs."""

import os

import pytest

from fake_cuda import Status, make_cuda
from jscc.kernels.sources import KERNELS, entries_of
from jscc.runtime.device import loader as module
from jscc.runtime.device.cubins import CubinCache
from jscc.runtime.device.device import Device
from jscc.runtime.device.loader import KernelLoader
from jscc.runtime.errors import UnavailableError


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache" / "kernels"


def load(cuda, folder, kernel="unpack"):
    """One process' first use; what it compiled and noted."""
    before = len(cuda.nvrtc.programs)
    with Device(cuda) as device:
        loader = KernelLoader(cuda, device, None if folder is None else CubinCache(folder))
        for entry in entries_of(kernel):
            assert loader.function(kernel, entry) == (kernel, entry)
    assert all(program.destroyed for program in cuda.nvrtc.programs)
    return len(cuda.nvrtc.programs) - before, loader.notes


def test_the_second_process_compiles_nothing(folder):
    for kernel in KERNELS:
        assert load(make_cuda(), folder, kernel) == (1, ())
        assert load(make_cuda(), folder, kernel) == (0, ())
    assert len(list(folder.iterdir())) == len(KERNELS)


def test_without_a_cache_each_process_compiles():
    assert load(make_cuda(), None) == (1, ())
    assert load(make_cuda(), None) == (1, ())


def test_one_loader_compiles_a_kernel_once(folder):
    cuda = make_cuda()
    with Device(cuda) as device:
        loader = KernelLoader(cuda, device)
        first = loader.function("to_uint8", "blur")
        assert loader.function("to_uint8", "blur") is first
        loader.function("to_uint8", "to_uint8")
    assert cuda.driver.loaded == ["to_uint8"]


def test_the_compiler_is_told_the_device_and_not_to_contract():
    cuda = make_cuda(capability=(8, 7))
    load(cuda, None)
    assert cuda.nvrtc.options == [[b"--gpu-architecture=sm_87", b"--std=c++17", b"--fmad=false"]]


@pytest.mark.parametrize(
    "other",
    [{"capability": (8, 9)}, {"name": b"Fake H2"}, {"version": 13010}],
    ids=["architecture", "device", "driver"],
)
def test_another_device_or_driver_compiles_again(folder, other):
    load(make_cuda(), folder)
    assert load(make_cuda(**other), folder) == (1, ())
    assert load(make_cuda(), folder) == (0, ())


def test_another_compiler_compiles_again(folder):
    load(make_cuda(), folder)
    newer = make_cuda()
    newer.nvrtc.version = (13, 1)
    assert load(newer, folder) == (1, ())


def test_another_source_compiles_again(folder, monkeypatch):
    load(make_cuda(), folder)
    source = module.source_of("unpack") + "// changed\n"
    monkeypatch.setattr(module, "source_of", lambda kernel: source)
    assert load(make_cuda(), folder) == (1, ())


def test_other_options_compile_again(folder, monkeypatch):
    load(make_cuda(), folder)
    monkeypatch.setattr(module, "options_for", lambda architecture: ("--fmad=true",))
    assert load(make_cuda(), folder) == (1, ())


def damage_bit(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "bit": (damage_bit, "E_CUBIN_HASH"),
    "truncated": (lambda path: os.truncate(path, path.stat().st_size - 5), "E_CUBIN_HASH"),
    "cut in its key": (lambda path: os.truncate(path, 40), "E_CUBIN_KEY"),
    "empty": (lambda path: os.truncate(path, 0), "E_CUBIN_KEY"),
    "huge": (lambda path: os.truncate(path, 1 << 40), "E_CUBIN_SIZE"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_compiled_again_and_mended(folder, damage):
    load(make_cuda(), folder)
    (path,) = folder.iterdir()
    whole = path.read_bytes()
    change, code = DAMAGES[damage]
    change(path)
    compiled, notes = load(make_cuda(), folder)
    assert compiled == 1
    assert len(notes) == 1
    assert code in notes[0]
    assert path.read_bytes() == whole
    assert load(make_cuda(), folder) == (0, ())


def test_a_file_of_another_kernel_is_not_taken(folder):
    load(make_cuda(), folder, "unpack")
    (theirs,) = folder.iterdir()
    load(make_cuda(), folder, "advance")
    (ours,) = set(folder.iterdir()) - {theirs}
    ours.write_bytes(theirs.read_bytes())
    compiled, (note,) = load(make_cuda(), folder, "advance")
    assert compiled == 1
    assert "got another key, expected the one that it is named after" in note


def test_a_link_is_not_followed(folder, tmp_path):
    load(make_cuda(), folder)
    (path,) = folder.iterdir()
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    compiled, notes = load(make_cuda(), folder)
    assert compiled == 1
    assert "E_CUBIN_FILETYPE" in notes[0]
    assert path.is_symlink()  # a link is not written through either


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o777, 0o1777])
def test_a_folder_that_others_reach_is_left_alone(folder, mode):
    load(make_cuda(), folder)
    folder.chmod(mode)
    compiled, notes = load(make_cuda(), folder)
    assert compiled == 1
    (note,) = notes  # neither read nor written, and that is said once
    assert f"got mode {mode:04o}, expected 0700" in note
    assert "E_CUBIN_MODE" in note
    assert not list(folder.glob("*.tmp"))


def test_a_folder_of_another_user_is_left_alone(folder, monkeypatch):
    load(make_cuda(), folder)
    other = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: other)
    compiled, notes = load(make_cuda(), folder)
    assert compiled == 1
    assert f"got user {other - 1}, expected user {other}, this one" in notes[0]


def test_new_folders_are_for_this_user_alone(folder):
    load(make_cuda(), folder)
    assert folder.stat().st_mode & 0o777 == 0o700


def test_where_no_folder_can_be_made_it_still_runs(tmp_path):
    (tmp_path / "file").write_text("")
    compiled, notes = load(make_cuda(), tmp_path / "file" / "cache")
    assert compiled == 1
    assert "E_OUTPUT_FOLDER" in notes[0]


def test_a_full_disk_costs_the_cache_only(folder, monkeypatch):
    def full(path, data, *, force):
        raise UnavailableError("E_DISK_FULL", "output: got 0 bytes free, expected more. Free some.")

    monkeypatch.setattr("jscc.runtime.device.cubins.write_file", full)
    compiled, notes = load(make_cuda(), folder)
    assert compiled == 1
    assert "E_DISK_FULL" in notes[0]
    assert list(folder.iterdir()) == []


def test_a_file_that_the_driver_refuses_is_compiled_again(folder):
    load(make_cuda(), folder)
    cuda = make_cuda()
    cuda.driver.failures["cuModuleLoadData"] = Status.CUDA_ERROR_NO_BINARY_FOR_GPU
    compiled, notes = load(cuda, folder)
    assert compiled == 1
    assert "CUDA_ERROR_NO_BINARY_FOR_GPU" in notes[0]


def test_what_does_not_load_is_not_kept(folder):
    cuda = make_cuda()
    cuda.driver.failures["cuModuleLoadData"] = Status.CUDA_ERROR_INVALID_IMAGE
    with Device(cuda) as device:
        loader = KernelLoader(cuda, device, CubinCache(folder))
        with pytest.raises(UnavailableError, match="got CUDA_ERROR_INVALID_IMAGE"):
            loader.function("unpack", "unpack")
        assert not folder.exists()
        assert loader.function("unpack", "unpack") == ("unpack", "unpack")


def test_the_cache_may_be_deleted_at_any_time(folder):
    load(make_cuda(), folder)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    assert load(make_cuda(), folder) == (1, ())

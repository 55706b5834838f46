"""A bundle appears complete or not at all; what was there stays until then."""

import ctypes
import fcntl
import os
import subprocess
import threading

import pytest

import tiny_bundle
from jscc.runtime import write, writers
from jscc.runtime.bundle import Bundle, write_bundle
from jscc.runtime.errors import BundleError, BusyError, JsccError, OutputError, StorageError


def listed(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def parts():
    return tiny_bundle.codec()


@pytest.mark.parametrize("single_file", [False, True])
def test_nothing_is_left_beside_a_bundle(tmp_path, single_file):
    bundle = tiny_bundle.write_diffusion(tmp_path / "a.jscc", single_file=single_file)
    assert listed(tmp_path) == ["a.jscc"]
    assert (tmp_path / "a.jscc").is_file() == single_file
    assert bundle.path == tmp_path / "a.jscc"
    assert Bundle.open(bundle.path).sha256 == bundle.sha256


@pytest.mark.parametrize("single_file", [False, True])
def test_the_same_parts_give_the_same_bundle(tmp_path, single_file):
    first = tiny_bundle.write_codec(tmp_path / "a.jscc", single_file=single_file)
    second = tiny_bundle.write_codec(tmp_path / "b.jscc", single_file=single_file)
    assert first.sha256 == second.sha256


def test_paths_and_bytes_give_the_same_bundle(tmp_path, parts):
    manifest, files = parts
    (tmp_path / "in").mkdir()
    paths = {}
    for index, (name, data) in enumerate(files.items()):
        paths[name] = tmp_path / "in" / str(index)
        paths[name].write_bytes(data)
    for single_file in (False, True):
        bundle = write_bundle(tmp_path / f"{single_file}", manifest, paths, single_file=single_file)
        assert bundle.sha256 == write_bundle(tmp_path / f"{single_file}2", manifest, files).sha256
    assert all(path.exists() for path in paths.values())


def test_large_files_are_linked_and_small_ones_copied(tmp_path, parts, monkeypatch):
    manifest, files = parts
    source = tmp_path / "decode"
    source.write_bytes(files["graphs/decode.onnx"])
    files = {**files, "graphs/decode.onnx": source}
    write_bundle(tmp_path / "copied.jscc", manifest, files)
    assert source.stat().st_nlink == 1
    monkeypatch.setattr(writers, "LINK_FROM", 1)
    write_bundle(tmp_path / "linked.jscc", manifest, files)
    assert source.stat().st_nlink == 2


def test_a_file_system_without_links_is_copied_to(tmp_path, parts, monkeypatch):
    def fail(*args, **options):
        raise OSError(18, "Invalid cross-device link")

    manifest, files = parts
    source = tmp_path / "decode"
    source.write_bytes(files["graphs/decode.onnx"])
    monkeypatch.setattr(writers, "LINK_FROM", 1)
    monkeypatch.setattr(os, "link", fail)
    bundle = write_bundle(tmp_path / "a.jscc", manifest, {**files, "graphs/decode.onnx": source})
    assert bundle.graph("decode") == files["graphs/decode.onnx"]


def test_a_full_disk_is_no_reason_to_copy(tmp_path, parts, monkeypatch):
    def fail(*args, **options):
        raise OSError(28, "No space left on device")

    manifest, files = parts
    (tmp_path / "in").mkdir()
    source = tmp_path / "in" / "decode"
    source.write_bytes(files["graphs/decode.onnx"])
    monkeypatch.setattr(writers, "LINK_FROM", 1)
    monkeypatch.setattr(os, "link", fail)
    monkeypatch.setattr(os, "statvfs", fail)
    with pytest.raises(StorageError, match="got 0 bytes available"):
        write_bundle(tmp_path / "a.jscc", manifest, {**files, "graphs/decode.onnx": source})
    assert listed(tmp_path) == ["in"]


def test_a_source_that_was_switched_is_copied_from_what_was_open(tmp_path, parts, monkeypatch):
    """The name leads to another file by the time of the link; that one is not taken in."""
    manifest, files = parts
    source, other = tmp_path / "decode", tmp_path / "other"
    source.write_bytes(files["graphs/decode.onnx"])
    other.write_bytes(b"other")
    link = os.link
    monkeypatch.setattr(writers, "LINK_FROM", 1)
    monkeypatch.setattr(os, "link", lambda source, target, **options: link(other, target))
    bundle = write_bundle(tmp_path / "a.jscc", manifest, {**files, "graphs/decode.onnx": source})
    assert bundle.graph("decode") == files["graphs/decode.onnx"]
    assert other.stat().st_nlink == 1


def test_what_is_no_regular_file_is_not_taken_in(tmp_path, parts):
    manifest, files = parts
    (tmp_path / "link").symlink_to("/etc/hostname")
    with pytest.raises(BundleError, match="link: got a link or special file"):
        write_bundle(tmp_path / "a.jscc", manifest, {**files, "SOURCE.md": tmp_path / "link"})
    with pytest.raises(BundleError, match="nowhere: got nothing"):
        write_bundle(tmp_path / "a.jscc", manifest, {**files, "SOURCE.md": tmp_path / "nowhere"})
    assert listed(tmp_path) == ["link"]


def test_bad_names_are_refused_before_anything_is_made(tmp_path, parts):
    manifest, files = parts
    with pytest.raises(BundleError, match=r'the file name "../x"'):
        write_bundle(tmp_path / "a.jscc", manifest, {**files, "../x": b""})
    assert listed(tmp_path) == []


def test_a_bundle_that_would_not_open_is_not_written(tmp_path, parts):
    manifest, files = parts
    with pytest.raises(BundleError, match=r"graphs/decode.onnx: got no graph"):
        write_bundle(tmp_path / "a.jscc", manifest, {**files, "graphs/decode.onnx": b""})
    with pytest.raises(BundleError, match=r"/stages/encode/graph: got 'graphs/encode.onnx'"):
        write_bundle(tmp_path / "a.jscc", manifest, {"SOURCE.md": b""})
    assert listed(tmp_path) == []


def test_what_is_there_stays_unless_it_is_to_be_replaced(tmp_path):
    path = tmp_path / "a.jscc"
    old = tiny_bundle.write_codec(path)
    with pytest.raises(
        OutputError, match=r"a.jscc: got something that is there, expected nothing"
    ) as caught:
        tiny_bundle.write_diffusion(path)
    assert caught.value.code == "E_EXISTS"
    assert Bundle.open(path).sha256 == old.sha256
    new = tiny_bundle.write_diffusion(path, overwrite=True)
    assert Bundle.open(path).sha256 == new.sha256 != old.sha256
    assert listed(tmp_path) == ["a.jscc"]


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("atomic", [False, True])
def test_folders_and_archives_replace_each_other(tmp_path, monkeypatch, first, atomic):
    if not atomic:
        monkeypatch.setattr(write, "_exchange_at_once", lambda left, right: False)
    path = tmp_path / "a.jscc"
    tiny_bundle.write_codec(path, single_file=first)
    new = tiny_bundle.write_diffusion(path, single_file=not first, overwrite=True)
    assert Bundle.open(path).sha256 == new.sha256
    assert listed(tmp_path) == ["a.jscc"]


def test_only_a_bundle_is_replaced(tmp_path):
    for make in ("folder", "file", "fifo"):
        path = tmp_path / make
        if make == "folder":
            path.mkdir()
            (path / "thesis.txt").write_text("years of work")
        elif make == "file":
            path.write_text("years of work")
        else:
            os.mkfifo(path)
        with pytest.raises(OutputError, match=f"{make}: got something that is no bundle"):
            tiny_bundle.write_codec(path, overwrite=True)
    assert (tmp_path / "folder" / "thesis.txt").exists()
    assert listed(tmp_path) == ["fifo", "file", "folder"]


def test_names_are_exchanged_in_one_step(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").write_text("b")
    if not write._exchange_at_once(tmp_path / "a", tmp_path / "b"):
        pytest.skip("this file system has no renameat2(RENAME_EXCHANGE)")
    assert (tmp_path / "b").is_dir()
    with pytest.raises(OSError, match="No such file"):
        write._exchange_at_once(tmp_path / "a", tmp_path / "none")


def test_what_cannot_be_exchanged_is_renamed(tmp_path):
    """EINVAL: a folder and its own parent."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    assert not write._exchange_at_once(tmp_path / "a", tmp_path / "a" / "b")


def test_systems_without_exchange_rename_three_times(tmp_path, monkeypatch):
    class Without:
        def __init__(self, *args, **options):
            pass

    monkeypatch.setattr(ctypes, "CDLL", Without)
    assert not write._exchange_at_once(tmp_path, tmp_path)


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_the_old_comes_back_if_a_rename_fails(tmp_path, monkeypatch, failing):
    path = tmp_path / "a.jscc"
    old = tiny_bundle.write_codec(path)
    monkeypatch.setattr(write, "_exchange_at_once", lambda left, right: False)
    calls, rename = [], os.rename

    def count(left, right):
        calls.append(left)
        if len(calls) == failing:
            raise OSError(28, "No space left on device")
        rename(left, right)

    monkeypatch.setattr(os, "rename", count)
    with pytest.raises(JsccError):
        tiny_bundle.write_diffusion(path, overwrite=True)
    assert Bundle.open(path).sha256 == old.sha256
    assert listed(tmp_path) == ["a.jscc"]


def test_an_interrupt_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(self, manifest):
        raise KeyboardInterrupt

    for kind in (writers.FolderWriter, writers.ArchiveWriter):
        monkeypatch.setattr(kind, "seal", interrupt)
    for single_file in (False, True):
        with pytest.raises(KeyboardInterrupt):
            tiny_bundle.write_codec(tmp_path / "a.jscc", single_file=single_file)
    assert listed(tmp_path) == []


def dead_pid():
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_what_dead_writers_left_is_cleared(tmp_path):
    dead, alive = dead_pid(), os.getppid()
    for pid in (dead, alive, os.getpid()):
        (tmp_path / f".a.jscc.tmp.{pid}").mkdir()
    (tmp_path / f".b.jscc.tmp.{dead}").mkdir()
    (tmp_path / ".a.jscc.tmp.notes").mkdir()
    (tmp_path / ".a.jscc.lock").write_text(f"{dead}\n")
    tiny_bundle.write_codec(tmp_path / "a.jscc")
    kept = [f".a.jscc.tmp.{alive}", ".a.jscc.tmp.notes", f".b.jscc.tmp.{dead}", "a.jscc"]
    assert listed(tmp_path) == sorted(kept)


def test_what_a_dead_writer_put_aside_comes_back(tmp_path):
    old = tiny_bundle.write_codec(tmp_path / "a.jscc")
    os.rename(tmp_path / "a.jscc", tmp_path / f".a.jscc.old.{dead_pid()}")
    with pytest.raises(OutputError, match="got something that is there"):
        tiny_bundle.write_diffusion(tmp_path / "a.jscc")
    assert Bundle.open(tmp_path / "a.jscc").sha256 == old.sha256
    assert listed(tmp_path) == ["a.jscc"]


def test_a_held_lock_names_its_holder(tmp_path):
    with (
        write._locked(tmp_path / "a.jscc"),
        pytest.raises(BusyError, match=f"held by process {os.getpid()}, expected none") as caught,
    ):
        tiny_bundle.write_codec(tmp_path / "a.jscc")
    assert caught.value.code == "E_BUSY"
    assert caught.value.exit_status == 75
    tiny_bundle.write_codec(tmp_path / "a.jscc")


def test_a_lock_that_was_removed_meanwhile_is_taken_anew(tmp_path, monkeypatch):
    found = []

    def once(descriptor, path):
        if not found:
            os.unlink(path)
        found.append(write_is_at(descriptor, path))
        return found[-1]

    write_is_at = write._is_at
    monkeypatch.setattr(write, "_is_at", once)
    tiny_bundle.write_codec(tmp_path / "a.jscc")
    assert found == [False, True]


def test_a_lock_is_let_go_when_taking_it_is_interrupted(tmp_path, monkeypatch):
    def interrupt(descriptor, operation):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", interrupt)
        with pytest.raises(KeyboardInterrupt):
            tiny_bundle.write_codec(tmp_path / "a.jscc")
    tiny_bundle.write_codec(tmp_path / "a.jscc")
    assert listed(tmp_path) == ["a.jscc"]


def test_a_process_of_somebody_else_is_alive(monkeypatch):
    def deny(pid, number):
        raise PermissionError

    monkeypatch.setattr(os, "kill", deny)
    assert write._is_other(12345)


def test_writers_at_once_give_one_whole_bundle(tmp_path, parts):
    outcomes = []

    def run():
        try:
            outcomes.append(write_bundle(tmp_path / "a.jscc", *parts, overwrite=True).sha256)
        except BusyError as error:
            outcomes.append(error.code)

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    identity = Bundle.open(tmp_path / "a.jscc").sha256
    assert set(outcomes) <= {identity, "E_BUSY"}
    assert identity in outcomes
    assert listed(tmp_path) == ["a.jscc"]

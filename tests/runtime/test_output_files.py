"""Output files: whole or absent, never over something, never through a link; errors typed."""

import errno
import os
import stat

import pytest

from jscc.runtime import output_files
from jscc.runtime.errors import OutputError, StorageError
from jscc.runtime.output_files import check_destination, write_file, write_files


def test_the_bytes_arrive_and_nothing_else_is_left(tmp_path):
    write_file(tmp_path / "a.png", b"abc", force=False)
    assert (tmp_path / "a.png").read_bytes() == b"abc"
    assert os.listdir(tmp_path) == ["a.png"]
    assert stat.S_IMODE(os.stat(tmp_path / "a.png").st_mode) & 0o111 == 0


def test_a_file_that_exists_stays_without_force(tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(OutputError, match="got a file that exists, expected a free name") as caught:
        write_file(tmp_path / "a", b"new", force=False)
    assert caught.value.exit_status == 73
    assert (tmp_path / "a").read_bytes() == b"old"
    write_file(tmp_path / "a", b"new", force=True)
    assert (tmp_path / "a").read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a"]


def test_a_file_that_appears_while_writing_stays(tmp_path, monkeypatch):
    """The last check is the link itself: no gap between looking and naming."""
    check = output_files.check_destination

    def check_then_race(path, *, force):
        check(path, force=force)
        path.write_bytes(b"other")

    monkeypatch.setattr(output_files, "check_destination", check_then_race)
    with pytest.raises(OutputError, match="got a file that exists"):
        write_file(tmp_path / "a", b"new", force=False)
    assert (tmp_path / "a").read_bytes() == b"other"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("force", [False, True])
def test_links_and_folders_are_never_written_to(tmp_path, force):
    (tmp_path / "target").write_bytes(b"old")
    (tmp_path / "link").symlink_to("target")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "folder").mkdir()
    for name in ("link", "dangling", "folder"):
        with pytest.raises(OutputError, match="got a link, folder or device"):
            write_file(tmp_path / name, b"new", force=force)
    assert (tmp_path / "target").read_bytes() == b"old"
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("force", [False, True])
def test_a_link_put_there_while_writing_is_not_followed(tmp_path, monkeypatch, force):
    (tmp_path / "target").write_bytes(b"old")
    monkeypatch.setattr(
        output_files, "check_destination", lambda path, *, force: path.symlink_to("target")
    )
    if force:
        write_file(tmp_path / "a", b"new", force=True)
        assert not (tmp_path / "a").is_symlink()
    else:
        with pytest.raises(OutputError, match="got a file that exists"):
            write_file(tmp_path / "a", b"new", force=False)
    assert (tmp_path / "target").read_bytes() == b"old"


def test_no_folder(tmp_path):
    with pytest.raises(OutputError, match=r"got no folder '.*nowhere', expected one"):
        check_destination(tmp_path / "nowhere" / "a", force=False)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_write_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="without write permission"):
        check_destination(tmp_path / "a", force=False)


def test_a_name_that_is_too_long(tmp_path):
    with pytest.raises(OutputError, match="File name too long"):
        write_file(tmp_path / ("a" * 300), b"x", force=False)


@pytest.mark.parametrize(
    ("number", "error", "code", "words"),
    [
        (errno.ENOSPC, StorageError, "E_DISK_FULL", "bytes free, expected room for 3"),
        (errno.EDQUOT, StorageError, "E_DISK_FULL", "bytes free, expected room for 3"),
        (errno.EIO, StorageError, "E_IO", "expected to write 3 bytes"),
        (errno.EROFS, OutputError, "E_OUTPUT", "Read-only file system"),
    ],
)
@pytest.mark.parametrize("call", ["open", "fsync", "link", "replace"])
def test_a_failure_at_any_call_leaves_the_old_file(
    tmp_path, monkeypatch, number, error, code, words, call
):
    force = call == "replace"
    if force:
        (tmp_path / "a").write_bytes(b"old")
    before = os.listdir(tmp_path)
    real_open = os.open

    def fail(*arguments, **options):
        if call == "open" and not str(arguments[0]).endswith(".tmp"):
            return real_open(*arguments, **options)
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(error, match=words) as caught:
            write_file(tmp_path / "a", b"new", force=force)
    assert caught.value.code == code
    assert os.listdir(tmp_path) == before


def test_a_full_disk(monkeypatch, tmp_path):
    """The kernel's own ENOSPC, where the system has a device that is always full."""
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    real_open = os.open
    monkeypatch.setattr(
        os,
        "open",
        lambda path, flags, *rest, **more: (
            real_open("/dev/full", os.O_WRONLY)
            if str(path).endswith(".tmp")
            else real_open(path, flags, *rest, **more)
        ),
    )
    with pytest.raises(StorageError, match="No space left on device"):
        write_file(tmp_path / "a", b"new", force=False)
    assert os.listdir(tmp_path) == []


def test_folders_without_hard_links_are_served_too(tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    write_file(tmp_path / "a", b"abc", force=False)
    assert (tmp_path / "a").read_bytes() == b"abc"
    assert os.listdir(tmp_path) == ["a"]


def test_files_that_belong_together_come_together_or_not_at_all(tmp_path, monkeypatch):
    links = []
    real_link = os.link

    def second_fails(source, path, **options):
        links.append(path)
        if len(links) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real_link(source, path, **options)

    monkeypatch.setattr(os, "link", second_fails)
    with pytest.raises(StorageError, match="expected room for 1"):
        write_files({tmp_path / "a": b"a", tmp_path / "b": b"b"}, force=False)
    assert os.listdir(tmp_path) == []

"""Timings of TensorRT's tactics from process to process: for what they were measured, or none."""

import os

import pytest

from jscc.runtime.tensorrt.timings import TimingsKey, keep_timings, read_timings

KEY = TimingsKey("tensorrt 10.3.0", "sm_87 Orin")
DATA = bytes(range(256)) * 5 + b"\n\n"


@pytest.fixture
def folder(tmp_path):
    kept = tmp_path / "engines"
    keep_timings(kept, KEY, DATA)
    return kept


def test_what_was_kept_is_read(folder):
    assert read_timings(folder, KEY) == DATA
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    "other", [TimingsKey("tensorrt 10.3.1", "sm_87 Orin"), TimingsKey("tensorrt 10.3.0", "sm_89")]
)
def test_another_library_or_device_has_none(folder, other):
    assert read_timings(folder, other) == b""
    os.rename(folder / KEY.file_name, folder / other.file_name)
    assert read_timings(folder, other) == b""


@pytest.mark.parametrize("where", [0, 20, 90, 150, 300, -1])
def test_one_changed_byte_makes_them_useless(folder, where):
    path = folder / KEY.file_name
    content = bytearray(path.read_bytes())
    content[where] ^= 1
    path.write_bytes(content)
    assert read_timings(folder, KEY) == b""


def test_a_cut_file_is_useless(folder):
    path = folder / KEY.file_name
    path.write_bytes(path.read_bytes()[:-1])
    assert read_timings(folder, KEY) == b""
    path.write_bytes(b"")
    assert read_timings(folder, KEY) == b""


def test_nothing_is_read_where_others_can_write(folder):
    folder.chmod(0o755)
    assert read_timings(folder, KEY) == b""
    keep_timings(folder, KEY, b"new")
    folder.chmod(0o700)
    assert read_timings(folder, KEY) == DATA


def test_no_link_is_followed(folder, tmp_path):
    path = folder / KEY.file_name
    os.rename(path, tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", path)
    assert read_timings(folder, KEY) == b""


def test_builds_that_measured_nothing_keep_what_there_was(folder):
    keep_timings(folder, KEY, b"")
    assert read_timings(folder, KEY) == DATA


def test_a_folder_that_cannot_be_made_costs_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    keep_timings(tmp_path / "file" / "engines", KEY, DATA)
    assert read_timings(tmp_path / "file" / "engines", KEY) == b""


def test_those_of_other_versions_for_the_device_go(folder):
    """And nothing else does, whatever lies there."""
    others = [TimingsKey("tensorrt 10.3.0", "sm_89"), TimingsKey("tensorrt 10.4.0", KEY.target)]
    keep_timings(folder, others[0], DATA)
    (folder / "deep.timings").write_bytes(b"[" * 4096)
    (folder / "link.timings").symlink_to(folder / KEY.file_name)
    keep_timings(folder, others[1], b"new")
    names = {path.name for path in folder.iterdir()}
    kept = {other.file_name for other in others}
    assert names == {"deep.timings", "link.timings", *kept}

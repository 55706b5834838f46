"""The zip directory is held to the file before any size in it is believed."""

import contextlib
import io
import struct
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jscc.export.tensor_file import OpenFile
from jscc.export.zip_directory import read_directory
from jscc.runtime.errors import CheckpointError

CENTRAL, LOCAL, END = b"PK\1\2", b"PK\3\4", b"PK\5\6"


def stored(**entries: bytes) -> bytes:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return memory.getvalue()


GOOD = stored(first=b"one", second=b"two three")


def read(tmp_path: Path, data: bytes):
    (tmp_path / "file").write_bytes(data)
    return read_directory(OpenFile(tmp_path / "file"))


def patched(signature: bytes, offset: int, value: bytes, *, last: bool = True) -> bytes:
    """`GOOD` with `value` put `offset` bytes behind the last (first) `signature`."""
    at = (GOOD.rindex if last else GOOD.index)(signature) + offset
    return GOOD[:at] + value + GOOD[at + len(value) :]


def test_entries_are_where_zipfile_finds_them(tmp_path):
    found = read(tmp_path, GOOD)
    assert {name: GOOD[e.begin : e.begin + e.size] for name, e in found.items()} == {
        "first": b"one",
        "second": b"two three",
    }
    with zipfile.ZipFile(io.BytesIO(GOOD)) as archive:
        assert [e.crc32 for e in found.values()] == [info.CRC for info in archive.infolist()]


def test_a_comment_is_no_harm(tmp_path):
    memory = io.BytesIO(GOOD)
    with zipfile.ZipFile(memory, "a") as archive:
        archive.comment = b"PK comment"
    assert len(read(tmp_path, memory.getvalue())) == 2


@pytest.mark.parametrize(
    ("data", "code", "got"),
    [
        (GOOD[:-30], "E_CKPT_TRUNCATED", r"bytes without a zip directory"),
        (GOOD + b"x", "E_CKPT_FORMAT", "bytes behind the zip directory"),
        (b"x" + GOOD, "E_CKPT_FORMAT", "that does not end at"),
        (patched(END, 4, b"\1"), "E_CKPT_FORMAT", "in several parts"),
        (patched(END, 8, b"\3\0\3"), "E_CKPT_FORMAT", "ends inside entry 2"),
        (patched(END, 8, b"\1\0\1"), "E_CKPT_FORMAT", "behind the last entry"),
        (patched(END, 8, b"\xff\xff\xff\xff"), "E_CKPT_FORMAT", "without its locator"),
        (patched(CENTRAL, 0, b"XXXX"), "E_CKPT_FORMAT", "a broken directory entry"),
        (patched(CENTRAL, 8, b"\1"), "E_CKPT_FORMAT", "entry 'second' encrypted"),
        (patched(CENTRAL, 10, b"\x08"), "E_CKPT_BOMB", "entry 'second' compressed from 9 to 9"),
        (patched(CENTRAL, 24, b"\xff"), "E_CKPT_BOMB", "compressed from 255 to 9"),
        (patched(CENTRAL, 20, b"\xff\0\0\0\xff"), "E_CKPT_BOMB", "over what is stored beside"),
        (patched(CENTRAL, 24, b"\xff" * 4), "E_CKPT_FORMAT", "without its zip64 sizes"),
        (patched(CENTRAL, 42, b"\0\0\0\0"), "E_CKPT_FORMAT", "entry 'second' without its header"),
        (patched(CENTRAL, 42, b"\xff\xff"), "E_CKPT_FORMAT", "behind the directory"),
        (patched(CENTRAL, 46, b"\xff"), "E_CKPT_FORMAT", "name is not UTF-8"),
        (patched(LOCAL, 8, b"\x08"), "E_CKPT_FORMAT", "entry 'second' without its header"),
        (patched(LOCAL, 30, b"x"), "E_CKPT_FORMAT", "entry 'second' without its header"),
    ],
)
def test_lies(tmp_path, data, code, got):
    with pytest.raises(CheckpointError, match=got) as caught:
        read(tmp_path, data)
    assert caught.value.code == code


def test_the_same_name_twice(tmp_path):
    data = stored(first=b"one", other=b"two").replace(b"other", b"first")
    with pytest.raises(CheckpointError, match="two entries named 'first'") as caught:
        read(tmp_path, data)
    assert caught.value.code == "E_CKPT_BOMB"


def test_entries_that_share_their_bytes(tmp_path):
    """Two directory entries with one header each, the second inside the first's data."""
    inner = stored(inner=b"x" * 50)
    local = inner[: inner.index(CENTRAL)]
    data = bytearray(stored(outer=local, inner=b"x" * 50))
    at = data.rindex(CENTRAL)
    data[at + 42 : at + 46] = struct.pack("<L", 30 + len("outer"))
    with pytest.raises(CheckpointError, match=r"entry 'inner' at [0-9:]+, over what") as caught:
        read(tmp_path, bytes(data))
    assert caught.value.code == "E_CKPT_BOMB"


def test_a_directory_that_claims_too_much(tmp_path, monkeypatch):
    monkeypatch.setattr("jscc.export.zip_directory.MAX_ENTRIES", 1)
    with pytest.raises(CheckpointError, match="got 2 entries in a directory") as caught:
        read(tmp_path, GOOD)
    assert caught.value.code == "E_CKPT_BOMB"


@given(
    splices=st.lists(
        st.tuples(st.integers(0, 1000), st.integers(0, 4), st.binary(max_size=4)),
        min_size=1,
        max_size=4,
    )
)
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_mutant_gives_entries_within_the_file_or_an_error(tmp_path, splices):
    data = GOOD
    for at, cut, put in splices:
        at %= len(data) + 1
        data = data[:at] + put + data[at + cut :]
    with contextlib.suppress(CheckpointError):
        for extent in read(tmp_path, data).values():
            assert 0 <= extent.begin <= extent.begin + extent.size <= len(data)

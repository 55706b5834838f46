"""Files from outside are opened only if they are what they should be, and read once."""

import hashlib
import json
import os
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jscc.runtime import trust
from jscc.runtime.errors import BundleError, StorageError, SymbolsError, UnavailableError
from jscc.runtime.folder import open_bundle_folder
from jscc.runtime.trust import (
    Asset,
    check_name,
    digest_file,
    is_flat_name,
    open_folder,
    open_regular,
    read_file,
    read_span,
    size_of,
    strict_json,
)


def strict(text):
    return strict_json(text if isinstance(text, bytes) else text.encode(), limit=1_000_000)


@pytest.mark.parametrize(
    "name",
    ["graphs/decode.onnx", "graphs/decode.onnx.data", "tensors/a.npy", "SOURCE.md", "LICENSE"],
)  # fmt: skip
def test_names_of_a_bundle(name):
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["graphs/run.py", "engine.plan", "graphs/a.so", "a.pkl", "tensors/x.onnx", "graphs/x.npy",
     "graphs", "tensors/tensors.npy", "manifest.md", "a..md", "graphs/a/b.onnx", "a\n", "a.md\n"],
)  # fmt: skip
def test_other_names_are_refused(name):
    with pytest.raises(BundleError, match=r"the file name .*expected a plain name") as caught:
        check_name(name)
    assert caught.value.code == "E_BUNDLE_PATH"
    assert json.dumps(name)[:20] in str(caught.value)


@given(st.text(max_size=120))
def test_a_name_that_passes_stays_inside_the_folder(name):
    if is_flat_name(name):
        assert name.isascii()
        assert os.path.normpath(name) == name
        assert not name.startswith(("/", "."))


def test_what_is_no_regular_file_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    for name in ("link", "folder", "fifo"):
        said = f"{name}: got a.*expected a regular file"
        with pytest.raises(BundleError, match=said) as caught, open_regular(tmp_path / name):
            pass
        assert caught.value.code == "E_BUNDLE_FILETYPE"
    with (
        pytest.raises(BundleError, match="nowhere: got nothing"),
        open_regular(tmp_path / "nowhere"),
    ):
        pass
    with open_regular(tmp_path / "file") as descriptor:
        assert size_of(descriptor) == 3
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_a_device_is_refused():
    with pytest.raises(BundleError, match="/dev/null: got a device"), open_regular("/dev/null"):
        pass


def test_other_assets_name_their_own_errors(tmp_path):
    asset = Asset(SymbolsError, "E_SYM", "Name the file")
    said, path = r"got nothing.*Name the file", tmp_path / "x"
    with pytest.raises(SymbolsError, match=said) as caught, open_regular(path, asset=asset):
        pass
    assert caught.value.code == "E_SYM_MISSING"


def test_a_folder_is_read_through_its_descriptor(tmp_path):
    """Switching the path afterwards does not redirect the reader."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "name").write_bytes(b"mine")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "name").write_bytes(b"other")
    with open_folder(tmp_path / "a") as folder:
        (tmp_path / "a").rename(tmp_path / "c")
        (tmp_path / "b").rename(tmp_path / "a")
        with open_regular("name", folder=folder) as descriptor:
            assert read_span(descriptor, "name", 0, 4)[0].tobytes() == b"mine"


def test_a_bundle_folder_follows_the_given_link_and_no_other(tmp_path):
    (tmp_path / "version-1").mkdir()
    (tmp_path / "version-1" / "README.md").write_bytes(b"x")
    (tmp_path / "current").symlink_to("version-1")
    with open_bundle_folder(tmp_path / "current") as folder:
        assert folder.names() == ["README.md"]
    (tmp_path / "version-1" / "graphs").symlink_to(tmp_path)
    with (
        pytest.raises(BundleError, match="graphs: got a link"),
        open_bundle_folder(tmp_path / "current"),
    ):
        pass


def test_a_folder_that_is_not_there_is_missed(tmp_path):
    with open_bundle_folder(tmp_path) as folder, pytest.raises(BundleError) as caught:
        folder.read("graphs/a.onnx", size=0, sha256="")
    assert caught.value.code == "E_BUNDLE_MISSING"
    assert "got no folder 'graphs', expected 'graphs/a.onnx'" in str(caught.value)


@pytest.mark.parametrize("size", [0, 1, trust.CHUNK - 1, trust.CHUNK, 2 * trust.CHUNK + 3])
def test_the_bytes_that_are_hashed_are_the_bytes_that_come_back(tmp_path, size):
    data = np.random.default_rng(size).integers(0, 256, size, np.uint8).tobytes()
    (tmp_path / "file").write_bytes(data)
    with open_regular(tmp_path / "file") as descriptor:
        array, digest = read_span(descriptor, "file", 0, size)
        assert digest_file(descriptor) == (size, digest)
    assert array.tobytes() == data
    assert digest == hashlib.sha256(data).hexdigest()
    assert not array.flags.writeable


def test_a_file_unlike_its_entry_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"abcd")
    wrong = "0" * 64
    right = hashlib.sha256(b"abcd").hexdigest()
    with open_regular(tmp_path / "file") as descriptor:
        with pytest.raises(BundleError, match="file: got 4 bytes, expected 5 bytes") as caught:
            read_file(descriptor, "file", size=5, sha256=right, found=4)
        assert caught.value.code == "E_BUNDLE_TRUNCATED"
        with pytest.raises(BundleError, match="file: got 4 bytes, expected 3 bytes") as caught:
            read_file(descriptor, "file", size=3, sha256=right, found=4)
        assert caught.value.code == "E_HASH"
        with pytest.raises(
            BundleError, match=f"file: got sha256 {right}, expected {wrong}"
        ) as caught:
            read_file(descriptor, "file", size=4, sha256=wrong, found=4)
        assert caught.value.code == "E_HASH"
        # It was cut after its size was looked at.
        with pytest.raises(BundleError, match="file: got 4 bytes, expected 9 bytes") as caught:
            read_file(descriptor, "file", size=9, sha256=right, found=9)
        assert caught.value.code == "E_BUNDLE_TRUNCATED"


def test_an_unreadable_disk_is_no_bundle_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"abcd")

    def fail(descriptor, chunk, offset):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(trust, "_fill", fail)
    said = "file: got 'Input/output error'"
    with open_regular(tmp_path / "file") as file, pytest.raises(StorageError, match=said) as caught:
        read_span(file, "file", 0, 4)
    assert caught.value.code == "E_IO"


def test_what_does_not_fit_in_memory_is_said(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    raises = pytest.raises(UnavailableError, match="got 1152921504606846976 bytes")
    with open_regular(tmp_path / "file") as descriptor, raises as caught:
        read_span(descriptor, "file", 0, 1 << 60)
    assert caught.value.code == "E_MEMORY"


def test_reading_and_hashing_end_with_the_call(tmp_path):
    (tmp_path / "file").write_bytes(bytes(3 * trust.CHUNK))
    before = set(threading.enumerate())
    with open_regular(tmp_path / "file") as descriptor:
        read_span(descriptor, "file", 0, 3 * trust.CHUNK)
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": NaN}', "at /a: got NaN, expected a finite number"),
        ('{"a": [1, -Infinity]}', "at /a/1: got -Infinity"),
        ('{"a": 1e999}', "at /a: got 1e999"),
        ('{"a": {"b": 1, "b": 2}}', r"at /a: got the key \"b\" twice"),
        ('{"a": ' + "1" * 5000 + "}", "at /a: got a number of 5000 digits"),
        ('{"a": 0.' + "1" * 5000 + "}", "at /a: got a number of 5002 digits"),
        ('{"x/y~z": "\\ud800"}', r"at /x~1y~0z: got \"\\ud800\", expected text without lone"),
        ('{"\\udfff": 1}', "without lone surrogates"),
        ("[" * 100_000, "got more than 32 levels of nesting, expected at most 32"),
        ('{"a":' * 40 + "1" + "}" * 40, "more than 32 levels"),
        ('{"a": 1,}', "got a fault at line 1, column"),
        ("{} x", "got a fault at line 1, column 4"),
        ("", "got a fault at line 1, column 1"),
        ("\ufeff{}", "got a byte order mark or UTF-16"),
        ("{}".encode("utf-16"), "got byte 0xff, expected UTF-8"),
        ("{}".encode("utf-16-le"), "got a byte order mark or UTF-16"),
        (b'{"a": "\xff"}', "got byte 0xff, expected UTF-8"),
        (b" " * 1_000_001, "got 1000001 bytes, expected at most 1000000"),
        ('"' + "\\" * 99_999, "got a fault"),
    ],
)
def test_loose_json_is_refused(text, said):
    with pytest.raises(BundleError, match=said) as caught:
        strict(text)
    assert caught.value.code == "E_MANIFEST"


def test_brackets_in_strings_are_no_nesting():
    assert strict(json.dumps(["[" * 100, '"{' * 50])) == ["[" * 100, '"{' * 50]


@settings(max_examples=300, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(10**18), 10**18) | st.text(max_size=20),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=9), inner),
        max_leaves=30,
    )
)
def test_plain_json_is_read_as_json_reads_it(tree):
    assert strict(json.dumps(tree)) == tree


def test_json_of_other_kinds_raises_its_own_errors():
    def refuse(pointer, got, expected):
        return SymbolsError("E_SYM_META", f"{pointer}: {got}, {expected}")

    with pytest.raises(SymbolsError, match="/a: NaN, a finite number"):
        strict_json(b'{"a": NaN}', limit=100, refuse=refuse)

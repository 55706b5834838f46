"""Symbol files: both formats round trip; whatever is wrong with a file is one typed error."""

import json
import os
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jscc.runtime.errors import OutputError, SymbolsError, UsageError
from jscc.runtime.frame import Frame
from jscc.runtime.sigmf import MAX_FRAMES
from jscc.runtime.symbol_files import (
    MAX_DATA_BYTES,
    check_symbols_path,
    read_symbols,
    write_symbols,
)


def make_frames(count, shape=(2, 3, 4)):
    rng = np.random.default_rng(count)
    return [
        Frame(
            (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64),
            number,
            (48, 64),
            snr_db=5.0,
            gain=1j,
        )
        for number in range(count)
    ]


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("name", ["a.sigmf-meta", "a.b c.sigmf-meta", "a.npy"])
def test_what_is_written_is_read_back(tmp_path, name, count):
    frames = make_frames(count)
    write_symbols(tmp_path / name, frames, force=False)
    recording = read_symbols(tmp_path / name)
    assert recording.hashed == name.endswith("meta")
    for found, frame in zip(recording.frames, frames, strict=True):
        np.testing.assert_array_equal(found.symbols, frame.symbols)
        assert found.number == frame.number
        assert found.snr_db == (5.0 if recording.hashed else None)


def test_numpy_reads_the_npy_file(tmp_path):
    frames = make_frames(2)
    write_symbols(tmp_path / "a.npy", frames, force=False)
    array = np.load(tmp_path / "a.npy", allow_pickle=False)
    assert array.dtype == np.complex64
    np.testing.assert_array_equal(array, np.stack([frame.symbols for frame in frames]))


@pytest.mark.parametrize("shape", [(7,), (2, 3, 4), (2, 2, 3, 4)])
@pytest.mark.parametrize("dtype", [np.complex64, np.complex128])
def test_npy_shapes(tmp_path, shape, dtype):
    np.save(tmp_path / "a.npy", np.ones(shape, dtype))
    frames = read_symbols(tmp_path / "a.npy").frames
    assert [frame.symbols.shape for frame in frames] == (
        [shape] if len(shape) < 4 else [shape[1:]] * shape[0]
    )
    assert {frame.symbols.dtype for frame in frames} == {np.dtype(np.complex64)}


def test_npy_frames_of_several_sizes_are_refused(tmp_path):
    frames = [*make_frames(1), *make_frames(1, (1, 1, 1))]
    with pytest.raises(SymbolsError, match=r"got images of 2 sizes, expected one for .npy"):
        write_symbols(tmp_path / "a.npy", frames, force=False)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a.sigmf-data", "Name the .sigmf-meta file beside it"),
        ("a.sigmf", "tar -xf NAME.sigmf"),
        ("a.sigmf-collection", "Name one of its .sigmf-meta files"),
        ("a.mat", "expected NAME.sigmf-meta, NAME.npz or NAME.npy"),
        ("a", "expected NAME.sigmf-meta, NAME.npz or NAME.npy"),
        (".npy", "expected NAME.sigmf-meta, NAME.npz or NAME.npy"),
    ],
)
def test_other_names_are_refused(tmp_path, name, words):
    for call in (
        lambda path: read_symbols(path),
        lambda path: write_symbols(path, make_frames(1), force=True),
        lambda path: check_symbols_path(path, force=True),
    ):
        with pytest.raises(UsageError, match=re.escape(words)):
            call(tmp_path / name)


@pytest.mark.parametrize("name", ["a.sigmf-meta", "a.npy"])
def test_a_missing_file(tmp_path, name):
    with pytest.raises(
        SymbolsError, match=f"{name}: got nothing, expected a regular file"
    ) as error:
        read_symbols(tmp_path / name)
    assert error.value.exit_status == 65


def test_a_missing_data_file(tmp_path):
    write_symbols(tmp_path / "a.sigmf-meta", make_frames(1), force=False)
    (tmp_path / "a.sigmf-data").unlink()
    with pytest.raises(SymbolsError, match=r"a.sigmf-data: got nothing"):
        read_symbols(tmp_path / "a.sigmf-meta")


@pytest.mark.parametrize("name", ["a.sigmf-meta", "a.npy"])
def test_a_folder_or_fifo_in_place_of_the_file(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(SymbolsError, match="got a directory"):
        read_symbols(tmp_path / name)
    (tmp_path / name).rmdir()
    os.mkfifo(tmp_path / name)
    with pytest.raises(SymbolsError, match="got a FIFO"):
        read_symbols(tmp_path / name)


def test_larger_files_than_allowed_are_not_read(tmp_path):
    with open(tmp_path / "a.npy", "wb") as file:
        file.truncate(MAX_DATA_BYTES + 1)
    with pytest.raises(SymbolsError, match=f"got {MAX_DATA_BYTES + 1} bytes, expected at most"):
        read_symbols(tmp_path / "a.npy")


def test_as_much_as_is_written_can_be_read(tmp_path):
    frame = Frame(
        np.full((1, 1, 1), 1e-30 + 1j, np.complex64),
        2**53,
        (2**31, 2**31),
        snr_db=-123.45678901234567,
        gain=complex(-1.2345678901234567e-10, -1.2345678901234567e-10),
        bundle="b" * 64,
    )
    write_symbols(tmp_path / "a.sigmf-meta", [frame] * MAX_FRAMES, force=False)
    assert len(read_symbols(tmp_path / "a.sigmf-meta").frames) == MAX_FRAMES
    with pytest.raises(SymbolsError, match=r"got 4097 frames of 32776 bytes, expected at most"):
        write_symbols(tmp_path / "b.sigmf-meta", [frame] * (MAX_FRAMES + 1), force=False)
    assert not (tmp_path / "b.sigmf-meta").exists()


@pytest.mark.parametrize(
    ("first", "second"), [("a.sigmf-data", "a.sigmf-meta"), ("a.sigmf-meta", "a.sigmf-data")]
)
def test_neither_file_of_a_pair_is_overwritten(tmp_path, first, second):
    (tmp_path / first).write_text("precious")
    with pytest.raises(OutputError, match=f"{first}': got a file that exists"):
        write_symbols(tmp_path / "a.sigmf-meta", make_frames(1), force=False)
    with pytest.raises(OutputError, match=f"{first}': got a file that exists"):
        check_symbols_path(tmp_path / "a.sigmf-meta", force=False)
    assert os.listdir(tmp_path) == [first]
    assert (tmp_path / first).read_text() == "precious"
    write_symbols(tmp_path / "a.sigmf-meta", make_frames(1), force=True)
    assert len(read_symbols(tmp_path / "a.sigmf-meta").frames) == 1


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_metadata_give_frames_or_a_typed_error(tmp_path_factory, data):
    """Totality: one mutated value anywhere in valid metadata never escapes as another error."""
    folder = tmp_path_factory.mktemp("mutant")
    path = folder / "a.sigmf-meta"
    write_symbols(path, make_frames(2), force=False)
    tree = json.loads(path.read_text())
    node = tree
    while True:
        keys = sorted(node) if isinstance(node, dict) else range(len(node))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(node[key], dict | list) or not node[key] or data.draw(st.booleans()):
            break
        node = node[key]
    leaf = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)
    node[key] = data.draw(leaf | st.lists(leaf, max_size=3) | st.just({}))
    path.write_text(json.dumps(tree))
    try:
        frames = read_symbols(path).frames
    except SymbolsError:
        return
    assert frames


@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=300), name=st.sampled_from(["a.sigmf-meta", "a.npy"]))
def test_any_bytes_give_a_typed_error(tmp_path_factory, data, name):
    path = tmp_path_factory.mktemp("bytes") / name
    path.write_bytes(data)
    with pytest.raises(SymbolsError):
        read_symbols(path)

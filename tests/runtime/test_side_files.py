"""Side values in symbol files: both formats round trip, hostile values are one typed error."""

import io
import json
import re
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jscc.runtime import sigmf
from jscc.runtime.errors import SymbolsError, UsageError
from jscc.runtime.frame import Frame
from jscc.runtime.npz import read_npz
from jscc.runtime.place import Place
from jscc.runtime.side_fields import side_from_json
from jscc.runtime.symbol_files import check_carries, read_symbols, write_symbols

SIDE = {"power": np.array([0.3], np.float32), "mask": np.array([0, 1, 1, 0], np.float32)}


def make_frame(number=0, side=None, shape=(2, 3, 4)):
    rng = np.random.default_rng(number)
    parts = rng.standard_normal((2, *shape))
    side = SIDE if side is None else side
    return Frame((parts[0] + 1j * parts[1]).astype(np.complex64), number, (48, 64), side=side)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("name", ["a.sigmf-meta", "a.npz"])
def test_what_is_written_is_read_back(tmp_path, name, count):
    frames = [
        make_frame(number, {"power": SIDE["power"] + number / 3, "mask": SIDE["mask"]})
        for number in range(count)
    ]
    write_symbols(tmp_path / name, frames, force=False)
    recording = read_symbols(tmp_path / name)
    assert recording.hashed == name.endswith("meta")
    for found, frame in zip(recording.frames, frames, strict=True):
        np.testing.assert_array_equal(found.symbols, frame.symbols)
        assert sorted(found.side) == ["mask", "power"]
        for key, row in frame.side.items():
            np.testing.assert_array_equal(found.side[key], row)
            assert found.side[key].dtype == np.float32


def test_a_mask_is_written_as_whole_numbers():
    meta, _ = sigmf.serialise([make_frame()], recorder="test")
    (annotation,) = json.loads(meta)["annotations"]
    assert json.dumps(annotation["jscc:side"]["mask"]) == "[0, 1, 1, 0]"
    assert np.float32(annotation["jscc:side"]["power"][0]) == np.float32(0.3)


def test_frames_without_side_values_say_nothing_of_them():
    meta, _ = sigmf.serialise([make_frame(side={})], recorder="test")
    assert b"jscc:side" not in meta


def test_the_sigmf_validator_accepts_them():
    validate = pytest.importorskip("sigmf.validate")
    meta, _ = sigmf.serialise([make_frame()], recorder="jscc-edge test")
    validate.validate(json.loads(meta))


def test_numpy_reads_and_writes_the_npz_file(tmp_path):
    frames = [make_frame(0), make_frame(1)]
    write_symbols(tmp_path / "a.npz", frames, force=False)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as archive:
        arrays = dict(archive)
    assert sorted(arrays) == ["side.mask", "side.power", "symbols"]
    assert arrays["side.mask"].shape == (2, 4)
    np.savez(tmp_path / "b.npz", **arrays)
    frames = read_symbols(tmp_path / "b.npz").frames
    np.testing.assert_array_equal(frames[1].side["power"], SIDE["power"])


def test_npy_carries_no_side_values(tmp_path):
    words = "expected NAME.sigmf-meta or NAME.npz: this bundle's receiver is given more than"
    for call in (
        lambda path: write_symbols(path, [make_frame()], force=False),
        lambda path: check_carries(path, sides=True),
    ):
        with pytest.raises(UsageError, match=re.escape(words)) as caught:
            call(tmp_path / "a.npy")
        assert caught.value.code == "E_SYM_KIND"
    assert list(tmp_path.iterdir()) == []
    check_carries(tmp_path / "a.npy", sides=False)


def test_npz_wants_the_same_side_values_of_all_images(tmp_path):
    for other in ({}, {"power": SIDE["power"], "mask": SIDE["mask"][:3]}):
        with pytest.raises(SymbolsError, match="got images of different side values, expected"):
            write_symbols(tmp_path / "a.npz", [make_frame(), make_frame(1, other)], force=False)


def test_metadata_larger_than_what_is_read_back_are_not_written(tmp_path):
    row = np.linspace(0.1, 0.9, 4096, dtype=np.float32)
    frames = [make_frame(number, {"row": row}, (1, 1, 1)) for number in range(60)]
    with pytest.raises(SymbolsError, match=r"bytes of metadata, expected at most 4194304"):
        write_symbols(tmp_path / "a.sigmf-meta", frames, force=False)
    assert list(tmp_path.iterdir()) == []


FIELDS = [
    (3, "E_SIGMF_META", "jscc:side: got 3, expected an object"),
    ([1], "E_SIGMF_META", "jscc:side: got a list of 1, expected an object"),
    ({"power": 1}, "E_SIGMF_META", "jscc:side/power: got 1, expected a list of numbers"),
    ({"power": []}, "E_SIGMF_META", "jscc:side/power: got a list of 0, expected a list of numbers"),
    ({"power": ["1"]}, "E_SIGMF_META", 'jscc:side/power/0: got "1", expected a finite number'),
    ({"power": [True]}, "E_SIGMF_META", "jscc:side/power/0: got true, expected a finite number"),
    ({"power": [None]}, "E_SIGMF_META", "jscc:side/power/0: got nothing, expected a finite"),
    ({"power": [1e31]}, "E_SIGMF_META", "jscc:side/power/0: got 1e+31, expected a finite number"),
    ({"power": [10**400]}, "E_SIGMF_META", "got an integer of 1329 bits, expected a finite"),
    ({"power": [[1.0]]}, "E_SIGMF_META", "jscc:side/power/0: got a list of 1, expected a finite"),
    ({"../x": [1]}, "E_SIGMF_META", 'got "../x", expected names of small letters, digits and _'),
    ({"\x1b[31m": [1]}, "E_SIGMF_META", r'got "\u001b[31m", expected names of small letters'),
    ({"a" * 65: [1]}, "E_SIGMF_META", "expected names of small letters"),
    ({f"a{n}": [1] for n in range(9)}, "E_SIDE_SIZE", 'got "9 names", expected at most 8'),
    ({"a": [0] * 4000, "b": [0] * 97}, "E_SIDE_SIZE", 'got "4097 values", expected at most 4096'),
]


@pytest.mark.parametrize(("value", "code", "words"), FIELDS)
def test_fields_that_are_refused(value, code, words):
    meta, _ = sigmf.serialise([make_frame()], recorder="test")
    tree = json.loads(meta)
    tree["annotations"][0]["jscc:side"] = value
    with pytest.raises(SymbolsError, match=re.escape(words)) as caught:
        sigmf.parse("x.sigmf-meta", tree)
    assert caught.value.code == code
    assert "\n" not in caught.value.message
    assert "\x1b" not in caught.value.message


def npz(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **{name.replace("_", "."): array for name, array in arrays.items()})
    return buffer.getvalue()


def zipped(*entries, compression=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return buffer.getvalue()


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


SYMBOLS = np.ones((2, 2, 3, 4), np.complex64)
ROWS = np.ones((2, 5), np.float32)
ENTRY = ("symbols.npy", npy(SYMBOLS))
FILES = [
    (b"", "E_NPZ", "got a file that is no whole zip, expected one"),
    (b"PK\x03\x04", "E_NPZ", "got a file that is no whole zip"),
    (npz(symbols=SYMBOLS)[:-1], "E_NPZ", "got a file that is no whole zip"),
    (npz(other=SYMBOLS), "E_NPZ", "got the arrays 'other', expected 'symbols'"),
    (npz(symbols=SYMBOLS.real), "E_SYM_DTYPE", "got float32, expected complex64 or complex128"),
    (npz(symbols=SYMBOLS, side_a=ROWS[:1]), "E_NPZ", "got 'side.a' float32[1,5], expected side."),
    (npz(symbols=SYMBOLS, side_a=ROWS[0]), "E_NPZ", "got 'side.a' float32[5], expected side.NAME"),
    (npz(symbols=SYMBOLS, more=ROWS), "E_NPZ", "got 'more' float32[2,5], expected side.NAME"),
    (npz(symbols=SYMBOLS, side_a=ROWS * 1.0j), "E_NPZ", "got 'side.a' complex64[2,5], expected"),
    (npz(symbols=SYMBOLS, side_a=ROWS * np.nan), "E_SIDE_NONFINITE", "that are not finite"),
    (
        npz(symbols=SYMBOLS, side_a=np.zeros((2, 4097), np.float32)),
        "E_SIDE_SIZE",
        "got 1 side arrays of 4097 values, expected at most 8 of 4096",
    ),
    (
        npz(symbols=SYMBOLS, **{f"side_{n}": ROWS for n in range(9)}),
        "E_SIDE_SIZE",
        "got 9 side arrays of 45 values",
    ),
    (zipped(*[(f"{n}.npy", b"") for n in range(17)]), "E_NPZ", "got 17 entries, expected 1 to 16"),
    (zipped(), "E_NPZ", "got 0 entries, expected 1 to 16"),
    (zipped(("a.txt", b"")), "E_NPZ", "got the entry 'a.txt', expected names that end in .npy"),
    (zipped(("\x1b.txt", b"")), "E_NPZ", r"got the entry '\x1b.txt', expected names"),
    (
        zipped(ENTRY, compression=zipfile.ZIP_DEFLATED),
        "E_NPZ",
        "got 'symbols.npy' compressed, expected entries that are not",
    ),
    (zipped(("symbols.npy", b"junk")), "E_NPY", "'symbols': got b'junk' at its head"),
]


@pytest.mark.parametrize(("data", "code", "words"), FILES)
def test_npz_files_that_are_refused(tmp_path, data, code, words):
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(SymbolsError, match=re.escape(words)) as caught:
        read_symbols(tmp_path / "a.npz")
    assert caught.value.code == code
    assert "\n" not in caught.value.message


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_an_entry_that_stands_there_twice():
    with pytest.raises(SymbolsError, match="got two entries of one name, expected each name once"):
        read(zipped(ENTRY, ENTRY))


def read(data):
    return read_npz(np.frombuffer(data, np.uint8), "x", dtypes=("complex64",), error=SymbolsError)


def test_entries_that_overlap_do_not_multiply():
    """The directory names one entry's bytes a hundred times: more than the file is claimed."""
    names = [f"{number}.npy" for number in range(16)]
    data = bytearray(zipped(*[(name, b"") for name in names[:-1]], (names[-1], b"x" * 4000)))
    size = (4000).to_bytes(4, "little")
    start = data.index(b"PK\x01\x02")
    while start != -1:
        data[start + 20 : start + 28] = size + size
        start = data.find(b"PK\x01\x02", start + 1)
    with pytest.raises(SymbolsError, match=r"got entries of 64000 bytes, expected at most"):
        read(bytes(data))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(npz(symbols=SYMBOLS)) - 1), st.integers(0, 255), st.integers(1, 400))
def test_damaged_files_are_read_or_refused(position, value, length):
    """Nothing but the one error comes out, whatever byte is changed and wherever the file ends."""
    whole = npz(symbols=SYMBOLS)
    for data in (
        whole[:position] + bytes([value]) + whole[position + 1 :],
        whole[: len(whole) - length],
    ):
        try:
            arrays = read(data)
        except SymbolsError:
            continue
        assert sum(array.nbytes for array in arrays.values()) <= len(data)


@settings(max_examples=100, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
        max_leaves=8,
    )
)
def test_any_json_is_side_values_or_refused(document):
    try:
        side = side_from_json(Place("x", document))
    except SymbolsError:
        return
    assert all(np.isfinite(row).all() and row.dtype == np.float32 for row in side.values())

"""Arrays come back as NumPy saved them; any other header is refused before memory is taken."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jscc.runtime.errors import BundleError, SymbolsError
from jscc.runtime.npy import read_npy

DTYPES = ("float32", "float16", "int64", "int32", "uint8", "bool", "complex64")


def saved(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return np.frombuffer(buffer.getvalue(), np.uint8)


def raw(header, body=b"", version=b"\x01\x00", length=None):
    """A file with this header; `length` lies about it."""
    size = len(header) if length is None else length
    return np.frombuffer(
        b"\x93NUMPY" + version + size.to_bytes(2, "little") + header + body, np.uint8
    )


def described(descr="'<f4'", order="False", shape="(1,)"):
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}".encode()


def read(data, dtypes=DTYPES):
    return read_npy(data, "x.npy", dtypes=dtypes)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (1, 4, 2, 5)])
def test_what_numpy_saves_comes_back(dtype, shape):
    array = np.asarray(np.arange(np.prod(shape, dtype=int)).reshape(shape) % 2, dtype)
    found = read(saved(array))
    assert found.dtype == dtype
    assert found.shape == shape
    assert found.tobytes() == array.tobytes()
    assert not found.flags.writeable


def test_no_copy_is_made():
    data = saved(np.zeros(1000, np.float32))
    assert np.shares_memory(read(data), data)


def test_an_unaligned_header_gives_an_aligned_array():
    for pad in range(4):
        data = np.concatenate([np.zeros(pad, np.uint8), raw(described(), b"\0\0\x80?")])[pad:]
        found = read(data)
        assert found.flags.aligned
        assert found[0] == 1.0


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (raw(b"x" * 70_000, length=65535), "got a header of 65535 bytes, expected at most 1024"),
        (
            raw(described(shape="(1000000000000,)"), b"1234"),
            "got 4 bytes of data, expected 4000000",
        ),
        (raw(described(shape="(-1,)"), b"1234"), "got the header"),
        (raw(described(shape="(1)"), b"1234"), r"got shape \(1\)"),
        (raw(described(shape="(1, 1, 1, 1, 1, 1, 1, 1, 1)"), b"1234"), "at most 8 lengths"),
        (raw(described(shape="(1,,)"), b"1234"), r"got shape \(1,,\)"),
        (raw(described(), b"12345"), "got 5 bytes of data, expected 4 for float32"),
        (raw(described(), b"123"), "got 3 bytes of data, expected 4 for float32"),
        (raw(described("'>f4'"), b"1234"), "got dtype '>f4', expected little-endian"),
        (raw(described("'<f8'"), b"12345678"), "got dtype '<f8'"),
        (raw(described("'|O'"), b"1234"), "got the header"),
        (raw(described("[('a', '<f4')]"), b"1234"), "got the header"),
        (raw(described("'<M8[s]'"), b"12345678"), "got the header"),
        (raw(described(order="True"), b"1234"), "got fortran_order True, expected rows in C order"),
        (raw(described() + b"#", b"1234"), "got the header"),
        (raw(b"__import__('os').system('true')", b"1234"), "got the header"),
        (raw(described(), b"1234", version=b"\x02\x00"), "at its head, expected"),
        (raw(described(), length=500), "got the header"),
        (raw(described(shape="(0,)"), length=500), "got the header"),
        (raw(described("'|b1'"), b"\x02"), "got a bool that is neither 0 nor 1"),
        (np.zeros(0, np.uint8), "got b'' at its head"),
        (np.zeros(5, np.uint8), "at its head"),
    ],
)
def test_lying_headers_are_refused(data, said):
    with pytest.raises(BundleError, match=said) as caught:
        read(data)
    assert caught.value.code == "E_NPY"


def test_the_caller_chooses_dtypes_and_error():
    data = saved(np.zeros(1, np.float64))
    assert read(data, ("float64",)).dtype == np.float64
    with pytest.raises(SymbolsError, match="expected little-endian complex64"):
        read_npy(data, "x.npy", dtypes=("complex64",), error=SymbolsError)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300), st.integers(0, 200), st.integers(0, 255))
def test_any_bytes_are_an_array_or_refused(noise, place, value):
    mutant = saved(np.arange(6, dtype=np.int32)).copy()
    mutant[place % len(mutant)] = value
    codes = {"E_NPY"}
    for data in (np.frombuffer(noise, np.uint8), mutant, mutant[:place]):
        try:
            read(data)
        except BundleError as error:
            codes.add(error.code)
    assert codes == {"E_NPY"}

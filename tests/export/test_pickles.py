"""The pickle reader agrees with Python's own on data, and turns everything else away."""

import contextlib
import io
import os
import pickle
import struct
from collections import OrderedDict

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jscc.export import pickles
from jscc.export.pickles import Global, Inert, Table, Value, read_pickle
from jscc.runtime.errors import CheckpointError

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**400), 2**400)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
)
DATA = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text() | st.integers() | st.tuples(st.integers()), inner)
    ),
    max_leaves=30,
)


class Recorder:
    """Meanings that admit everything and note what they are asked."""

    def __init__(self):
        self.names = []

    def admit(self, name: Global) -> None:
        self.names.append(name.path)

    def call(self, name: Global, arguments: tuple[Value, ...]) -> Value:
        if name.path == "_codecs.encode" and arguments:
            return str(arguments[0]).encode("latin-1", "replace")
        return b"" if name.path == "builtins.bytes" else Inert(name)

    def persistent(self, identity: Value) -> Value:
        return ("persistent", identity)


def read(data: bytes, meanings=None) -> Value:
    return read_pickle(io.BytesIO(data), len(data), meanings or Recorder(), where="file")


def plain(value: Value) -> Value:
    """The value with every table as a dict."""
    if isinstance(value, Table):
        return {plain(key): plain(item) for key, item in value.pairs}
    if isinstance(value, list | tuple):
        return type(value)(map(plain, value))
    return value


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@given(data=DATA)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_data_reads_as_python_reads_it(protocol, data):
    assert plain(read(pickle.dumps(data, protocol))) == data


def test_numbers_of_the_text_protocol():
    data = b"(I42\nI-7\nL123456789012345678901234567890L\nF1.5\nI01\nI00\nt."
    assert read(data) == (42, -7, 123456789012345678901234567890, 1.5, True, False)


def test_sharing_is_kept():
    inner = [1]
    first, second = read(pickle.dumps([inner, inner], 2))
    assert first is second


def test_names_are_handed_over_and_never_imported():
    recorder = Recorder()
    result = read(pickle.dumps(OrderedDict([("a", os.getcwd)]), 2), recorder)
    assert recorder.names == ["collections.OrderedDict", "posix.getcwd"]
    assert result.of == Global("collections", "OrderedDict")


def test_state_and_items_of_a_stand_in_are_dropped():
    data = b"cmod\nCls\n)R(K\x01K\x02u(K\x03e}(X\x01\x00\x00\x00kK\x04ub."
    assert isinstance(read(data), Inert)


def test_python_2_names_are_those_of_python_3():
    recorder = Recorder()
    read(b"c__builtin__\nset\n.", recorder)
    assert recorder.names == ["builtins.set"]


def test_names_print_safely():
    assert Global("m\x1b[2J", "n\n").path == r"m\x1b[2J.n\n"


@pytest.mark.parametrize(
    ("data", "got"),
    [
        (b"\x80\x06.", "protocol 6"),
        (b"\xff.", "opcode 0xff"),
        (b".", "an empty stack"),
        (b"t.", "a missing mark"),
        (b"h\x05.", "an unset memo 5"),
        (b"I12x\n.", "a malformed number"),
        (b"F1.5.5\n.", "a malformed number"),
        (b"L" + b"9" * 65 + b"L\n.", "a malformed number"),
        (b"\x8b" + struct.pack("<i", 2**30), "a length of 1073741824"),
        (b"\x8b" + struct.pack("<i", -1), "a length of -1"),
        (b"X\x01\x00\x00\x00\xff.", "text that is not UTF-8"),
        (b"K\x01K\x02a.", "items for a int"),
        (b"NK\x01K\x02s.", "keys for a NoneType"),
        (b"}(K\x01u.", "a key without a value"),
        (b"K\x01K\x02\x93.", "a global without a name"),
        (b"K\x01)R.", "a call of what is no name"),
        (b"c" + b"m" * 600 + b"\nn\n.", "an overlong line"),
        (b"X\x01\x00\x00\x00mX\x00\x02\x00\x00" + b"n" * 512 + b"\x93.", "an overlong name"),
    ],
)
def test_broken_pickles(data, got):
    with pytest.raises(CheckpointError, match=f"got {got} at byte") as caught:
        read(data)
    assert caught.value.code == "E_CKPT_FORMAT"


@pytest.mark.parametrize("cut", range(1, 40))
def test_truncated(cut):
    data = pickle.dumps({"name": [1.5, 2**70, b"bytes"], "other": ("text",)}, 2)
    with pytest.raises(CheckpointError, match=r"got the end of the data after \d+ bytes") as caught:
        read(data[:cut])
    assert caught.value.code == "E_CKPT_TRUNCATED"


def test_extension_codes_are_unsafe():
    with pytest.raises(CheckpointError, match="got a copyreg extension code") as caught:
        read(b"\x82\x01.")
    assert caught.value.code == "E_CKPT_UNSAFE"


def test_claims_cost_nothing():
    for data in (
        b"K\x01r\xff\xff\xff\xff.",  # a memo index that an array would be sized by
        b"\x8e" + struct.pack("<Q", 2**62),  # bytes that are not there
        b"\x95" + struct.pack("<Q", 2**62),
    ):
        with contextlib.suppress(CheckpointError):
            read(data)


def test_endless_pickles_stop(monkeypatch):
    monkeypatch.setattr(pickles, "MAX_OPCODES", 1000)
    with pytest.raises(CheckpointError, match="more than 1000 steps") as caught:
        read(b"}0" * 501 + b"N.")
    assert caught.value.code == "E_CKPT_BOMB"


def test_nesting_that_would_end_the_process_is_only_data():
    deep = b")" + b"\x85" * 200_000  # hashed as a key, this overflows the stack of C
    table = read(b"}" + deep + b"Ns.")
    assert len(table.pairs) == 1
    doubled = b"K\x01" + b"2\x86" * 10_000  # 2 to the 10,000 leaves, were they walked
    assert len(read(b"}" + doubled + b"Ns.").pairs) == 1


@given(st.binary(max_size=200))
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_bytes_give_a_value_or_an_error(data):
    with contextlib.suppress(CheckpointError):
        read(data)


@given(DATA, st.integers(2, 4), st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_mutant_gives_a_value_or_an_error(value, protocol, choose):
    data = bytearray(pickle.dumps([value, OrderedDict(a=os.getcwd)], protocol))
    for _ in range(choose.draw(st.integers(1, 4))):
        data[choose.draw(st.integers(0, len(data) - 1))] = choose.draw(st.integers(0, 255))
    with contextlib.suppress(CheckpointError):
        read(bytes(data))

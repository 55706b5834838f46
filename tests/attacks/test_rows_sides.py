"""Rows 3, 33 and 36 of the fault table, where side values and ``.npz`` files meet them."""

import json
import re
import zipfile

import numpy as np
import pytest

import rated_bundle
from effort import little_effort
from jscc.__main__ import main
from jscc.runtime.csi import Csi
from jscc.runtime.errors import JsccError, SymbolsError
from jscc.runtime.frame import Frame
from jscc.runtime.receiver import Receiver
from jscc.runtime.symbol_files import read_symbols, write_symbols


def make_frame():
    rng = np.random.default_rng(0)
    parts = rng.standard_normal((2, 4, 4, 4)) / 2**0.5
    side = {"power": np.ones(1, np.float32), "mask": np.ones(8, np.float32)}
    symbols = (parts[0] + 1j * parts[1]).astype(np.complex64)
    return Frame(symbols, 0, (12, 16), snr_db=7.0, side=side)


@pytest.fixture
def rated(tmp_path):
    return rated_bundle.write_rated(tmp_path / "rated.jscc")


def test_row_03_an_npz_that_unpacks_to_a_hundred_times_its_size(tmp_path):
    """Compressed zeros: refused from the directory, before anything is unpacked."""
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, symbols=np.zeros((1, 1, 1, 1 << 22), np.complex64))
    assert path.stat().st_size < 1 << 20
    with little_effort():
        with pytest.raises(SymbolsError, match="got 'symbols.npy' compressed, expected") as caught:
            read_symbols(path)
        assert caught.value.code == "E_NPZ"


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999", '"nan"', "true", "[]"])
def test_row_33_side_values_that_are_no_numbers(tmp_path, value):
    path = tmp_path / "a.sigmf-meta"
    write_symbols(path, [make_frame()], force=False)
    text = re.sub(r'"power": \[\s*1\s*\]', f'"power": [{value}]', path.read_text())
    assert value in text
    path.write_text(text)
    with pytest.raises(SymbolsError) as caught:
        read_symbols(path)
    assert caught.value.code == "E_SIGMF_META"


@pytest.mark.parametrize("value", [0.0, -1.0, 1e30, -1e30, 1e-38])
def test_row_33_side_values_out_of_range_give_a_picture_or_a_typed_error(rated, value):
    """The transmitter's word is believed, as its symbols are; nothing crashes and nothing hangs."""
    frame, receiver = make_frame(), Receiver(rated, selftest=False)
    side = {"power": np.full(1, value, np.float32), "mask": np.full((1, 8), value, np.float32)}
    code = "none"
    try:
        image, _ = receiver.receive(frame.symbols, Csi(7.0), seed=0, size=(12, 16), side=side)
        assert image.shape == (12, 16, 3)
    except JsccError as error:
        code = error.code
    assert code in ("none", "E_DECODE_NONFINITE", "E_SIDE")


def test_row_36_an_npz_whose_headers_lie(tmp_path, rated, capsys):
    """An entry that claims 2**37 values in 200 bytes: one line, no allocation."""
    path = tmp_path / "a.npz"
    write_symbols(path, [make_frame()], force=False)
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    lie = contents["symbols.npy"].replace(b"(4, 4, 4)", b"(9999999999999,)"[:16])
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("symbols.npy", lie[: 10 + 118])
    output = tmp_path / "out.png"
    assert main(["receive", str(rated.path), str(path), "-o", str(output)]) == 65
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "E_NPY" in message
    assert not output.exists()


def test_row_36_more_side_values_than_any_bundle_has(tmp_path):
    path = tmp_path / "a.sigmf-meta"
    write_symbols(path, [make_frame()], force=False)
    document = json.loads(path.read_text())
    document["annotations"][0]["jscc:side"] = {"power": [1.0] * 100_000}
    path.write_text(json.dumps(document))
    expected = 'got "100000 values", expected at most 4096'
    with little_effort():
        with pytest.raises(SymbolsError, match=expected) as caught:
            read_symbols(path)
        assert caught.value.code == "E_SIDE_SIZE"

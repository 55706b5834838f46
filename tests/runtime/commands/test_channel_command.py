"""jscc channel: noise of the power that was asked for, fading that the file remembers."""

import numpy as np
import pytest

from jscc.runtime.frame import Frame
from jscc.runtime.symbol_files import read_symbols, write_symbols

COUNT = 40000


@pytest.fixture
def sent(tmp_path):
    """A recording of two frames of unit power."""
    rng = np.random.default_rng(0)
    phases = np.exp(2j * np.pi * rng.random((2, 1, 1, COUNT))).astype(np.complex64)
    path = tmp_path / "sent.sigmf-meta"
    frames = [Frame(part, number, (8, 8), bundle="b" * 64) for number, part in enumerate(phases)]
    write_symbols(path, frames, force=False)
    return path


def received(path):
    return read_symbols(path).frames


@pytest.mark.parametrize("snr_db", [-3.0, 0.0, 10.0])
def test_the_noise_has_the_power_that_was_asked_for(jscc, sent, tmp_path, snr_db):
    ran = jscc("channel", sent, "-o", tmp_path / "r.sigmf-meta", f"--snr={snr_db}", "--seed", 1)
    assert ran.status == 0
    for before, after in zip(received(sent), received(tmp_path / "r.sigmf-meta"), strict=True):
        noise = after.symbols - before.symbols
        assert 10 * np.log10(np.mean(np.abs(noise) ** 2)) == pytest.approx(-snr_db, abs=0.1)
        assert abs(np.mean(noise**2)) < 0.05 * np.mean(np.abs(noise) ** 2)  # circular
        assert (after.snr_db, after.gain) == (snr_db, 1)
        assert (after.size, after.bundle, after.number) == (
            before.size, before.bundle, before.number,
        )  # fmt: skip


def test_fading_is_one_gain_per_frame_and_is_remembered(jscc, sent, tmp_path):
    path = tmp_path / "r.sigmf-meta"
    arguments = ("--channel", "rayleigh", "--snr", 30, "--seed", 1)
    ran = jscc("channel", sent, "-o", path, *arguments, "--json")
    frames = received(path)
    for before, after, row in zip(received(sent), frames, ran.json["frames"], strict=True):
        estimate = np.vdot(before.symbols, after.symbols) / before.symbols.size
        assert abs(estimate - after.gain) < 0.01
        assert row["gain"] == [after.gain.real, after.gain.imag]
    assert frames[0].gain != frames[1].gain


def test_the_same_seed_gives_the_same_noise_and_another_one_other_noise(jscc, sent, tmp_path):
    results = []
    for name, seed in (("a.npy", 1), ("b.npy", 1), ("c.npy", 2)):
        jscc("channel", sent, "-o", tmp_path / name, "--snr", 7, "--seed", seed)
        results.append(np.stack([frame.symbols for frame in received(tmp_path / name)]))
    np.testing.assert_array_equal(results[0], results[1])
    noise = [result - np.stack([f.symbols for f in received(sent)]) for result in results]
    for one, other in ((noise[0], noise[2]), (noise[0][0], noise[0][1])):
        correlation = np.vdot(one, other) / (np.linalg.norm(one) * np.linalg.norm(other))
        assert abs(correlation) < 0.02


def test_the_table_shows_the_gain_as_receive_takes_it(jscc, sent, tmp_path):
    path = tmp_path / "r.sigmf-meta"
    arguments = ("--channel", "rayleigh", "--snr", 7, "--seed", 1)
    ran = jscc("channel", sent, "-o", path, *arguments)
    gain = received(path)[0].gain
    assert f"{gain.real!r},{gain.imag!r}" in ran.out


@pytest.mark.parametrize("missing", ["--snr", "--seed", "-o"])
def test_nothing_is_assumed(jscc, sent, tmp_path, missing):
    options = {"-o": tmp_path / "r.npy", "--snr": 7, "--seed": 1}
    options.pop(missing)
    ran = jscc("channel", sent, *(part for option in options.items() for part in option))
    assert ran.status == 2
    assert "the following arguments are required" in ran.err

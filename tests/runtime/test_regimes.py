"""Regimes and levels: how a bundle receives by SNR, and at which noise levels of its own."""

from dataclasses import replace

import numpy as np
import pytest

from jscc.runtime.backends.onnxruntime import OnnxRuntimeBackend
from jscc.runtime.channel import Awgn
from jscc.runtime.coherence import check_coherence
from jscc.runtime.commands.simulate import codec_alone
from jscc.runtime.csi import Csi
from jscc.runtime.declared import needed_format
from jscc.runtime.errors import BundleError, UsageError
from jscc.runtime.manifest import parse_manifest, serialise_manifest
from jscc.runtime.manifest_loops import Regime, SamplerSpec
from jscc.runtime.receiver import Receiver
from jscc.runtime.spacing import OWN

ENGINE = OnnxRuntimeBackend(threads=1)
SIDE = {"context": np.linspace(0, 1, 10, dtype=np.float32).reshape(1, 2, 5)}
REGIMES = (
    Regime(2.0, 3, "noise", None),
    Regime(6.0, 2, "received", 0.5),
    Regime(10.0, 0, "noise", None),
)


def with_sampler(bundle, *, codec_output="reconstruction", **changes):
    manifest = bundle.manifest
    loop = manifest.loops["denoise"]
    loop = replace(loop, sampler=replace(loop.sampler, **changes))
    manifest = replace(
        manifest, loops={"denoise": loop}, codec_output=codec_output, selftest=None, format=3
    )
    return replace(bundle, manifest=manifest)


@pytest.fixture
def bundle(diffusion_bundle):
    return with_sampler(diffusion_bundle, regimes=REGIMES)


@pytest.fixture
def receiver(bundle):
    return Receiver(bundle, backend=ENGINE)


def heard(snr_db):
    rng = np.random.default_rng(7)
    parts = rng.standard_normal((2, 2, 8, 12))
    symbols = (parts[0] + 1j * parts[1]).astype(np.complex64)
    symbols /= np.sqrt(np.mean(np.abs(symbols) ** 2))
    return Awgn().transmit(symbols, snr_db, rng=rng)[0]


def receive(receiver, snr_db, **arguments):
    return receiver.receive(heard(snr_db), Csi(snr_db), seed=1, side=SIDE, **arguments)


@pytest.mark.parametrize(
    ("snr_db", "start", "steps", "regime"),
    [(0.0, "noise", 3, 2.0), (5.9, "noise", 3, 2.0), (6.0, "received", 2, 6.0)],
)
def test_the_snr_decides_steps_and_start(receiver, snr_db, start, steps, regime):
    image, record = receive(receiver, snr_db)
    loop = record.loops["denoise"]
    assert (loop.start, loop.steps, record.regime) == (start, steps, regime)
    level = 0.5 if start == "received" else None
    asked, _ = receive(receiver, snr_db, steps=steps, start=start, start_level=level)
    np.testing.assert_array_equal(image, asked)


def test_where_the_channel_is_good_the_codec_is_left_alone(bundle, receiver):
    image, record = receive(receiver, 12.0)
    codec = Receiver(codec_alone(bundle), backend=ENGINE)
    alone, _ = codec.receive(heard(12.0), Csi(12.0), seed=1)
    np.testing.assert_array_equal(image, alone)
    assert (record.loops, record.steps, record.regime) == ({}, 0, 10.0)
    assert set(record.times_ms) == {"decode", "total"}


@pytest.mark.parametrize(
    "asked",
    [{"steps": 4}, {"start": "noise"}, {"sampler": "ddim"}, {"spacing": "trailing"}],
)
def test_a_caller_who_says_how_is_obeyed(receiver, asked):
    _, record = receive(receiver, 12.0, **asked)
    assert record.regime is None
    assert record.loops["denoise"].steps == asked.get("steps", record.loops["denoise"].steps) > 0


def test_fading_counts(receiver):
    """It is the SNR after equalisation that decides: 20 dB at a gain of a tenth are 0 dB."""
    csi = Csi(20.0, gain=0.1 + 0j)
    _, record = receiver.receive(heard(20.0) * np.complex64(0.5), csi, seed=1, side=SIDE)
    assert record.regime == 2.0


def test_a_batch_of_several_regimes_is_received_one_by_one(receiver):
    snrs_db = (1.0, 12.0, 7.0)
    symbols = np.stack([heard(snr_db) for snr_db in snrs_db])
    csis = [Csi(snr_db) for snr_db in snrs_db]
    images, records = receiver.receive_batch(symbols, csis, seed=1, frame=0, side=SIDE)
    for index, snr_db in enumerate(snrs_db):
        image, record = receive(receiver, snr_db, frame=index)
        np.testing.assert_array_equal(images[index], image)
        assert records[index].loops == record.loops
        assert records[index].regime == record.regime
    assert [record.frame for record in records] == [0, 1, 2]


def test_a_batch_of_one_regime_is_received_together(receiver):
    symbols = np.stack([heard(1.0), heard(3.0)])
    _, records = receiver.receive_batch(symbols, [Csi(1.0), Csi(3.0)], seed=1, side=SIDE)
    assert [record.batch for record in records] == [2, 2]


def test_own_levels_serve_the_loop_that_they_fit(diffusion_bundle):
    last = diffusion_bundle.manifest.loops["denoise"].schedule.timesteps - 1
    levels = (3, last // 3, last)
    bundle = with_sampler(diffusion_bundle, levels=(levels,), start="noise", start_level=None)
    receiver = Receiver(bundle, backend=ENGINE)
    image, record = receive(receiver, 5.0, steps=3)
    assert record.loops["denoise"].spacing == OWN
    listed, _ = receive(receiver, 5.0, steps=3, spacing=",".join(map(str, reversed(levels))))
    np.testing.assert_array_equal(image, listed)
    even, record = receive(receiver, 5.0, steps=3, spacing="linspace")
    assert record.loops["denoise"].spacing == "linspace"
    assert not np.array_equal(even, image)
    _, record = receive(receiver, 5.0, steps=2)
    assert record.loops["denoise"].spacing is None
    with pytest.raises(UsageError, match=r"got 'bundle' with 2 steps from level \d+, expected"):
        receive(receiver, 5.0, steps=2, spacing=OWN)


def test_another_sampler_gets_the_own_levels_only_where_it_asks(diffusion_bundle):
    last = diffusion_bundle.manifest.loops["denoise"].schedule.timesteps - 1
    bundle = with_sampler(
        diffusion_bundle, levels=((3, last // 3, last),), start="noise", start_level=None
    )
    receiver = Receiver(bundle, backend=ENGINE)
    other = {"sampler": "dpmpp2m", "steps": 3}
    _, record = receive(receiver, 5.0, **other)
    assert record.loops["denoise"].spacing is None
    _, record = receive(receiver, 5.0, **other, spacing=OWN)
    assert record.loops["denoise"].spacing == OWN


def test_what_is_asked_is_checked_at_every_snr(receiver):
    for snr_db in (0.0, 12.0):
        with pytest.raises(UsageError, match="guide: got 'nonsense'"):
            receive(receiver, snr_db, guide="nonsense")


@pytest.mark.parametrize("spacing", ["1,2", "5,5,9", "2,4,10000"])
def test_listed_levels_have_to_fit_the_steps(receiver, spacing):
    with pytest.raises(UsageError, match="got (levels|'2,4,10000')") as caught:
        receive(receiver, 5.0, steps=3, spacing=spacing)
    assert caught.value.code == "E_SPACING"


def test_all_of_it_is_written_and_read(bundle):
    manifest = bundle.manifest
    check_coherence(manifest)
    assert needed_format(manifest) == 3
    assert parse_manifest(serialise_manifest(manifest)) == manifest
    with pytest.raises(BundleError, match="at /format: got 2, expected 3"):
        serialise_manifest(replace(manifest, format=2))


def test_below_the_lowest_regime_it_serves_too():
    sampler = SamplerSpec("ddim", 4, "noise", None, 0.0, regimes=REGIMES)
    chosen = [sampler.regime_at(snr_db) for snr_db in (-40.0, 2.0, 9.9, 10.0, 60.0)]
    assert chosen == [REGIMES[0], REGIMES[0], REGIMES[1], REGIMES[2], REGIMES[2]]
    assert SamplerSpec("ddim", 4, "noise", None, 0.0).regime_at(3.0) is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"regimes": (Regime(0.0, 9999, "noise", None),)}, "regimes/0/steps: got 9999"),
        ({"levels": ((0, 9999),)}, "levels/0: got 9999"),
        (
            {"regimes": (Regime(0.0, 0, "noise", None),), "codec_output": None},
            "regimes/0/steps: got 0",
        ),
        ({"regimes": (Regime(0.0, 2, "noise", 0.5),)}, "regimes/0/start_level: got 0.5"),
        ({"regimes": (Regime(0.0, 99, "received", 0.01),)}, "regimes/0/steps: got 99"),
        ({"levels": ((0, 9), (3, 9))}, "one list for each number of steps and last level"),
        ({"codec_output": "received"}, "codec_output: got 'received'"),
        ({"codec_output": "image"}, "codec_output: got 'image'"),
        ({"codec_output": "hint"}, "codec_output: got 'hint'"),
    ],
)
def test_what_contradicts_itself_is_refused(diffusion_bundle, changes, said):
    with pytest.raises(BundleError, match=said) as caught:
        check_coherence(with_sampler(diffusion_bundle, **changes).manifest)
    assert caught.value.code == "E_BUNDLE_INCONSISTENT"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"regimes": (REGIMES[1], REGIMES[0])}, "SNRs ascending"),
        ({"levels": ((5, 5),)}, "noise levels, ascending"),
        ({"levels": ((),)}, "noise levels, ascending"),
        ({"regimes": (Regime(0.0, 2, "received", 1.5),)}, "0 < level <= 1"),
    ],
)
def test_values_out_of_range_are_refused(diffusion_bundle, changes, said):
    with pytest.raises(BundleError, match=said):
        serialise_manifest(with_sampler(diffusion_bundle, **changes).manifest)

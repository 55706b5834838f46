"""jscc tune: levels and regimes that are fitted, checked on other images, and stored."""

import contextlib
import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

import tiny_convolutions
from alexnet_weights import random_weights
from jscc.__main__ import main
from jscc.calibration import tune as tune_module
from jscc.calibration.collect import Grid, send_all
from jscc.calibration.lpips import LPIPS_FILES, Lpips
from jscc.calibration.metrics import psnr_db
from jscc.calibration.rewrite import Place
from jscc.calibration.tune import (
    SLACK,
    Figures,
    Order,
    Way,
    choose,
    present_levels,
    regimes_of,
    tune,
)
from jscc.runtime.backends.onnxruntime import OnnxRuntimeBackend
from jscc.runtime.bundle import Bundle
from jscc.runtime.errors import UsageError
from jscc.runtime.manifest_loops import Regime
from jscc.runtime.receiver import Receiver
from jscc.runtime.transmitter import Transmitter

ENGINE = OnnxRuntimeBackend(threads=1)
CODEC = Way(0)


def of(**lpips):
    """Figures by way: ``codec``, ``s1`` (one step from noise), ``r2`` (two, from the received)."""
    ways = {"codec": CODEC}
    for name in lpips:
        if name != "codec":
            start = "noise" if name[0] == "s" else "received"
            ways[name] = Way(int(name[1:]), start, None if start == "noise" else 0.5)
    return {ways[name]: Figures(20.0, value) for name, value in lpips.items()}


@pytest.mark.parametrize(
    ("figures", "chosen"),
    [
        (of(codec=0.5, s1=0.4, s4=0.3), Way(4)),
        (of(codec=0.5, s1=0.3 * (1 + SLACK / 2), s4=0.3), Way(1)),
        (of(codec=0.5, s1=0.3 * (1 + SLACK * 2), s4=0.3), Way(4)),
        (of(codec=0.2, s1=0.3, s4=0.25), CODEC),
        (of(codec=0.3, s4=0.3), CODEC),
        (of(codec=0.3, s4=0.2999), CODEC),  # not worth a step
        (of(codec=0.5, s4=0.3, r2=0.301), Way(2, "received", 0.5)),
    ],
)
def test_the_fewest_steps_that_come_close_are_chosen(figures, chosen):
    assert choose(figures) == chosen


def test_of_ways_as_good_the_one_nearer_to_the_original_is_chosen():
    figures = {CODEC: Figures(25.0, 0.5), Way(2): Figures(22.0, 0.300)}
    figures[Way(2, "received", 0.5)] = Figures(23.0, 0.301)
    assert choose(figures) == Way(2, "received", 0.5)


def test_neighbours_that_agree_are_one_regime_and_borders_lie_half_way():
    chosen = {0.0: Way(4), 4.0: Way(4), 8.0: Way(2, "received", 0.5), 14.0: CODEC}
    assert regimes_of(chosen) == (
        Regime(0.0, 4, "noise", None),
        Regime(6.0, 2, "received", 0.5),
        Regime(11.0, 0, "noise", None),
    )
    assert regimes_of({7.0: Way(1)}) == (Regime(7.0, 1, "noise", None),)


@pytest.fixture(scope="module")
def sent(looped):
    transmitter = Transmitter(looped, backend=ENGINE)
    photos = tiny_convolutions.photos(4)
    names = list(photos)
    grid = Grid((0.0, 10.0), seed=5)
    fitted = send_all(transmitter, {name: photos[name] for name in names[:2]}, grid)
    return fitted, send_all(transmitter, {name: photos[name] for name in names[2:]}, grid)


@pytest.fixture(scope="module")
def tuned(looped, sent, tmp_path_factory):
    place = Place(tmp_path_factory.mktemp("tuned") / "tuned.jscc")
    order = Order(place, steps=(1, 2), level_steps=(2,), threads=1)
    counted = []
    result = tune(
        looped,
        *sent,
        order,
        lpips=Lpips(random_weights()),
        describe={"images": "two"},
        progress=counted.append,
    )
    return result, counted


def test_what_is_stored_is_what_was_found(looped, tuned):
    result, _ = tuned
    manifest = Bundle.open(result.bundle.path).manifest
    sampler = manifest.loops["denoise"].sampler
    assert sampler.regimes == result.regimes
    assert sampler.levels == tuple(result.levels.values())
    assert manifest.codec_output == "reconstruction"
    assert manifest.calibration["tuned"] == {"images": "two"}
    assert manifest.format == 3
    for name in looped.manifest.files:
        assert result.bundle.file(name) == looped.file(name)


def test_every_way_is_tried_at_every_snr(tuned):
    result, _ = tuned
    received = {Way(n, "received", share) for n in (1, 2) for share in (0.25, 0.5, 0.75)}
    for ways in result.tried.values():
        assert set(ways) - received == {CODEC, Way(1), Way(2)}
    assert list(result.tried) == list(result.held) == [0.0, 10.0]


def test_no_regime_is_worse_than_the_codec_on_images_that_were_held_back(tuned):
    result, _ = tuned
    for codec, received in result.held.values():
        assert received.lpips <= codec.lpips


def test_levels_are_kept_only_where_they_are_better_on_others(tuned):
    result, _ = tuned
    even, found = result.level_figures[2]
    assert (2 in result.levels) == (found < even)


def test_the_receiver_does_what_was_chosen(tuned, sent):
    """The figures that were held against others come out again from the bundle by itself."""
    result, _ = tuned
    receiver = Receiver(result.bundle, backend=ENGINE)
    for snr_db, (_, figures) in result.held.items():
        found = []
        for airing in (each for each in sent[1] if each.received.csi.snr_db == snr_db):
            r = airing.received
            image, record = receiver.receive(
                r.symbols, r.csi, seed=r.seed, frame=r.frame, size=r.size, side=r.side
            )
            assert record.regime is not None
            found.append(psnr_db(airing.image, image))
        assert np.mean(found) == pytest.approx(figures.psnr_db, abs=1e-9)


def test_a_codec_alone_has_nothing_to_tune(codec_bundle, tmp_path):
    order = Order(Place(tmp_path / "x.jscc"), (1,), (), 1)
    with pytest.raises(UsageError, match="expected a system that repaints") as caught:
        tune(
            codec_bundle,
            (),
            (),
            order,
            lpips=Lpips(random_weights()),
            describe={},
            progress=str,
        )
    assert caught.value.code == "E_TUNE"


def test_the_command(looped, tmp_path):
    images, weights = tmp_path / "images", tmp_path / "weights"
    images.mkdir()
    weights.mkdir()
    for name, pixels in tiny_convolutions.photos(3).items():
        Image.fromarray(pixels).save(images / name)
    for file in LPIPS_FILES:
        save_file(random_weights(), weights / file)
    command = ["tune", looped.path, "--images", images, "--lpips-weights", weights]
    command += ["-o", tmp_path / "x.jscc", "--snr", "0,10", "--steps", "1", "--levels", "2"]
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main([*map(str, command), "--threads", "1"]) == 0
    assert "LPIPS, codec" in out.getvalue()
    assert Bundle.open(tmp_path / "x.jscc").manifest.loops["denoise"].sampler.regimes
    err = io.StringIO()
    with contextlib.redirect_stderr(err):
        assert main([*map(str, command)]) == 73
        bad = [*map(str, command), "--force", "--steps", "0"]
        assert main(bad) == 2
    assert "E_EXISTS" in err.getvalue()
    assert "expected numbers by commas" in err.getvalue()


def test_the_known_image_is_received_with_what_was_found(looped, sent, tmp_path, monkeypatch):
    """The self-test takes two steps, which may be among those that have levels of their own now."""
    loop = looped.manifest.loops["denoise"]
    last = loop.schedule.timesteps - 1
    sampler = replace(loop.sampler, start="noise", start_level=None)
    manifest = replace(looped.manifest, loops={"denoise": replace(loop, sampler=sampler)})
    draft = replace(looped, manifest=manifest)
    found = (last // 2, last)
    monkeypatch.setattr("jscc.calibration.tune._find_levels", lambda *_: found)
    grown = iter([Figures(20.0, 0.5), Figures(20.0, 0.4)])
    figures = tune_module._Judge.figures
    monkeypatch.setattr(
        tune_module._Judge, "figures", lambda *given: next(grown, None) or figures(*given)
    )
    order = Order(Place(tmp_path / "x.jscc"), (1,), (2,), 1)
    result = tune(draft, *sent, order, lpips=Lpips(random_weights()), describe={}, progress=str)
    assert result.levels == {2: found}
    Receiver(Bundle.open(tmp_path / "x.jscc"), backend=ENGINE)  # its self-test passes
    test = result.bundle.manifest.selftest
    assert not np.array_equal(result.bundle.tensor(test.image), looped.tensor(test.image))


def test_levels_of_now_are_the_bundle_s_or_the_sampler_s(looped):
    loop = looped.manifest.loops["denoise"]
    last = loop.schedule.timesteps - 1
    lcm = replace(loop, sampler=replace(loop.sampler, name="lcm"))
    assert present_levels(loop, 3) == (0, round(last / 2), last)
    assert present_levels(lcm, 4) != present_levels(loop, 4)
    own = replace(loop, sampler=replace(loop.sampler, levels=((5, 7, last),)))
    assert present_levels(own, 3) == (5, 7, last)


def test_levels_of_other_counts_stay(looped, sent, tmp_path):
    """A bundle that is tuned again keeps what it had for other numbers of steps."""
    loop = looped.manifest.loops["denoise"]
    last = loop.schedule.timesteps - 1
    sampler = replace(loop.sampler, levels=((1, 2, last),))
    manifest = replace(looped.manifest, loops={"denoise": replace(loop, sampler=sampler)}, format=3)
    result = tune(
        replace(looped, manifest=manifest),
        *sent,
        Order(Place(tmp_path / "x.jscc"), (1,), (), 1),
        lpips=Lpips(random_weights()),
        describe={},
        progress=str,
    )
    assert result.bundle.manifest.loops["denoise"].sampler.levels == ((1, 2, last),)

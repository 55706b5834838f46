"""Trials: costs are those that numpy finds on the same receptions, and a budget bounds them."""

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest

import tiny_convolutions
from alexnet_weights import random_weights
from jscc.calibration.collect import receive, send_all
from jscc.calibration.graph import drop_unused, read_graph, write_graph
from jscc.calibration.layers import layers_of
from jscc.calibration.lpips import Lpips
from jscc.calibration.quantize import quantise
from jscc.calibration.rewrite import Place, rewrite
from jscc.calibration.trials import BROKEN, EQUAL_DB, Budget, Cost, Trials
from jscc.runtime.backends.onnxruntime import OnnxRuntimeBackend
from jscc.runtime.bundle import write_bundle
from jscc.runtime.receiver import Receiver
from jscc.runtime.transmitter import Transmitter


@pytest.fixture(scope="module")
def coarse(looped, tmp_path_factory):
    """The bundle with `decode` rounded coarsely."""
    model = read_graph(looped, "decode")
    quantise(model, layers_of(model), lambda name: 0.15)
    drop_unused(model)
    place = Place(tmp_path_factory.mktemp("coarse") / "coarse.jscc")
    return rewrite(looped, {"decode": model}, place, precision="int8", calibration=None)


def trials_of(source, airings, grid, lpips=None):
    return Trials(source, airings, grid, lpips=lpips, threads=1, progress=lambda _: None)


def images(bundle, airings, grid):
    receiver = Receiver(bundle, selftest=False)
    return [receive(receiver, airing, grid) for airing in airings]


def decibels(first, second):
    error = np.mean((first.astype(np.float64) - second.astype(np.float64)) ** 2)
    return 10 * np.log10(255**2 / error)


def test_full_precision_costs_nothing(looped, airings, grid):
    trials = trials_of(looped, airings, grid)
    assert trials.receptions == 4
    nothing = (0.0, None)
    expected = Cost(0.0, None, EQUAL_DB, {0.0: nothing, 10.0: nothing})
    assert trials.cost(looped) == expected


def test_costs_are_numpy_s(looped, coarse, airings, grid):
    exact, rough = images(looped, airings, grid), images(coarse, airings, grid)
    sent = [airing.image for airing in airings]
    losses = [decibels(s, e) - decibels(s, r) for s, e, r in zip(sent, exact, rough, strict=True)]
    snrs = [airing.received.csi.snr_db for airing in airings]
    cost = trials_of(looped, airings, grid).cost(coarse)
    assert cost.psnr == pytest.approx(np.mean(losses), abs=1e-9)
    assert cost.agreement_db == pytest.approx(
        np.mean([decibels(e, r) for e, r in zip(exact, rough, strict=True)]), abs=1e-9
    )
    assert list(cost.by_snr) == [0.0, 10.0]
    for snr_db, (loss, _) in cost.by_snr.items():
        own = [loss for loss, snr in zip(losses, snrs, strict=True) if snr == snr_db]
        assert loss == pytest.approx(np.mean(own), abs=1e-9)


def test_lpips_is_its_rise(looped, coarse, airings, grid):
    metric = Lpips(random_weights())
    exact, rough = images(looped, airings[:2], grid), images(coarse, airings[:2], grid)
    rises = [
        metric(airing.image, after) - metric(airing.image, before)
        for airing, before, after in zip(airings[:2], exact, rough, strict=True)
    ]
    cost = trials_of(looped, airings[:2], grid, metric).cost(coarse)
    assert cost.lpips == pytest.approx(np.mean(rises), abs=1e-9)
    assert [rise for _, rise in cost.by_snr.values()] == pytest.approx(rises, abs=1e-9)


def test_images_too_small_for_lpips_have_none(looped, grid):
    transmitter = Transmitter(looped, backend=OnnxRuntimeBackend(threads=1))
    airings = send_all(transmitter, tiny_convolutions.photos(1, height=24), grid)
    assert trials_of(looped, airings, grid, Lpips(random_weights())).cost(looped).lpips is None


COST = Cost(0.1, 0.01, 40.0, {})


@pytest.mark.parametrize(
    ("budget", "holds"),
    [
        (Budget(psnr=0.1), True),
        (Budget(psnr=0.09), False),
        (Budget(lpips=0.01), True),
        (Budget(lpips=0.009), False),
        (Budget(agreement=40.0), True),
        (Budget(agreement=40.1), False),
        (Budget(psnr=0.2, lpips=0.001), False),
        (Budget(psnr=0.2, lpips=0.1, agreement=50.0), False),
        (Budget(psnr=0.2, lpips=0.1, agreement=30.0), True),
    ],
)
def test_a_budget_holds_where_every_part_does(budget, holds):
    assert budget.holds(COST) == holds


def test_a_budget_of_what_was_not_measured_does_not_hold():
    assert not Budget(lpips=1.0).holds(dataclasses.replace(COST, lpips=None))
    assert Budget(psnr=1.0).holds(dataclasses.replace(COST, lpips=None))


def test_an_attempt_without_an_image_fails_every_budget(looped, airings, grid, tmp_path):
    """What is no image any more ends this attempt, and not the search."""
    model = read_graph(looped, "decode")
    last = layers_of(model)[-1].weight
    array = np.full_like(last.const_value.numpy(), np.nan)
    last.const_value = ir.Tensor(array, name=last.name)
    folder = tmp_path / "parts"
    folder.mkdir()
    files = {name: looped.file(name) for name in looped.manifest.files}
    files |= write_graph(model, "decode", folder)
    manifest = dataclasses.replace(looped.manifest, selftest=None, files={})
    bundle = write_bundle(tmp_path / "broken.jscc", manifest, files)
    cost = trials_of(looped, airings, grid).cost(bundle)
    assert cost == BROKEN
    for budget in (Budget(psnr=1e9), Budget(lpips=1e9), Budget(agreement=1e-9)):
        assert not budget.holds(cost)


def test_each_reception_is_told(looped, airings, grid):
    told = []
    trials = Trials(looped, airings, grid, lpips=None, threads=1, progress=told.append)
    trials.cost(looped)
    assert len(told) == 2 * len(airings)

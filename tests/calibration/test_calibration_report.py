"""Report: names layers with numbers and reasons, and draws what was measured."""

import dataclasses
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest

from jscc.calibration.calibrate import Order, Outcome
from jscc.calibration.collect import Collected, Grid
from jscc.calibration.ranges import Ranges
from jscc.calibration.report import QUANTISED, RETURNED, markdown, picture
from jscc.calibration.rewrite import Place
from jscc.calibration.search import Found, Trial
from jscc.calibration.trials import Budget, Cost

SVG = "{http://www.w3.org/2000/svg}"
UP, DOWN, FIRST = ("denoise", "up.1"), ("denoise", "down.0"), ("decode", "first")


def seen(*cells):
    ranges = Ranges()
    for snr_db, step, value in cells:
        ranges.add(np.float32([value]), (snr_db, step))
    return ranges


def outcome(**changes):
    """A calibration of three layers that gave one back and kept one."""
    over, within = Cost(0.5, None, 30.0, {}), Cost(0.05, None, 45.5, {0.0: (0.02, None)})
    made = Outcome(
        bundle=SimpleNamespace(
            path=SimpleNamespace(name="out.jscc"),
            manifest=SimpleNamespace(system="sing_zero", variant="ffhq"),
        ),
        order=Order(Place(None), "int8", Grid((0.0, 7.0)), Budget(psnr=0.1)),
        collected=Collected(
            ranges={
                "denoise": {
                    "h": seen(
                        (0.0, 999.0, 4.0), (0.0, 1.0, 2.0), (7.0, 999.0, 1.0), (7.0, 1.0, 1.0)
                    )
                },
                "decode": {"x": seen((0.0, None, 3.0), (7.0, None, 1.0))},
            },
            receptions=16,
            evaluations={"decode": 16, "denoise": 32},
            timesteps={1.0, 999.0},
        ),
        kept={FIRST: "first: reads a graph input"},
        sensitivity={UP: 3.25e-2, DOWN: 1e-4},
        found=Found((UP,), within, (Trial(0, over, False), Trial(1, within, True))),
        sizes=(95.5, 24.25),
        tried=8,
        parameters={UP: 1_000_000, DOWN: 3_000_000, FIRST: 500_000},
    )
    return dataclasses.replace(made, **changes)


def text(**changes):
    return markdown(outcome(**changes), "plot.svg")


@pytest.mark.parametrize(
    "said",
    [
        "# Calibration of out.jscc: int8",
        "sing_zero, ffhq: 95.50 MiB in full precision, 24.25 MiB now",
        "Measured on 16 receptions at 0, 7 dB and 2 time steps (999, 1)",
        "stage runs: decode 16, denoise 32",
        "Tried on 8 receptions of other images",
        "3 of 4.5 million weights are converted",
        "Ranges by mse; weights per output feature",
        "(plot.svg)",
        "| 0 | 0.500 | – | 30.00 | no |",
        "| 1 | 0.050 | – | 45.50 | yes |",
        "| denoise/up.1 | 1000000 | 3.25e-02 |",
        "- first: reads a graph input: decode/first",
        "| 0 | 0.020 | – |",
    ],
)
def test_it_says(said):
    assert said in text()


def test_lpips_is_told_where_it_was_measured():
    cost = Cost(0.05, 0.0042, 45.5, {0.0: (0.02, -0.0013)})
    report = text(found=Found((), cost, (Trial(0, cost, True),)))
    assert "| 0 | 0.050 | +0.0042 | 45.50 | yes |" in report
    assert "| 0 | 0.020 | -0.0013 |" in report
    assert "Given back" not in report


def test_many_layers_of_one_reason_are_shortened():
    kept = {("decode", f"layer{index}"): "shortcut" for index in range(33)}
    report = text(kept=kept)
    assert "decode/layer19 and 13 more" in report
    assert "layer20" not in report


def test_every_table_has_as_many_cells_in_each_row():
    rows = [line for line in text().splitlines() if line.startswith("|")]
    assert rows
    widths = {}
    for line in rows:
        head = rows[max(i for i, r in enumerate(rows[: rows.index(line) + 1]) if "layer" in r
                        or "given back" in r or "SNR, dB" in r)]  # fmt: skip
        widths.setdefault(head, set()).add(line.count("|"))
    assert all(len(found) == 1 for found in widths.values())


def test_the_picture_is_xml_and_tells_what_was_given_back_by_colour():
    root = ElementTree.fromstring(picture(outcome()))
    assert root.tag == f"{SVG}svg"
    styles = [path.get("style", "").lower() for path in root.iter(f"{SVG}path")]
    assert sum(f"fill: {QUANTISED.lower()}" in style for style in styles) == 1
    assert sum(f"fill: {RETURNED.lower()}" in style for style in styles) == 1


def test_the_picture_is_the_same_every_time():
    assert picture(outcome()) == picture(outcome())


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_a_bundle_without_loops_is_drawn(precision):
    order = dataclasses.replace(outcome().order, precision=precision)
    collected = Collected(ranges={"decode": {"x": seen((0.0, None, 3.0))}}, receptions=1)
    data = picture(outcome(order=order, collected=collected, sensitivity={}))
    assert ElementTree.fromstring(data).tag == f"{SVG}svg"

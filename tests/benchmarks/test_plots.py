"""Plots: the right points under readable names, the same bytes every time, in small files."""

import io
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

import recorded
from jscc.benchmarks import cli, plots
from jscc.benchmarks.plots import (
    COLOURS,
    Place,
    looks,
    plot_cbr,
    plot_plane,
    plot_snr,
    plot_time,
)
from jscc.benchmarks.series import DIGITAL, Point, Series, ratio, series_of
from jscc.runtime.errors import UsageError

CBR = Fraction(1, 96)


@pytest.fixture
def series():
    return series_of([recorded.systems(), recorded.baseline()])


@pytest.fixture
def drawn(monkeypatch):
    """Curves as matplotlib is given them: label -> (x, y)."""
    found = {}
    plot = plots.Axes.plot

    def record(self, x, y, **look):
        found.setdefault(look["label"], []).append((list(x), list(y)))
        return plot(self, x, y, **look)

    monkeypatch.setattr(plots.Axes, "plot", record)
    return found


def test_metric_against_snr(series, drawn):
    plot_snr(series, ["psnr_db", "lpips"], CBR, "svg")
    assert drawn["sing"] == [([1.0, 7.0], [21.0, 23.0]), ([1.0, 7.0], [0.5, 0.4])]
    assert drawn["HEVC + LDPC"][0] == ([1.0, 4.0, 7.0], [12.0, 18.0, 25.0])
    assert list(drawn) == ["af", "sing", "sing, codec alone", "HEVC + LDPC"]


def test_metric_against_cbr(series, drawn):
    plot_cbr(series, ["psnr_db"], 7.0, "svg")
    assert drawn["sing"] == [([0.01043, 1 / 48], [23.0, 25.0])]
    assert drawn["HEVC + LDPC"] == [([1 / 96, 1 / 48], [25.0, 28.0])]


def test_the_plane_shows_whole_measurements_only(series, drawn):
    plot_plane(series, ["psnr_db", "lpips"], CBR, "svg")
    assert drawn["sing"] == [([21.0, 23.0], [0.5, 0.4])]
    assert drawn["HEVC + LDPC"] == [([25.0], [0.45])]  # where all images arrived


def test_a_metric_over_time_shows_what_was_timed(series, drawn):
    plot_time(series, "lpips", CBR, "svg")
    assert drawn["sing"] == [([1.5, 1.5], [0.5, 0.4])]
    assert "HEVC + LDPC" not in drawn


@pytest.mark.parametrize("length", [5, 20, 60, 1000])
def test_long_names_stay_on_the_paper(series, length):
    """Below the panel in two columns, in one, or in small letters; never over the edge."""
    named = [replace(each, label=f"{each.label} {'x' * length}") for each in series]
    png = plot_snr(named, ["psnr_db"], CBR, "png")
    pixels = np.array(Image.open(io.BytesIO(png)).convert("L"))
    assert (pixels[:, [0, -1]] == 255).all()


def test_names_are_no_formulas(series):
    assert plot_snr([replace(series[0], label="$\\bad{$")], ["psnr_db"], CBR, "svg")


def test_a_curve_that_is_one_point_bears_one_label(series, monkeypatch):
    """A code that arrives whole or not at all is as good at 10 as at 13 dB."""
    texts = []
    monkeypatch.setattr(plots.Axes, "annotate", lambda self, text, *_, **__: texts.append(text))
    point = Point(1 / 96, 10.0, {"psnr_db": 27.0, "lpips": 0.4})
    digital = Series("HEVC", DIGITAL, (replace(point, snr_db=13.0), point))
    plot_plane([*series[:1], digital], ["psnr_db", "lpips"], CBR, "svg")
    assert texts[-1] == "10–13 dB"
    assert "7 dB" in texts


@pytest.mark.parametrize("form", ["svg", "png"])
@pytest.mark.parametrize("kind", ["snr", "cbr", "plane"])
def test_the_same_figures_give_the_same_small_file(series, form, kind):
    def draw():
        if kind == "cbr":
            return plot_cbr(series, ["psnr_db", "lpips"], 7.0, form)
        make = plot_snr if kind == "snr" else plot_plane
        return make(series, ["psnr_db", "lpips"], CBR, form)

    data = draw()
    assert data == draw()
    assert len(data) < 150_000
    assert not re.search(rb"20\d\d-\d\d-\d\d", data)


def test_a_figure_is_a_picture_of_white_paper(series):
    png = np.array(Image.open(io.BytesIO(plot_snr(series, ["psnr_db"], CBR, "png"))).convert("RGB"))
    assert (png[0, 0] == 255).all()
    svg = plot_snr(series, ["psnr_db"], CBR, "svg")
    assert ET.fromstring(svg).tag.endswith("svg")


def test_a_metric_that_nobody_measured_is_refused(series):
    with pytest.raises(UsageError, match="got no fid at cbr 1/96, .* some of cbr 1/96, 1/48 a"):
        plot_snr(series, ["fid"], CBR, "svg")


def test_a_place_where_nothing_was_measured_is_refused(series):
    with pytest.raises(UsageError, match="at SNR 5 dB, expected .* SNR 1, 4, 7 dB") as caught:
        plot_cbr(series, ["psnr_db"], 5.0, "svg")
    assert caught.value.code == "E_PLOT"


def test_points_without_a_figure_are_left_out(series):
    (sing,) = (each for each in series if each.label == "sing")
    low = min(sing.at(cbr=CBR).points, key=lambda point: point.snr_db)
    low.figures["lpips"] = None
    cut = Place(cbr=CBR).cut([sing], ["psnr_db", "lpips"])
    assert [point.snr_db for point in cut[0].points] == [7.0]


def test_the_plane_needs_two_metrics(series):
    with pytest.raises(UsageError, match="--metric: got psnr_db, expected two"):
        plot_plane(series, ["psnr_db"], CBR, "svg")


def test_looks_stay_apart_without_colour(series):
    found = looks(series)
    assert len({(look["marker"], look["linestyle"]) for look in found}) == len(series)
    assert found[-1]["color"] == "#000000"  # the digital one


def lightness(colour: str) -> float:
    """CIE L* of a colour."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    luminance = float(np.dot([0.2126, 0.7152, 0.0722], linear))
    return 116 * luminance ** (1 / 3) - 16


def test_colours_can_be_seen_on_white():
    assert max(map(lightness, COLOURS)) < 75
    assert len(set(COLOURS)) == len(COLOURS)


@pytest.mark.parametrize(
    ("cbr", "name"), [(1 / 96, "1/96"), (0.01043, "1/96"), (1 / 384, "1/384"), (0.3, "3/10")]
)
def test_ratios_have_their_usual_names(cbr, name):
    assert str(ratio(cbr)) == name


def test_the_command_writes_the_figure(tmp_path, capsys):
    paths = recorded.write(tmp_path, a=recorded.systems(), b=recorded.baseline())
    out = tmp_path / "psnr.svg"
    words = ["plot", *map(str, paths), "--kind", "snr", "--metric", "psnr_db", "-o", str(out)]
    assert cli.main(words) == 0
    assert out.read_bytes().startswith(b"<?xml")
    assert "psnr.svg" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--kind", "snr", "-o", "a.gif"), "--output: got 'a.gif', expected .* svg or png"),
        (("--kind", "grid", "-o", "a.svg"), "--output: got 'a.svg', expected .* png"),
        (("--kind", "snr", "-o", "a.svg", "--metric", "mse"), "--metric: got 'mse', expected some"),
        (("--kind", "grid", "-o", "a.png"), "plot: got no --images"),
        (("--kind", "cbr", "-o", "a.svg", "--snr", "1,7"), "--snr: got '1,7', expected one value"),
        (("--kind", "snr", "-o", "a.svg", "--cbr", ""), "--cbr: got '', expected one value"),
    ],
)
def test_options_of_plots_are_checked(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    (path,) = recorded.write(tmp_path, a=recorded.systems())
    with pytest.raises(UsageError, match=message):
        cli.main(["plot", str(path), *words])

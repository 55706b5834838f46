"""Scenario plots: the right figures at the right places, the same bytes every time."""

import pytest

import recorded
from jscc.benchmarks import plots, scenario_plots
from jscc.benchmarks.scenario_plots import plot_rates, plot_stages, plot_throughput


@pytest.fixture
def drawn(monkeypatch):
    """Curves as matplotlib is given them: label -> (x, y)."""
    found = {}
    plot = scenario_plots.Axes.plot

    def record(self, x, y, **look):
        found[look["label"]] = list(x), list(y)
        return plot(self, x, y, **look)

    monkeypatch.setattr(scenario_plots.Axes, "plot", record)
    return found


def test_throughput_against_batch_and_workers(drawn):
    plot_throughput(recorded.offline(), "batch")
    assert drawn == {"1 worker": ([1, 4], [8, 9.5]), "2 workers": ([1, 4], [15, 17])}
    drawn.clear()
    plot_throughput(recorded.offline(), "workers")
    assert drawn == {"batch 1": ([1, 2], [8, 15]), "batch 4": ([1, 2], [9.5, 17])}


def test_percentiles_against_the_rate_and_the_bound(drawn, monkeypatch):
    bounds = []
    monkeypatch.setattr(scenario_plots.Axes, "axhline", lambda self, y, **_: bounds.append(y))
    plot_rates(recorded.server())
    assert drawn["p50"] == ([2, 4, 7], [130, 180, 900])
    assert drawn["p99"] == ([2, 4, 7], pytest.approx([195, 270, 1350]))
    assert bounds == [400]
    free = recorded.server()
    free["case"]["bound_ms"] = None
    plot_rates(free)
    assert bounds == [400]


def test_times_far_apart_have_a_logarithmic_axis(monkeypatch):
    scales = []
    scale = scenario_plots.Axes.set_yscale
    monkeypatch.setattr(
        scenario_plots.Axes,
        "set_yscale",
        lambda self, name, **more: (scales.append(name), scale(self, name, **more)),
    )
    plot_rates(recorded.server())
    assert scales == []
    overrun = recorded.server()
    overrun["points"][-1]["latency_ms"] = recorded.times(60_000.0)
    plot_rates(overrun)
    assert scales == ["log"]


def test_a_bar_for_each_percentile_of_each_stage(monkeypatch):
    widths = []
    barh = scenario_plots.Axes.barh

    def record(self, places, values, *rest, **more):
        widths.append(values)
        return barh(self, places, values, *rest, **more)

    monkeypatch.setattr(scenario_plots.Axes, "barh", record)
    plot_stages(recorded.latency())
    assert widths == [[120, 30, 90], [144, 36, 108], [180, 45, 135]]


@pytest.mark.parametrize(
    "draw",
    [
        lambda: plot_stages(recorded.latency()),
        lambda: plot_throughput(recorded.offline(), "batch"),
        lambda: plot_rates(recorded.server()),
    ],
)
def test_the_same_figures_give_the_same_small_file(draw):
    assert draw() == draw()
    assert len(draw()) < 60_000


def test_names_are_no_formulas():
    odd = recorded.latency()
    odd["latency_ms"]["stages"] = {"$\\bad{$": recorded.times(1.0)}
    assert plot_stages(odd).startswith(b"<?xml")
    assert plots.plain("a$b") == r"a\$b"

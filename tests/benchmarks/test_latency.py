"""Latency: the figures add up, the document is complete, and slowness shows where it is."""

import itertools
import json
import platform
import time
import types
from pathlib import Path

import numpy as np
import pytest

import tiny_bundle
from jscc.__main__ import main
from jscc.benchmarks import latency
from jscc.benchmarks.cases import Case, weights_of
from jscc.benchmarks.latency import measure, report, table
from jscc.benchmarks.percentiles import figure, summary
from jscc.benchmarks.report import versions
from jscc.runtime.backends.onnxruntime import OnnxRuntimeSession
from jscc.runtime.errors import UnavailableError
from jscc.runtime.probe import make_sides, make_symbols


def make_case(**changes):
    case = {
        "size": (12, 16),
        "runs": 4,
        "warmup": 1,
        "seed": 0,
        "sampler": None,
        "steps": None,
        "threads": 1,
        "providers": ("cpu",),
    }
    return Case(**{**case, **changes})


def test_percentiles_are_nearest_rank():
    """Of 1 to 100, in any order, the nearest-rank percentiles are the ranks themselves."""
    found = summary([float(value) for value in np.random.default_rng(0).permutation(100) + 1])
    expected = {"p50": 50, "p90": 90, "p99": 99, "mean": 50.5, "min": 1, "max": 100}
    assert found == expected


@pytest.fixture(scope="module")
def document(tmp_path_factory):
    """One measurement of the bundle with a loop."""
    path = tmp_path_factory.mktemp("bench") / "diffusion.jscc"
    return measure(tiny_bundle.write_diffusion(path), make_case(steps=3, runs=5))


def test_the_document_survives_json(document):
    assert json.loads(json.dumps(document, allow_nan=False))["case"]["steps"] == 3


def test_every_stage_is_timed_and_within_the_whole(document):
    stages, whole = document["latency_ms"]["stages"], document["latency_ms"]["end_to_end"]
    assert set(stages) == {"decode", "condition", "denoise", "render"}
    assert sum(stage["mean"] for stage in stages.values()) <= whole["mean"]
    for times in (whole, *stages.values()):
        assert 0 < times["min"] <= times["p50"] <= times["p90"] <= times["p99"] <= times["max"]
    assert len(document["samples_ms"]) == 5


def test_the_cold_start_is_the_sum_of_its_parts(document):
    cold = dict(document["cold_start_ms"])
    total = cold.pop("total")
    assert set(cold) == {"interpreter", "import", "open", "load", "first_image"}
    assert all(value > 0 for value in cold.values())
    assert sum(cold.values()) <= total + 1


def test_memory_only_grows_and_weights_are_taken_off(document):
    memory = document["memory_mib"]
    if platform.system() != "Linux":
        assert memory["peak"] is None
        return
    order = ("interpreter", "import", "open", "load", "first_image", "peak")
    values = [memory[name] for name in order]
    # The kernel counts resident pages in batches: a later figure may be a little lower.
    assert all(late >= early - 1 for early, late in itertools.pairwise(values))
    assert memory["above_weights"] == pytest.approx(memory["peak"] - memory["weights"], abs=0.01)


def test_the_document_says_on_what_and_with_what(document):
    assert document["machine"]["threads"] >= 1
    assert document["versions"] == versions()
    assert document["versions"]["numpy"] == np.__version__
    assert document["case"]["seed"] == 0
    assert document["bundle"]["system"] == "tiny"
    assert document["record"]["loops"]["denoise"]["steps"] == 3


def test_the_table_has_a_row_for_each_stage(document):
    lines = table(document).splitlines()
    assert lines[0].startswith("| 12×16, ms | p50 |")
    names = [line.split("|")[1].strip() for line in lines[2:]]
    parts = ["end to end", *document["latency_ms"]["stages"], "cold start to the first image"]
    assert names[: len(parts)] == parts
    assert f"| {figure(document['latency_ms']['end_to_end']['p90'])} |" in lines[2]


def test_energy_is_said_or_why_not(document):
    """A machine without counters gives a reason, one with them a figure; both are printed."""
    found = document["energy"]
    assert (found["joules_per_image"] is None) == (found["reason"] != "" and not found["parts"])
    assert "energy: " in report(document)
    known = {"joules_per_image": 2.5, "watts": 10.0, "parts": {"rapl package-0": 5.0}, "reason": ""}
    assert "| energy of an image, J | 2.5 |" in table({**document, "energy": known})


def test_results_from_before_energy_have_their_table(document):
    old = {name: value for name, value in document.items() if name != "energy"}
    assert "energy" not in table(old)


@pytest.mark.parametrize(
    ("value", "text"), [(0.1234, "0.123"), (1.26, "1.3"), (99.94, "99.9"), (1234.5, "1234")]
)
def test_figures_are_short(value, text):
    assert figure(value) == text


def test_weights_are_those_of_the_receiver(shared_bundles):
    """The transmitter's graph is not loaded by a receiver, external data are."""
    for bundle in shared_bundles.values():
        files = {name: entry.size for name, entry in bundle.manifest.files.items()}
        others = ("SOURCE.md", "graphs/encode.onnx")
        assert weights_of(bundle.manifest) == sum(
            size for name, size in files.items() if name not in others
        )


def test_a_slow_stage_shows_as_that_stage(shared_bundles, monkeypatch):
    """The control of the measurement: 30 ms planted in one stage are found there."""
    monkeypatch.setattr(latency, "_cold_start", lambda path, case: {"peak_rss_mib": None})
    real = OnnxRuntimeSession.run

    def slow(self, arrays):
        if "timestep" in arrays:
            time.sleep(0.03)
        return real(self, arrays)

    monkeypatch.setattr(OnnxRuntimeSession, "run", slow)
    found = measure(shared_bundles["diffusion"], make_case(steps=2, runs=3))["latency_ms"]
    assert found["stages"]["denoise"]["p50"] >= 60
    assert found["stages"]["decode"]["p50"] < found["stages"]["denoise"]["p50"]
    assert found["end_to_end"]["p50"] >= found["stages"]["denoise"]["p50"]


def test_warm_up_runs_do_not_count(shared_bundles, monkeypatch):
    monkeypatch.setattr(latency, "_cold_start", lambda path, case: {"peak_rss_mib": None})
    now = [0.0]
    real = OnnxRuntimeSession.run

    def slow_at_first(self, arrays):
        now[0] += 0.25 if now[0] else 2
        return real(self, arrays)

    clock = types.SimpleNamespace(perf_counter=lambda: now[0])
    monkeypatch.setattr(latency, "time", clock)

    bundle = shared_bundles["diffusion"]  # no self-test, so the first run is the first image
    monkeypatch.setattr(OnnxRuntimeSession, "run", slow_at_first)
    document = measure(bundle, make_case(steps=1, runs=2, warmup=1))
    first, second = document["samples_ms"]
    assert 250 <= first == second < 2000


def test_symbols_of_the_probe_are_admissible(shared_bundles):
    manifest = shared_bundles["codec"].manifest
    symbols = make_symbols(manifest, (250, 251), seed=3)
    assert symbols.shape == (2, 64, 64)
    assert symbols.dtype == np.complex64
    assert np.mean(np.abs(symbols) ** 2) == pytest.approx(1 + 10**-0.7, rel=0.05)
    np.testing.assert_array_equal(symbols, make_symbols(manifest, (250, 251), seed=3))
    assert make_sides(manifest, (16, 16)) == {}
    (side,) = make_sides(shared_bundles["diffusion"].manifest, (16, 16)).values()
    assert side.shape == (1, 2, 5)


def test_a_cold_start_that_fails_is_said():
    with pytest.raises(
        UnavailableError, match=r"got status 1 \(.*E_BUNDLE_MISSING.*\), expected 0"
    ):
        latency._cold_start(Path("/nowhere"), make_case())


def test_the_command(shared_bundles, tmp_path, capsys):
    output = tmp_path / "b.json"
    bundle = str(shared_bundles["codec"].path)
    arguments = ["bench", bundle, "--runs", "3", "--size", "16x24", "--json", str(output)]
    assert main(arguments) == 0
    captured = capsys.readouterr()
    for words in ("end to end", "decode", "p99", "Cold start", "import", "Memory", "peak"):
        assert words in captured.out
    assert captured.err == f"jscc bench: wrote {output}\n"
    assert json.loads(output.read_text())["case"]["size"] == [16, 24]
    assert main(arguments) == 73
    assert "expected a free name" in capsys.readouterr().err

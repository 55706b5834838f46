"""Offline: every place is measured, figures agree with each other, and dead workers are said."""

import json
from dataclasses import replace

import pytest

from jscc.__main__ import main
from jscc.benchmarks import offline
from jscc.benchmarks.cases import Case
from jscc.benchmarks.offline import Plan, measure, report, table
from jscc.runtime.errors import UnavailableError

CASE = Case((12, 16), 20, 1, 0, None, 2, None, ("cpu",))
PLAN = Plan(batches=(3,), worker_counts=(2,), duration_s=0.1)


@pytest.fixture(scope="module")
def document(shared_bundles):
    """One measurement of the bundle with a loop, in three processes."""
    return measure(shared_bundles["diffusion"], CASE, PLAN)


def test_every_batch_meets_every_number_of_workers_and_one_worker_with_batch_1_is_first():
    assert Plan((4,), (2,), 1.0).places == [(1, 1), (4, 2)]
    assert Plan((2, 1), (2, 1), 1.0).places == [(1, 1), (2, 2), (1, 2), (2, 1)]


def test_every_place_is_measured(document):
    places = [(point["batch"], point["workers"]) for point in document["points"]]
    assert places == [(1, 1), (3, 2)]
    assert json.loads(json.dumps(document, allow_nan=False))["case"]["duration_s"] == 0.1


def test_figures_agree_with_each_other(document):
    alone = document["points"][0]["images_per_s"]
    for point in document["points"]:
        assert point["seconds"] >= PLAN.duration_s
        assert point["images"] % point["batch"] == 0
        assert point["images"] >= point["batch"] * point["workers"]
        assert point["megapixels_per_s"] == pytest.approx(point["images_per_s"] * 12 * 16 / 1e6)
        assert point["efficiency"] == pytest.approx(
            point["images_per_s"] / (alone * point["workers"])
        )
        if point["workers"] == 1:
            assert point["images_per_s"] == pytest.approx(
                point["images"] / point["seconds"], rel=1e-3
            )
    assert document["points"][0]["efficiency"] == 1


def test_two_processes_have_two_memories(document):
    alone, two = (point["peak_rss_mib"] for point in document["points"])
    assert alone is None or two > 1.5 * alone


def test_workers_share_the_cores_that_are_there(shared_bundles, monkeypatch):
    """Else nothing could be said of two workers, which have fewer threads each than one."""
    monkeypatch.setattr(offline, "available_threads", lambda: 6)
    threads = []

    def remember(path, case, place, duration_s):
        threads.append(case.threads)
        return {"images_per_s": 1.0, "workers": place[1]}, None

    monkeypatch.setattr(offline, "_measure", remember)
    bundle = shared_bundles["diffusion"]
    assert measure(bundle, CASE, PLAN)["case"]["threads"] == 3
    measure(bundle, replace(CASE, threads=5), PLAN)
    assert set(threads) == {3, 5}


def test_the_receiver_got_a_whole_batch(document):
    assert document["record"]["batch"] == document["points"][-1]["batch"] == 3
    assert document["record"]["loops"]["denoise"]["steps"] == 2


def test_tables(document):
    document = json.loads(json.dumps(document))
    for point in document["points"]:  # a machine with a counter has told
        point["energy"] = {
            "joules_per_image": None, "watts": None, "parts": {}, "reason": "no counter"
        }  # fmt: skip
    assert "| workers | batch | images/s |" in table(document)
    assert table(document).count("\n") == 2 + 2
    assert "J per image" not in table(document)
    for point in document["points"]:
        point["energy"] = {
            "joules_per_image": 1.25, "watts": 10.0, "parts": {"rapl package-0": 5.0}, "reason": ""
        }  # fmt: skip
    assert "J per image" in table(document)
    ends = [line.split("|")[-2].strip() for line in table(document).splitlines()[2:]]
    assert ends == ["1.2"] * len(document["points"])
    assert "energy: 1.25 J per image, 10 W (rapl package-0" in report(document)
    assert "2 steps (" in report(document)


def test_a_worker_that_dies_is_said(shared_bundles):
    broken = replace(CASE, sampler="nonesuch")
    with pytest.raises(UnavailableError, match=r"got a worker with status 1 \(.*nonesuch.*\), exp"):
        measure(shared_bundles["diffusion"], broken, Plan((1,), (1,), 0.1))


def test_the_command(shared_bundles, tmp_path, capsys):
    output = tmp_path / "o.json"
    words = ["bench", str(shared_bundles["codec"].path), "--scenario", "offline"]
    words += ["--size", "16x24", "--batches", "1", "--worker-counts", "1", "--duration", "0.05"]
    assert main([*words, "--json", str(output)]) == 0
    captured = capsys.readouterr()
    for text in ("offline, 16x24", "megapixels/s", "efficiency", "energy: "):
        assert text in captured.out
    stored = json.loads(output.read_text())
    assert (stored["kind"], stored["case"]["scenario"]) == ("offline", "offline")
    assert main([*words, "--runs", "3"]) == 2
    assert (
        "--runs: got it with --scenario offline, expected single-stream or server"
        in capsys.readouterr().err
    )
    assert main([*words, "--batches", "2,2"]) == 2
    assert "got '2,2', expected each item once" in capsys.readouterr().err

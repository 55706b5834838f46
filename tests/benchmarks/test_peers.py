"""The peer benchmark: turns, figures, the worker's protocol, and one small comparison for real."""

import argparse
import io
import json

import numpy as np
import pytest

from jscc.benchmarks import peers
from jscc.benchmarks.peer_case import Case, read_case
from jscc.benchmarks.peer_worker import ENGINES, OURS, serve
from jscc.benchmarks.peers import Engine, Turn, choose, compare, difference, remote
from jscc.runtime.errors import UnavailableError, UsageError

CASE = Case("small", 128, 192)


def engine(name: str, *wall_ms: float) -> Engine:
    turns = tuple(Turn(wall, 2 * wall) for wall in wall_ms)
    return Engine(name, 1.0, Turn(999.0, 999.0), turns, 100.0)


def parse(*arguments: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    peers.add_arguments(parser)
    return parser.parse_args([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The small case, exported as the benchmark does it, in a process of its own."""
    pytest.importorskip("torch", reason="torch is not installed")
    path = tmp_path_factory.mktemp("case")
    with remote("export") as worker:
        worker.ask(
            "prepare", case={"scale": "small", "height": 128, "width": 192}, folder=str(path)
        )
    return path


def test_ratios_are_of_medians_with_the_spread_of_neighbours():
    pair = compare(engine(OURS, 10, 20, 30), engine("peer", 30, 30, 120), {})
    assert pair["wall_ratio"] == {"median": 1.5, "min": 1.5, "max": 4.0}
    assert pair["cpu_ratio"]["median"] == 1.5


def test_the_first_turn_does_not_count():
    assert compare(engine(OURS, 5), engine("peer", 5), {})["wall_ratio"]["median"] == 1
    assert engine(OURS, 5).as_json()["first_ms"] == 999


def test_difference_is_measured_against_the_peer():
    theirs = np.array([[3.0, -4.0]], np.float32)
    found = difference(theirs + np.float32(0.5), theirs)
    assert found["max_abs"] == 0.5
    assert found["peak"] == 4
    assert found["psnr_db"] == pytest.approx(20 * np.log10(4 / 0.5))
    assert difference(theirs, theirs)["psnr_db"] is None


@pytest.mark.slow
def test_the_case_comes_back_as_it_was_written(folder):
    case, entry, inputs = read_case(folder)
    assert case == CASE
    assert list(inputs) == [port.name for port in entry.inputs]
    assert inputs["latent"].shape == (1, 4, 16, 24)
    assert (folder / entry.graph.removeprefix("graphs/")).is_file()


@pytest.mark.slow
def test_our_engine_and_pytorch_agree_and_take_turns(folder):
    said: list[str] = []
    pair = peers.pairing(folder, "torch-eager", threads=1, runs=2, progress=said.append)
    assert said == [f"load {OURS}", "load torch-eager", *[OURS, "torch-eager"] * 3]
    assert pair["quality"]["psnr_db"] > 100
    assert 0 < pair["quality"]["max_abs"] < 1e-4 * pair["quality"]["peak"]
    for side in ("ours", "peer"):
        assert len(pair[side]["turns"]) == 2
        assert pair[side]["peak_rss_mib"] > 20
    # Our process has no torch in it.
    assert pair["ours"]["peak_rss_mib"] < pair["peer"]["peak_rss_mib"]
    table = peers.table({"pairs": [pair]})
    assert "| torch-eager |" in table


def test_the_command_writes_a_result(tmp_path, monkeypatch, capsys):
    turns = iter([*[10.0, 30.0] * 3])
    saved = {}

    class Stub:
        def __init__(self, name):
            self.name = name

        def ask(self, do, **arguments):
            if do == "save":
                saved[self.name] = arguments["path"]
                np.save(arguments["path"], np.ones(3, np.float32))
            wall = next(turns) if do == "run" else 0.0
            answers = {
                "load": {"load_s": 1.0},
                "run": {"wall_ms": wall, "cpu_ms": wall},
                "save": {"peak_rss_mib": 512.0},
            }
            return answers[do]

        def close(self):
            pass

    monkeypatch.setattr(peers, "Remote", Stub)
    work = tmp_path / "work"
    case = work / "small-128x192-128x192-0"
    case.mkdir(parents=True)
    (case / "case.json").write_text("{}")
    out = tmp_path / "out.json"
    options = ("--scale", "small", "--size", "128x192", "--runs", 2, "--threads", 1)
    assert peers.run(parse(*options, "--work", work, "--json", out)) == 0
    result = json.loads(out.read_text())
    assert result["kind"] == "peers"
    assert result["case"]["height"] == 128
    assert result["pairs"][0]["wall_ratio"]["median"] == 3
    assert result["pairs"][0]["quality"]["psnr_db"] is None
    assert "| torch-eager | 3.00 (3.00–3.00) |" in capsys.readouterr().out
    assert str(tmp_path) not in out.read_text()


def test_compile_adds_its_two_settings():
    assert choose("torch-eager", compiled=False) == ("torch-eager",)
    chosen = choose("torch-eager,torch-compile", compiled=True)
    assert chosen == ("torch-eager", "torch-compile", "torch-compile-freezing")
    assert set(chosen) < set(ENGINES)


@pytest.mark.parametrize("name", ["tensorflow", OURS, ""])
def test_unknown_peers_are_refused(name):
    with pytest.raises(UsageError, match=f"--peers: got '{name}', expected some of torch-e") as e:
        choose(name, compiled=False)
    assert e.value.code == "E_PEERS"


def test_sizes_that_the_network_does_not_take_are_refused():
    with pytest.raises(UsageError, match="--size: got 500x512, expected multiples of 64") as caught:
        peers.run(parse("--size", "500x512"))
    assert caught.value.code == "E_SIZE"


def test_a_worker_answers_line_by_line_and_stops_at_an_error(tmp_path):
    commands = io.StringIO('{"do": "run"}\n{"do": "run"}\n')
    answers = io.StringIO()
    serve(commands, answers)
    (line,) = answers.getvalue().splitlines()
    assert json.loads(line) == {"error": "RuntimeError: run before load"}


def test_a_failing_engine_is_named():
    with (
        remote("torch-eager") as worker,
        pytest.raises(UnavailableError, match="'torch-eager': got RuntimeError: run bef") as e,
    ):
        worker.ask("run")
    assert e.value.code == "E_PEER"


def test_an_engine_that_dies_is_named():
    with remote("torch-eager") as worker:
        worker._process.kill()
        with pytest.raises(UnavailableError, match="got a process killed by signal 9"):
            worker.ask("run")


def test_a_worker_ends_with_its_parent():
    with remote("torch-eager") as worker:
        process = worker._process
        assert process.poll() is None
    assert process.poll() == 0

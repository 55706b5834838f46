"""The peer benchmark: turns, figures, the worker's protocol, and one small comparison for real."""

import argparse
import dataclasses
import io
import json
import sys
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import pytest

import tiny_bundle
from jscc.benchmarks import peer_turns, peers
from jscc.benchmarks.page import page, read_source
from jscc.benchmarks.peer_case import (
    FORM,
    Case,
    is_prepared,
    noise_in,
    read_case,
    read_context,
    redraw,
    write_case,
)
from jscc.benchmarks.peer_engines import ENGINES, FORMS, INT8_FOLDER, OURS
from jscc.benchmarks.peer_int8 import adopt, calibrate, read_counts
from jscc.benchmarks.peer_turns import REFERENCE, Bench, Engine, Turn, compare, difference, remote
from jscc.benchmarks.peer_worker import Worker, serve
from jscc.benchmarks.peers import Order, check, choose, choose_ours, parse_python
from jscc.runtime.backends.saturation import MAY_CUT_OFF, cuts_off_sums
from jscc.runtime.bundle import write_bundle
from jscc.runtime.errors import DataError, UnavailableError, UsageError

CASE = Case("small", 128, 192)
QUALITY = {"max_abs": 0.0, "peak": 1.0, "psnr_db": None, "noise_snr_db": None}
OPTIONS = ("--scale", "small", "--size", "128x192", "--runs", 2, "--threads", 1)


def engine(name: str, *wall_ms: float) -> Engine:
    turns = tuple(Turn(wall, 2 * wall) for wall in wall_ms)
    return Engine(name, 1.0, Turn(999.0, 999.0), turns, 100.0, QUALITY)


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
    pair = compare(engine(OURS, 10, 20, 30), engine("torch-eager", 30, 30, 120))
    assert pair["wall_ratio"] == {"median": 1.5, "min": 1.5, "max": 4.0}
    assert pair["cpu_ratio"]["median"] == 1.5


def test_the_first_turn_does_not_count():
    assert compare(engine(OURS, 5), engine("diffusers", 5))["wall_ratio"]["median"] == 1
    assert engine(OURS, 5).as_json()["first_ms"] == 999


def test_difference_is_measured_against_the_reference():
    reference = np.array([[3.0, -4.0]], np.float32)
    found = difference(reference + np.float32(0.5), reference)
    assert found["max_abs"] == 0.5
    assert found["peak"] == 4
    assert found["psnr_db"] == pytest.approx(20 * np.log10(4 / 0.5))
    assert difference(reference, reference)["psnr_db"] is None


@pytest.mark.parametrize("timestep", [0, 500, 999])
def test_the_noise_is_what_was_mixed_into_the_clean_latent(timestep):
    """Stable Diffusion's schedule: betas whose square roots are evenly spaced."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    abar = np.cumprod(1 - betas)[timestep]
    clean, noise = np.random.default_rng(0).standard_normal((2, 1, 4, 8, 8))
    latent = np.sqrt(abar) * clean + np.sqrt(1 - abar) * noise
    inputs = {"latent": latent, "timestep": np.array([timestep], np.float32)}
    np.testing.assert_allclose(noise_in(clean, inputs), noise, atol=1e-9)


@pytest.mark.slow
def test_the_case_comes_back_as_it_was_written(folder):
    case, entry, inputs = read_case(folder)
    assert case == CASE
    assert list(inputs) == [port.name for port in entry.inputs]
    assert inputs["latent"].shape == (1, 4, 16, 24)
    assert read_context(folder).shape == (1, 77, 16)
    assert is_prepared(folder)
    assert (folder / entry.graph.removeprefix("graphs/")).is_file()


@pytest.mark.slow
def test_inputs_to_calibrate_with_keep_the_context_and_sweep_the_rest(folder):
    _, entry, inputs = read_case(folder)
    drawn = redraw(entry, inputs, 4, 0)
    assert [float(each["timestep"][0]) for each in drawn] == [999, 666, 333, 0]
    assert sorted(float(each["snr_db"][0]) for each in drawn) == pytest.approx(
        [0, 14 / 3, 28 / 3, 14]
    )
    for each in drawn:
        assert [(n, a.shape, a.dtype) for n, a in each.items()] == [
            (n, a.shape, a.dtype) for n, a in inputs.items()
        ]
        np.testing.assert_array_equal(each["context_kv"], inputs["context_kv"])
        assert not np.array_equal(each["latent"], inputs["latent"])
    assert not np.array_equal(drawn[0]["hint"], drawn[1]["hint"])


@pytest.mark.slow
def test_our_engine_and_pytorch_agree_and_take_turns(folder):
    said: list[str] = []
    bench = Bench(folder, 1, 2, {}, said.append)
    peer_turns.refer(bench, OURS)
    pair = peer_turns.pairing(bench, OURS, "torch-eager")
    assert said == ["reference", f"load {OURS}", "load torch-eager", *[OURS, "torch-eager"] * 3]
    assert pair["ours"]["quality"]["psnr_db"] is None
    quality = pair["peer"]["quality"]
    assert quality["psnr_db"] > 100
    assert 0 < quality["max_abs"] < 1e-4 * quality["peak"]
    for side in ("ours", "peer"):
        assert len(pair[side]["turns"]) == 2
        assert pair[side]["peak_rss_mib"] > 20
    # Our process has no torch in it.
    assert pair["ours"]["peak_rss_mib"] < pair["peer"]["peak_rss_mib"]


@pytest.mark.slow
def test_eight_bits_are_near_full_precision_in_every_engine(folder):
    """Eight bits leave a signal some 20 dB or more above their noise in such a network."""
    openvino = pytest.importorskip("openvino", reason="openvino is not installed")
    capabilities = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    calibrate(folder, 1, samples=2)
    counts = read_counts(folder / INT8_FOLDER)
    assert counts["samples"] == 2
    assert 0 < counts["rounded"] < counts["layers"]
    np.save(folder / REFERENCE, ENGINES[OURS].load(folder, 1)())

    def noise_snr_db(name):
        np.save(folder / "output.npy", ENGINES[name].load(folder, 1)())
        return peer_turns.quality(folder, folder / "output.npy")["noise_snr_db"]

    rated = [FORMS["int8"]]
    if cuts_off_sums():  # the library itself is as fast as it is, and wrong
        for form in ("openvino-int8", "openvino-int8-bf16"):
            with pytest.raises(RuntimeError, match=MAY_CUT_OFF):
                ENGINES[FORMS[form]].load(folder, 1)
    else:
        rated += [FORMS["openvino-int8"], "openvino-int8"]
    if "BF16" in capabilities:
        both = "openvino-int8-bf16"
        rated += [FORMS["openvino-bf16"], "openvino-bf16", FORMS[both], both]
    else:
        with pytest.raises(RuntimeError, match="runs in f32, not in bf16"):
            ENGINES[FORMS["openvino-bf16"]].load(folder, 1)
        with pytest.raises(RuntimeError, match="OpenVINO runs in f32, not in bf16"):
            ENGINES["openvino-bf16"].load(folder, 1)
    for name in rated:
        assert 20 < noise_snr_db(name) < 90, name
    assert noise_snr_db("openvino") > 90


@pytest.mark.slow
def test_a_bundle_of_another_network_is_refused(folder, tmp_path):
    manifest, files = tiny_bundle.codec()
    write_bundle(tmp_path / "codec.jscc", dataclasses.replace(manifest, precision="int8"), files)
    with pytest.raises(
        DataError, match="stage 'denoise' reads nothing, expected {'context_kv': "
    ) as e:
        adopt(folder, tmp_path / "codec.jscc")
    assert e.value.code == "E_CASE"


@pytest.mark.parametrize("precision", ["fp32", "fp16", "fp8"])
def test_a_bundle_that_is_not_in_eight_bits_is_refused(tmp_path, precision):
    """Its speed would be told as that of eight bits."""
    manifest, files = tiny_bundle.diffusion()
    entry = manifest.stages["denoise"]
    case = tmp_path / "case"
    case.mkdir()
    inputs = {port.name: np.zeros(1, np.float32) for port in entry.inputs}
    write_case(CASE, entry, inputs, np.zeros(1, np.float32), 0, case)
    for name in (precision, "int8"):
        manifest = dataclasses.replace(manifest, precision=name)
        write_bundle(tmp_path / f"{name}.jscc", manifest, files)
    with pytest.raises(DataError, match=f"--int8: got a bundle in {precision}, expected int8") as e:
        adopt(case, tmp_path / f"{precision}.jscc")
    assert e.value.code == "E_CASE"
    assert not (case / INT8_FOLDER).exists()
    said = adopt(case, tmp_path / "int8.jscc")
    assert said == {"bundle": "int8.jscc", "precision": "int8"}
    assert (case / INT8_FOLDER / "denoise.onnx").read_bytes() == files[entry.graph]


def test_flops_are_those_of_products_and_convolutions():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from jscc.benchmarks.peer_network import count_flops
    from jscc.export.models.attention import attend

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 8, 3, padding=1)
            self.linear = torch.nn.Linear(8, 16)

        def forward(self, x):
            tokens = self.linear(self.conv(x).flatten(2).transpose(1, 2))[:, None]
            return attend(tokens, tokens, tokens)

    inputs = {"x": np.zeros((1, 3, 6, 7), np.float32)}
    conv, linear, attention = 6 * 7 * 8 * 27, 42 * 8 * 16, 2 * 42 * 42 * 16
    assert count_flops(Net(), inputs) == 2 * (conv + linear + attention)


class Stub:
    """Stands for a worker: ours takes 10 ms, another engine 30, eight bits 5."""

    lacks: Mapping[str, list[str]] = MappingProxyType({})
    fails: tuple[str, ...] = ()

    def __init__(self, name, python=None, variables=None):
        self.name = name

    def ask(self, do, **arguments):
        if do in ("load", "optimum") and self.name in self.fails:
            place = arguments.get("folder")
            raise UnavailableError("E_PEER", f"engine {self.name!r}: got no {place}.")
        if do == "save":
            np.save(arguments["path"], np.ones((1, 1, 1, 1), np.float32))
        wall = {OURS: 10.0, FORMS["int8"]: 5.0}.get(self.name, 30.0)
        answers = {
            "check": {"lacks": dict(self.lacks), "versions": {"torch": "2.0", "numpy": "1"}},
            "optimum": {"reason": "no control"},
            "ceilings": {
                "ceilings": [
                    {"product": "a", "engine": "e", "precision": p, "tflops": t}
                    for p, t in (("fp32", 1.0), ("fp32", 0.5), ("int8", 4.0))
                ]
            },
            "load": {"load_s": 1.0},
            "run": {"wall_ms": wall, "cpu_ms": wall},
            "save": {"peak_rss_mib": 512.0},
        }
        return answers[do]

    def close(self):
        pass


@pytest.fixture
def work(tmp_path, monkeypatch):
    """Workers that only pretend, and a prepared case with a graph in eight bits."""
    monkeypatch.setattr(peer_turns, "Remote", Stub)
    case = tmp_path / "work" / "small-128x192-128x192-0"
    (case / INT8_FOLDER).mkdir(parents=True)
    (case / INT8_FOLDER / "counts.json").write_text('{"rounded": 3}')
    record = {
        "form": FORM,
        "flops": 20_000_000_000,
        "case": {"scale": "small", "height": 128, "width": 192},
        "entry": {
            "graph": "graphs/denoise.onnx",
            "opset": 20,
            "tiled": True,
            "inputs": [
                {"name": name, "dtype": "float32", "shape": [1]} for name in ("latent", "timestep")
            ],
            "outputs": [],
        },
    }
    (case / "case.json").write_text(json.dumps(record))
    np.save(case / "latent.npy", np.ones((1, 1, 1, 1), np.float32))
    np.save(case / "timestep.npy", np.ones(1, np.float32))
    return tmp_path / "work"


def test_the_command_writes_a_result(tmp_path, work, capsys):
    out = tmp_path / "out.json"
    assert peers.run(parse(*OPTIONS, "--work", work, "--json", out)) == 0
    result = json.loads(out.read_text())
    assert result["kind"] == "peers"
    assert result["case"]["height"] == 128
    assert result["flops"] == 20_000_000_000
    assert result["pairs"][0]["wall_ratio"]["median"] == 3
    assert result["pairs"][0]["peer"]["quality"]["psnr_db"] is None
    assert result["versions"]["numpy"] == np.__version__
    assert "| torch-eager | 3.00 (3.00–3.00) |" in capsys.readouterr().out
    assert str(tmp_path) not in out.read_text()


def test_everything_takes_turns_with_every_form_of_ours(tmp_path, work, capsys):
    out = tmp_path / "out.json"
    wanted = ("--ours", "fp32,int8", "--peers", "torch-eager,optimum", "--ceilings")
    assert peers.run(parse(*OPTIONS, *wanted, "--work", work, "--json", out)) == 0
    result = json.loads(out.read_text())
    took_turns = [(pair["ours"]["name"], pair["peer"]["name"]) for pair in result["pairs"]]
    int8 = FORMS["int8"]
    assert took_turns == [(OURS, int8), (OURS, "torch-eager"), (int8, "torch-eager")]
    assert result["rounded"] == {"int8": {"rounded": 3}}
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| engine | time ÷ ours fp32 | time ÷ ours int8 |")
    assert lines[2].startswith("| ours fp32 | 1 | – | – | 0.01 | 2 of 1 (200 %) |")
    assert lines[3].startswith("| ours int8 | 0.50 (0.50–0.50) | 1 | 0.50 | 0.005 | 4 of 4 (100")
    assert lines[4].startswith("| torch-eager | 3.00 (3.00–3.00) | 6.00 (6.00–6.00) | 3.00 |")
    assert lines[5].startswith("| optimum | cannot export: no control | – |")
    assert any(line.startswith("| TFLOP/s | e fp32 | e int8 |") for line in lines)
    assert "cannot export: no control" in page([read_source(out)])


def test_an_engine_that_fails_costs_its_own_row_only(tmp_path, work, monkeypatch, capsys):
    monkeypatch.setattr(Stub, "fails", ("diffusers",))
    out = tmp_path / "out.json"
    wanted = ("--peers", "diffusers,torch-eager")
    assert peers.run(parse(*OPTIONS, *wanted, "--work", work, "--json", out)) == 69
    printed = capsys.readouterr()
    assert "| torch-eager | 3.00" in printed.out
    assert "| diffusers | failed: engine 'diffusers': got no …. | – |" in printed.out
    assert "engine 'diffusers': got no" in printed.err
    assert str(tmp_path) not in out.read_text()


def test_a_question_without_an_answer_costs_its_own_row_only(work, monkeypatch, capsys):
    monkeypatch.setattr(Stub, "fails", ("optimum",))
    assert peers.run(parse(*OPTIONS, "--peers", "torch-eager,optimum", "--work", work)) == 69
    printed = capsys.readouterr().out
    assert "| torch-eager | 3.00" in printed
    assert "| optimum | failed: engine 'optimum': got no None. | – |" in printed


def test_an_interrupted_run_keeps_the_pairings_that_ended(tmp_path, work, monkeypatch):
    pairing = peers.pairing

    def interrupted(bench, ours, peer):
        if peer == "diffusers":
            raise KeyboardInterrupt
        return pairing(bench, ours, peer)

    monkeypatch.setattr(peers, "pairing", interrupted)
    out = tmp_path / "out.json"
    wanted = ("--peers", "torch-eager,diffusers")
    with pytest.raises(KeyboardInterrupt):
        peers.run(parse(*OPTIONS, *wanted, "--work", work, "--json", out))
    (pair,) = json.loads(out.read_text())["pairs"]
    assert pair["peer"]["name"] == "torch-eager"


def test_an_engine_without_its_module_is_named_before_anything_is_measured(work, monkeypatch):
    monkeypatch.setattr(Stub, "lacks", {"diffusers": ["diffusers"]})
    order = Order(CASE, (OURS,), ("diffusers",), 1, 1)
    with pytest.raises(UnavailableError, match="'diffusers': got no module 'diffusers', exp") as e:
        check(order)
    assert e.value.code == "E_MODULE"
    assert "jscc-edge[peers]" in e.value.message
    assert "\n" not in e.value.message


def test_a_worker_says_what_it_lacks_and_what_it_has(monkeypatch):
    there = {"onnxruntime": object(), "openvino": object()}
    monkeypatch.setattr("jscc.benchmarks.peer_engines.find_spec", there.get)
    answer = Worker().obey({"do": "check", "engines": [OURS, "openvino-nncf"]})
    assert answer["lacks"] == {"openvino-nncf": ("nncf",)}
    assert answer["versions"]["onnxruntime"][0].isdigit()


def test_a_plot_needs_a_known_form(work):
    with pytest.raises(UsageError, match="--plot: got 'out.bmp', expected a name that ends") as e:
        peers.run(parse(*OPTIONS, "--work", work, "--plot", "out.bmp"))
    assert e.value.code == "E_PLOT"


def test_the_plot_is_drawn_and_the_same_again(tmp_path, work):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    for name in ("a.svg", "b.svg"):
        peers.run(parse(*OPTIONS, "--work", work, "--plot", tmp_path / name))
    drawn = (tmp_path / "a.svg").read_bytes()
    assert b"<svg" in drawn
    assert drawn == (tmp_path / "b.svg").read_bytes()


def test_compile_adds_its_two_settings():
    assert choose("torch-eager", compiled=False) == ("torch-eager",)
    chosen = choose("torch-eager,torch-compile", compiled=True)
    assert chosen == ("torch-eager", "torch-compile", "torch-compile-freezing")
    assert set(chosen) < set(ENGINES)


def test_all_peers_are_all_engines_but_ours():
    assert set(choose("all", compiled=True)) == {*ENGINES, "optimum"} - set(FORMS.values())


def test_forms_of_ours_are_named_without_the_project():
    assert choose_ours("int8,fp32,int8") == (f"{OURS}-int8", OURS)
    with pytest.raises(UsageError, match="--ours: got 'jscc', expected some of fp32, int8") as e:
        choose_ours("jscc")
    assert e.value.code == "E_PEERS"


@pytest.mark.parametrize("name", ["tensorflow", OURS, ""])
def test_unknown_peers_are_refused(name):
    with pytest.raises(UsageError, match=f"--peers: got '{name}', expected some of torch-e") as e:
        choose(name, compiled=False)
    assert e.value.code == "E_PEERS"


def test_an_interpreter_is_given_to_a_peer():
    assert parse_python("optimum=venv/bin/python") == ("optimum", "venv/bin/python")
    for text in ("optimum", "optimum=", f"{OURS}=python", "=python"):
        with pytest.raises(argparse.ArgumentTypeError, match=f"got '{text}', expected one of"):
            parse_python(text)


def test_another_interpreter_finds_this_package():
    with remote("optimum", sys.executable) as worker:
        assert worker.ask("check", engines=[OURS])["lacks"] == {}


def test_an_interpreter_that_is_none_is_named():
    said = pytest.raises(UnavailableError, match="'diffusers': got No such file or directory for")
    with said as caught, remote("diffusers", "no/such/python"):
        pass
    assert caught.value.code == "E_PEER"


def test_sizes_that_the_network_does_not_take_are_refused():
    with pytest.raises(UsageError, match="--size: got 500x512, expected multiples of 64") as caught:
        peers.run(parse("--size", "500x512"))
    assert caught.value.code == "E_SIZE"


def test_a_worker_answers_line_by_line_and_stops_at_an_error():
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
        worker.ask("check", engines=[])  # it has begun, so that its end alone is timed
        assert process.poll() is None
    assert process.poll() == 0

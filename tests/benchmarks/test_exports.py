"""Exports: which networks are measured, what is written of each, and one small one for real."""

import argparse
import json
from types import SimpleNamespace

import pytest

from jscc.benchmarks import exports
from jscc.benchmarks.export_cases import CASES
from jscc.benchmarks.export_worker import Request, ask, worst_parity
from jscc.benchmarks.exports import choose, run, table
from jscc.runtime.errors import UnavailableError, UsageError
from jscc.runtime.manifest import ParityEntry
from recorded import MACHINE

FIGURES = {
    "cpu_s": 61.2,
    "wall_s": 40.4,
    "peak_rss_mib": 2048.0,
    "size_mib": 371.5,
    "parity": {"max_abs": 2.4e-7, "psnr_db": 139.6, "output": "decode/reconstruction"},
    "parameters": {"transmitter": 1_000_000, "receiver": 93_500_000},
}


def parse(*arguments: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    exports.add_arguments(parser)
    return parser.parse_args([str(argument) for argument in arguments])


def test_what_needs_much_memory_has_to_be_named() -> None:
    light = choose(parse().cases)
    assert set(CASES) - set(light) == {"openai_256", "stylegan2_1024"}
    assert choose("all") == tuple(CASES)
    assert choose("openai_256, pdjscc_48,openai_256") == ("openai_256", "pdjscc_48")
    with pytest.raises(UsageError, match=r"--cases: got 'ffhq', expected all or some of bourt"):
        choose("ffhq")


@pytest.mark.parametrize("name", CASES)
def test_every_case_is_a_plan(name) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    from jscc.export.gather import Request as Weights
    from jscc.export.gather import gather
    from jscc.export.system import Options, find

    case = CASES[name]
    system = find(case.system)
    source, _ = gather(system, Weights(configs=case.configs, random_seed=0))
    plan = system.plan(source, Options(extra=case.options))
    assert {"encode", "decode"} <= {stage.name for stage in plan.stages}


def test_what_is_done_is_kept_when_a_later_one_fails(tmp_path, monkeypatch, capsys) -> None:
    asked = []

    def stub(request):
        asked.append(request)
        if len(asked) == 2:
            raise UnavailableError("E_EXPORT", "no memory")
        return FIGURES

    monkeypatch.setattr(exports, "ask", stub)
    out = tmp_path / "out.json"
    with pytest.raises(UnavailableError):
        run(parse("--cases", "ffhq_10m,celeba_hq", "--json", out, "--seed", 3))
    result = json.loads(out.read_text())
    assert (result["kind"], result["weights_seed"]) == ("export", 3)
    assert [row["name"] for row in result["exports"]] == ["ffhq_10m"]
    assert asked[0].configs == ("prior=architecture:ffhq_10m",)
    assert (asked[0].system, asked[0].seed) == ("sing_zero", 3)


def test_the_table_has_a_line_per_network() -> None:
    rows = [
        {**FIGURES, "name": name, "system": "sing_zero", "title": CASES[name].title}
        for name in ("ffhq_10m", "celeba_hq")
    ]
    lines = table({**MACHINE, "exports": rows}).splitlines()
    assert lines[2] == (
        "| ADM, `ffhq_10m.pt` | `sing_zero` | 94.5 | 61 | 40 | 2.0 | 372 | 2e-07 | 140 |"
    )
    assert len(lines) == 4


def test_the_worst_output_is_the_one_of_the_least_psnr() -> None:
    parity = {
        "decode": {"image": ParityEntry(1e-3, 90.0, (8, 8))},
        "denoise": {"clean": ParityEntry(2e-3, 120.0, (8, 8))},
        "render": {"image": ParityEntry(0.0, None, (8, 8))},
    }
    found = worst_parity(SimpleNamespace(parity=parity))
    assert found == {"max_abs": 2e-3, "psnr_db": 90.0, "output": "decode/image"}


@pytest.mark.slow
def test_a_small_network_is_exported_in_a_process_of_its_own(tmp_path) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    case = CASES["bourtsoulatze"]
    path = tmp_path / "b.jscc"
    found = ask(Request(case.system, case.configs, {}, 1, str(path)))
    assert (path / "manifest.json").is_file()
    assert found["parameters"] == {"transmitter": 78_128, "receiver": 78_115}
    assert found["cpu_s"] > sum(found["stages_cpu_s"].values()) > 0
    assert found["peak_rss_mib"] > 100
    assert found["parity"]["max_abs"] < 1e-5


def test_an_export_that_fails_says_why(tmp_path) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    request = Request("deepjscc", ("architecture:none",), {}, 0, str(tmp_path / "x.jscc"))
    with pytest.raises(UnavailableError, match=r"got status 1 \(.*got 'none', expected one of"):
        ask(request)

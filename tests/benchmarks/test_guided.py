"""Guided steps beside plain ones: turns, figures, torch's gradients, and what is refused."""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny_bundle
from fake_engine import FakeSession
from jscc.benchmarks import guided
from jscc.benchmarks.export_worker import Request
from jscc.benchmarks.guided import GRADIENT, error, figures, measure, run, steps_of, table
from jscc.benchmarks.step_inputs import step_inputs
from jscc.runtime.bundle import Bundle
from jscc.runtime.errors import UsageError
from jscc.runtime.ports import Port

SHAPE = (1, 4, 4, 4)  # of a tile of 16 pixels


def parse(*arguments: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    guided.add_arguments(parser)
    return parser.parse_args([str(argument) for argument in arguments])


def test_ratios_are_of_medians_with_the_spread_of_neighbours() -> None:
    plain = [(10.0, 20.0), (20.0, 20.0), (30.0, 20.0)]
    found = figures([(30.0, 40.0), (30.0, 60.0), (120.0, 60.0)], plain)
    assert found["wall_ratio"] == {"median": 1.5, "min": 1.5, "max": 4.0}
    assert found["cpu_ratio"] == {"median": 3.0, "min": 2.0, "max": 3.0}
    assert found["wall_ms"] == {"median": 30.0, "min": 30.0, "max": 120.0}


def test_an_error_is_relative_to_the_length_of_the_reference() -> None:
    found = error(np.array([3.0, 4.5], np.float32), np.array([3.0, 4.0], np.float32))
    assert found == {"l2_relative": pytest.approx(0.1), "max_abs": 0.5, "peak": 4.0}


def test_a_bundle_without_guides_is_refused(tmp_path) -> None:
    bundle = tiny_bundle.write_diffusion(tmp_path / "plain.jscc")
    with pytest.raises(UsageError, match=r"plain\.jscc: got no guided steps, expected a loop with"):
        steps_of(bundle)


def test_a_bundle_or_a_prior_is_needed_and_not_both() -> None:
    for arguments in ((), ("a.jscc", "--prior", "architecture:ffhq_10m")):
        with pytest.raises(SystemExit):
            parse(*arguments)


class Turns:
    """A bundle whose guided step is a copy of the plain one, and engines that say who ran."""

    def __init__(self, folder: Path) -> None:
        bundle = tiny_bundle.write_diffusion(folder / "guided.jscc")
        manifest = bundle.manifest
        plain = manifest.stages["denoise"]
        grad = Port(GRADIENT, "float32", plain.outputs[0].shape)
        step = replace(plain, outputs=(*plain.outputs, grad))
        self.bundle = replace(
            bundle,
            manifest=replace(
                manifest,
                image=replace(manifest.image, tile=16),
                stages={**manifest.stages, "pulled": step},
                loops={"denoise": replace(manifest.loops["denoise"], guides={"inn": "pulled"})},
            ),
        )
        self.ran: list[str] = []

    def load(self, backend: object, bundle: Bundle, stage: str) -> FakeSession:
        entry = bundle.manifest.stages[stage]

        def run(arrays: dict[str, Any]) -> dict[str, Any]:
            self.ran.append(stage)
            return {GRADIENT: np.full(SHAPE, 0.5, np.float32)}

        return FakeSession(stage, entry.inputs, entry.outputs, "fake", run)


@pytest.fixture
def turns(tmp_path, monkeypatch) -> Turns:
    made = Turns(tmp_path)
    monkeypatch.setattr(guided, "_load", made.load)
    return made


def test_steps_take_turns_and_the_first_of_each_does_not_count(turns) -> None:
    reference = {f"pulled/{GRADIENT}": np.full(SHAPE, 0.4, np.float32)}
    result = measure(turns.bundle, reference, threads=1, runs=2)
    assert turns.ran == ["denoise", "pulled"] * 3
    assert result["plain"] == "denoise"
    assert [len(step["turns_ms"]) for step in result["steps"].values()] == [2, 2]
    assert result["steps"]["denoise"]["wall_ratio"] == {"median": 1.0, "min": 1.0, "max": 1.0}
    assert result["gradients"]["pulled"]["l2_relative"] == pytest.approx(0.25)
    assert result["bundle"]["tile"] == 16
    lines = table(json.loads(json.dumps(result))).splitlines()
    assert lines[0].startswith("| step, 16×16 | s | time ÷ plain |")
    assert lines[2].endswith("| 1 | 1 | – |")
    assert lines[3].endswith("| 2.5e-01 |")


def test_steps_are_given_the_same_at_the_size_of_a_tile(turns) -> None:
    plain, other = (step_inputs(turns.bundle.manifest, stage) for stage in ("denoise", "pulled"))
    assert plain["latent"].shape == SHAPE
    assert plain["timestep"].tolist() == [500.0]
    for name, array in plain.items():
        np.testing.assert_array_equal(array, other[name])
    assert not np.array_equal(plain["latent"], plain["hint"])


def test_a_prior_is_exported_once_and_its_gradients_are_read(tmp_path, monkeypatch, turns) -> None:
    asked = []

    def ask(request: Request) -> dict[str, Any]:
        asked.append(request)
        np.savez(request.reference, **{f"pulled/{GRADIENT}": np.full(SHAPE, 0.5, np.float32)})
        turns.bundle.path.rename(request.output)
        return {}

    monkeypatch.setattr("jscc.benchmarks.export_worker.ask", ask)
    monkeypatch.setattr(Bundle, "open", lambda path: turns.bundle)
    work, out = tmp_path / "work", tmp_path / "out.json"
    options = ("--prior", "architecture:some", "--work", work, "--runs", 1, "--seed", 4)
    assert run(parse(*options, "--json", out)) == 0
    assert run(parse(*options)) == 0
    assert [(each.configs, each.seed) for each in asked] == [(("prior=architecture:some",), 4)]
    assert (work / "some-4.jscc").is_dir()
    result = json.loads(out.read_text())
    assert (result["kind"], result["prior"]) == ("guided", "architecture:some")
    assert result["weights_seed"] == 4
    assert result["gradients"]["pulled"]["max_abs"] == 0.0


def test_the_reference_is_torchs_own_derivative(turns) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from jscc.benchmarks.export_worker import _gradients
    from jscc.export.gradient import Gradient
    from jscc.export.system import StageSpec

    class Loss(torch.nn.Module):
        def forward(self, latent, *others):
            return latent.pow(3).sum((1, 2, 3)), latent

    entry = turns.bundle.manifest.stages["pulled"]
    names = [port.name for port in entry.inputs]
    spec = StageSpec(
        name="pulled",
        build=lambda: Gradient(Loss(), ("latent",), has_aux=True, names=names),
        inputs=entry.inputs,
        outputs=entry.outputs,
    )
    found = _gradients((spec,), turns.bundle)
    latent = step_inputs(turns.bundle.manifest, "pulled")["latent"]
    np.testing.assert_allclose(found[f"pulled/{GRADIENT}"], 3 * latent**2, rtol=1e-6)

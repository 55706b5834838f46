"""Probe: tells what flows inside a stage, and lets through what the stage returns."""

import numpy as np
import pytest

from jscc.calibration.graph import read_graph
from jscc.calibration.probe import Probe, lay_open
from jscc.runtime.backends.onnxruntime import OnnxRuntimeBackend

STAGES = ("decode", "denoise")  # weights inside; weights in a file of their own


def loaded(bundle, backend, stage):
    entry = bundle.manifest.stages[stage]
    return backend.load(stage, entry, bundle.graph(stage), bundle.external(stage))


def fed(bundle, stage):
    rng = np.random.default_rng(6)
    arrays = {"timestep": np.float32([7.0]), "snr_db": np.float32([3.0])}
    for port in bundle.manifest.stages[stage].inputs:
        arrays.setdefault(port.name, rng.normal(size=(1, 4, 3, 5)).astype(np.float32))
    return {port.name: arrays[port.name] for port in bundle.manifest.stages[stage].inputs}


@pytest.mark.parametrize("stage", STAGES)
def test_a_probed_stage_returns_what_a_plain_one_does(looped, stage):
    told = []
    inner = [v.name for node in read_graph(looped, stage).graph for v in node.outputs]
    floats = [name for name in inner if name != "size"]  # the one tensor of integers
    probe = Probe(
        lambda stage, model: tuple(floats),
        lambda stage, given, tensors: told.append((stage, dict(given), dict(tensors))),
        threads=1,
    )
    arrays = fed(looped, stage)
    expected = loaded(looped, OnnxRuntimeBackend(threads=1), stage).run(arrays)
    got = loaded(looped, probe, stage).run(arrays)
    assert set(got) == set(expected)
    for name, array in expected.items():
        np.testing.assert_allclose(got[name], array, rtol=1e-6, atol=1e-7)
    ((name, given, tensors),) = told
    assert (name, set(given), set(tensors)) == (stage, set(arrays), set(floats))
    for name in expected:
        np.testing.assert_array_equal(tensors[name], got[name])


def test_ports_may_be_told_about(looped):
    told = {}
    probe = Probe(
        lambda stage, model: ("latent", "clean", "b0"),
        lambda stage, given, tensors: told.update(tensors),
        threads=1,
    )
    arrays = fed(looped, "denoise")
    result = loaded(looped, probe, "denoise").run(arrays)
    np.testing.assert_array_equal(told["latent"], arrays["latent"])
    np.testing.assert_array_equal(told["clean"], result["clean"])
    assert told["b0"].shape == (1, 8, 3, 5)


def test_a_stage_that_nothing_is_asked_of_is_left_plain(looped):
    plain = loaded(looped, OnnxRuntimeBackend(threads=1), "decode")
    untouched = loaded(looped, Probe(lambda *_: (), lambda *_: None, threads=1), "decode")
    assert type(untouched) is type(plain)


def test_the_session_speaks_for_its_stage(looped):
    session = loaded(looped, Probe(lambda *_: ("b0",), lambda *_: None, threads=1), "denoise")
    entry = looped.manifest.stages["denoise"]
    assert (session.inputs, session.outputs) == (entry.inputs, entry.outputs)
    assert (session.provider, session.fallbacks) == ("cpu", ())


def test_edges_are_laid_open_once(looped):
    model = read_graph(looped, "denoise")
    lay_open(model, ("clean", "latent", "b0"))
    assert [output.name for output in model.graph.outputs] == ["clean", "b0"]

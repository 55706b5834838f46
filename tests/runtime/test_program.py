"""Program: named tensors from stage to stage, whatever the system."""

import numpy as np
import pytest

from fake_engine import FakeSession
from jscc.runtime.choices import Choices
from jscc.runtime.errors import UsageError
from jscc.runtime.loop import plan_loop
from jscc.runtime.manifest import StageEntry
from jscc.runtime.manifest_loops import Loop, LoopStep, SamplerSpec, ScheduleSpec
from jscc.runtime.noise import PhiloxNoise
from jscc.runtime.ports import Port
from jscc.runtime.program import Program, Run
from jscc.runtime.schedule import schedule_from
from jscc.runtime.stage import Stage, Trace
from jscc.runtime.tiling import tile_image

GRID = ("batch", 4, "height/4", "width/4")
SPEC = ScheduleSpec("linear", 1e-4, 0.02, 100)
LOOP = Loop("latent", None, None, SPEC, SamplerSpec("ddim", 3, "noise", None, 0.0))


def port(name, shape=GRID, dtype="float32"):
    return Port(name, dtype, shape)


def stage(name, function, inputs, outputs, *, tiled=False):
    entry = StageEntry(f"graphs/{name}.onnx", 20, tiled, tuple(inputs), tuple(outputs))
    return Stage(name, entry, FakeSession(name, entry.inputs, entry.outputs, "fake", function))


def program(*stages, steps=None, states=None, constants=None):
    named = {item.name: item for item in stages}
    return Program(steps or tuple(named), named, states or {}, {}, constants or {})


def run(plans=None, batch=1, height=16, width=8, tile=0, supply=lambda name, tensors: None):
    return Run(
        sizes={"batch": batch, "height": height, "width": width},
        tiling=tile_image(height, width, tile=tile, overlap=0, multiple=4),
        plans=plans or {},
        descents={},
        noise=PhiloxNoise(),
        seed=1,
        frame=0,
        supply=supply,
    )


def plan(number=0, batch=1, **choices):
    return plan_loop(LOOP, schedule_from(SPEC), Choices(**choices), [7.0] * batch, number)


def grid(value=1.0, batch=1):
    return np.full((batch, 4, 4, 2), value, np.float32)


def test_outputs_become_inputs_of_later_stages():
    double = stage("double", lambda a: {"b": 2 * a["a"]}, [port("a")], [port("b")])
    both = stage("both", lambda a: {"c": a["a"] + a["b"]}, [port("a"), port("b")], [port("c")])
    trace = Trace()
    tensors = program(double, both).execute({"a": grid(3.0)}, run(), trace)
    assert np.array_equal(tensors["c"], grid(9.0))
    assert set(trace.times_ms) == {"double", "both"}
    assert trace.tiles == {"double": 1, "both": 1}


def test_a_constant_of_one_item_serves_every_image():
    ports = [port("a"), port("bias", ("batch", 4, 1, 1))]
    add = stage("add", lambda a: {"b": a["a"] + a["bias"]}, ports, [port("b")])
    bias = np.arange(4, dtype=np.float32).reshape(1, 4, 1, 1)
    tensors = program(add, constants={"bias": bias}).execute(
        {"a": grid(batch=3)}, run(batch=3), Trace()
    )
    assert np.array_equal(tensors["b"], grid(batch=3) + bias)


def test_what_is_not_there_is_asked_for_once():
    asked = []

    def supply(name, tensors):
        asked.append((name, sorted(tensors)))
        return grid(5.0)

    first = stage("first", lambda a: {"b": a["side"]}, [port("a"), port("side")], [port("b")])
    second = stage("second", lambda a: {"c": a["side"]}, [port("side")], [port("c")])
    program(first, second).execute({"a": grid()}, run(supply=supply), Trace())
    assert asked == [("side", ["a"])]


def test_what_nobody_has_is_an_error():
    lone = stage("lone", None, [port("side")], [port("b")])
    with pytest.raises(
        UsageError, match=r"side: got no 'side', expected float32\[batch,4,"
    ) as caught:
        program(lone).execute({}, run(), Trace())
    assert caught.value.code == "E_SIDE"


def loop_stage(name, function, timestep="float32", **options):
    ports = [port("latent"), port("timestep", ("batch",), timestep)]
    return stage(name, function, ports, [port("clean")], **options)


@pytest.mark.parametrize("dtype", ["float32", "int64"])
def test_a_loop_feeds_state_and_timestep_and_leaves_its_state(dtype):
    seen = []

    def denoise(arrays):
        seen.append((arrays["timestep"].dtype, arrays["timestep"].tolist()))
        return {"clean": 0 * arrays["latent"] + len(seen)}

    render = stage("render", lambda a: {"image": a["latent"]}, [port("latent")], [port("image")])
    made = program(
        loop_stage("denoise", denoise, dtype),
        render,
        steps=(LoopStep("denoise"), "render"),
        states={"denoise": "latent"},
    )
    trace = Trace()
    tensors = made.execute({}, run({"denoise": plan(batch=2)}, batch=2), trace)
    assert seen == [(np.dtype(dtype), [t, t]) for t in (99, 50, 0)]
    assert np.array_equal(tensors["image"], grid(3.0, batch=2))


def test_two_loops_draw_different_noise():
    states = {}

    def keep(name):
        def denoise(arrays):
            states.setdefault(name, arrays["latent"])
            return {"clean": arrays["latent"]}

        return denoise

    made = program(
        loop_stage("one", keep("one")),
        stage(
            "two",
            keep("two"),
            [port("latent"), port("timestep", ("batch",))],
            [port("clean")],
        ),
        steps=(LoopStep("one"), LoopStep("two")),
        states={"one": "latent", "two": "latent"},
    )
    made.execute({}, run({"one": plan(0), "two": plan(1)}), Trace())
    assert not np.array_equal(states["one"], states["two"])


def test_only_stages_that_allow_it_are_tiled():
    shapes = {"whole": [], "tiled": []}

    def watch(name, out):
        def function(arrays):
            shapes[name].append(arrays["a"].shape)
            return {out: arrays["a"]}

        return function

    whole = stage("whole", watch("whole", "b"), [port("a")], [port("b")])
    tiled = stage("tiled", watch("tiled", "c"), [port("a")], [port("c")], tiled=True)
    trace = Trace()
    tensors = program(whole, tiled).execute({"a": grid()}, run(tile=8), trace)
    assert shapes == {"whole": [(1, 4, 4, 2)], "tiled": [(1, 4, 2, 2), (1, 4, 2, 2)]}
    assert trace.tiles == {"whole": 1, "tiled": 2}
    assert np.array_equal(tensors["c"], grid())


def test_providers_and_fallbacks_are_those_of_all_stages():
    made = program(stage("one", None, [port("a")], [port("b")]))
    assert made.providers == {"one": "fake"}
    assert made.fallbacks == ()

"""A loop's stage is told what it asks for, and another one runs on guided steps."""

from dataclasses import replace

import numpy as np
import pytest

from fake_engine import FakeSession
from jscc.runtime.choices import Choices
from jscc.runtime.errors import UsageError
from jscc.runtime.fixed import FixedSession, open_entry
from jscc.runtime.loop import plan_loop
from jscc.runtime.manifest import StageEntry
from jscc.runtime.manifest_loops import Loop, LoopStep, SamplerSpec, ScheduleSpec
from jscc.runtime.ports import Port
from jscc.runtime.program import Program, Run
from jscc.runtime.schedule import schedule_from
from jscc.runtime.stage import Stage, Trace
from jscc.runtime.tiling import tile_image

IMAGE = ("batch", 3, "height", "width")
SPEC = ScheduleSpec("linear", 1e-4, 0.02, 1000)
SCHEDULE = schedule_from(SPEC)
SAMPLER = SamplerSpec("ddnm", 4, "noise", None, 2.0, guide="inn")
LOOP = Loop(
    "state", "initial", None, SPEC, SAMPLER, {"eta": 0.85, "sigma_y": 0.0}, {"inn": "guided"}
)
NUMBERS = ("timestep", "alpha_bar", "alpha_bar_next", "eta", "sigma_y")
INPUTS = (
    Port("state", "float32", IMAGE),
    Port("noise", "float32", IMAGE),
    *(Port(name, "float32", ("batch",)) for name in NUMBERS),
)
PLAIN = (Port("clean", "float32", IMAGE), Port("direction", "float32", IMAGE))
GUIDED = (*PLAIN, Port("grad", "float32", IMAGE))


class OnesOnce:
    """Noise that says where it was drawn: the step's number everywhere."""

    def draw(self, seed, frame, step, shape):
        return np.full(shape, step, np.float32)


class Room:
    """Two fake stages of a loop, and what they were told."""

    def __init__(self):
        self.told = []

    def stage(self, name, outputs):
        def function(arrays):
            self.told.append((name, {key: arrays[key].copy() for key in arrays}))
            fill = {"clean": 1.0, "direction": 10.0, "grad": 100.0}
            like = arrays["state"]
            return {port.name: np.full_like(like, fill[port.name]) for port in outputs}

        entry = StageEntry(f"graphs/{name}.onnx", 20, True, INPUTS, outputs)
        return Stage(name, entry, FakeSession(name, INPUTS, outputs, "fake", function))

    def run(self, choices=None, batch=1, edge=8, tile=0, loop=LOOP, snrs_db=None):
        stages = {"denoise": self.stage("denoise", PLAIN), "guided": self.stage("guided", GUIDED)}
        snrs_db = snrs_db or [7.0] * batch
        plan = plan_loop(loop, SCHEDULE, choices or Choices(), snrs_db, 0, directed=True)
        program = Program((LoopStep("denoise"),), stages, {"denoise": "state"}, {}, {})
        run = Run(
            sizes={"batch": batch, "height": edge, "width": edge},
            tiling=tile_image(edge, edge, tile=tile, overlap=0, multiple=4),
            plans={"denoise": plan}, descents={}, noise=OnesOnce(), seed=0, frame=0,
            supply=lambda name, tensors: None,
        )  # fmt: skip
        return program.execute({}, run, Trace())["state"], plan


def test_the_stage_is_told_where_the_step_begins_and_ends():
    room = Room()
    room.run(Choices(guide="none"), batch=2)
    levels = [750, 500, 250, 0]
    left = SCHEDULE.alphas_cumprod[levels].astype(np.float32)
    assert [told["timestep"].tolist() for _, told in room.told] == [[t, t] for t in levels]
    assert [told["alpha_bar"][0] for _, told in room.told] == left.tolist()
    assert [told["alpha_bar_next"][1] for _, told in room.told] == [*left[1:].tolist(), 1.0]
    assert [told["noise"].flat[0] for _, told in room.told] == [1.0, 2.0, 3.0, 4.0]
    assert all(told["eta"].tolist() == [np.float32(0.85)] * 2 for _, told in room.told)


def test_a_sampler_that_draws_no_noise_gives_none():
    room = Room()
    room.run(Choices(sampler="ddim", guide="none", settings={"eta": 0.5}))
    assert all(not told["noise"].any() for _, told in room.told)
    assert all(told["eta"].tolist() == [0.5] for _, told in room.told)


def test_the_last_row_adds_clean_direction_and_gradient():
    """b = 1 and d = 1 in the last row; the gradient is weighed by the guidance."""
    state, _ = Room().run(Choices(guide="none"))
    assert np.array_equal(state, np.full_like(state, 11.0))
    state, _ = Room().run()
    assert np.array_equal(state, np.full_like(state, 11.0 - 2.0 * 100.0))
    state, _ = Room().run(Choices(guidance=0.5))
    assert np.array_equal(state, np.full_like(state, 11.0 - 0.5 * 100.0))


CURVE = ((1.0, 3.0), (7.0, 1.0), (13.0, 0.5), (20.0, 0.0))
CURVED = replace(LOOP, sampler=replace(SAMPLER, guidance=3.0, guidance_by_snr=CURVE))


def test_each_image_is_guided_as_its_own_snr_says():
    """Linear between the points, beyond the ends as there; where it is 0 nothing pulls."""
    snrs_db = [-30.0, 1.0, 4.0, 10.0, 40.0]
    weights = [3.0, 3.0, 2.0, 0.75, 0.0]
    room = Room()
    state, plan = room.run(batch=5, loop=CURVED, snrs_db=snrs_db)
    assert [path.guidance for path in plan.paths] == weights
    assert [image.flat[0] for image in state] == [11.0 - 100.0 * weight for weight in weights]
    assert [name for name, _ in room.told] == ["guided"] * 4


def test_the_caller_weighs_all_images_alike():
    _, plan = Room().run(Choices(guidance=0.25), batch=2, loop=CURVED, snrs_db=[1.0, 13.0])
    assert [path.guidance for path in plan.paths] == [0.25, 0.25]
    room = Room()
    _, plan = room.run(batch=2, loop=CURVED, snrs_db=[25.0, 30.0])
    assert (plan.guide, [name for name, _ in room.told]) == (None, ["denoise"] * 4)
    assert [path.guidance for path in plan.paths] == [0.0, 0.0]


@pytest.mark.parametrize(
    ("choices", "expected"),
    [
        (Choices(), "gggg"),
        (Choices(guide_every=2), "gdgd"),
        (Choices(guide_every=3), "gddg"),
        (Choices(guide="none"), "dddd"),
        (Choices(guidance=0.0), "dddd"),
        (Choices(guide_every=2, travel=(1, 2)), "gdgdgdg"),
    ],
)
def test_which_stage_runs_on_which_step(choices, expected):
    room = Room()
    _, plan = room.run(choices)
    assert "".join(name[0] for name, _ in room.told) == expected
    assert plan.guide == (None if "g" not in expected else "inn")


def test_defaults_of_the_bundle_can_be_turned():
    plan = plan_loop(LOOP, SCHEDULE, Choices(), [7.0], 0, directed=True)
    assert (plan.guide, plan.guide_stage, plan.guide_every) == ("inn", "guided", 1)
    assert (plan.paths[0].guidance, plan.travel, dict(plan.settings)) == (
        2.0,
        (1, 1),
        LOOP.settings,
    )
    loop = replace(LOOP, sampler=replace(SAMPLER, guide=None, guide_every=3, travel=(2, 2)))
    plan = plan_loop(loop, SCHEDULE, Choices(), [7.0], 0, directed=True)
    assert (plan.guide, plan.guide_every, plan.travel) == (None, 3, (2, 2))
    assert plan.paths[0].guidance == 0.0


@pytest.mark.parametrize(
    ("choices", "code", "shown"),
    [
        (Choices(guide="lpips"), "E_GUIDE", "guide: got 'lpips', expected one of inn, none"),
        (Choices(guide_every=0), "E_GUIDE", "guide_every: got 0, expected 1 or more"),
        (Choices(travel=(3, 0)), "E_TRAVEL", "travel: got 3,0, expected steps of a stretch"),
        (Choices(travel=(1, 9999)), "E_TRAVEL", "travel: got 1,9999"),
        (Choices(guide="none", guidance=3.0), "E_GUIDANCE", "got 3.0, expected 0: no guide is"),
        (Choices(settings={"eta": float("nan")}), "E_SETTING", "setting eta: got nan, expected"),
        (Choices(settings={"eta": 1e300}), "E_SETTING", r"got 1e\+300, expected a number from -1e"),
        (Choices(guidance=float("nan")), "E_GUIDANCE", "guidance: got nan"),
    ],
)
def test_what_this_loop_cannot_do(choices, code, shown):
    with pytest.raises(UsageError, match=shown) as caught:
        plan_loop(LOOP, SCHEDULE, choices, [7.0], 0, directed=True)
    assert caught.value.code == code


def test_a_sampler_that_needs_a_direction_needs_a_stage_that_gives_one():
    with pytest.raises(UsageError, match="sampler: got 'ddnm', expected one whose steps") as caught:
        plan_loop(LOOP, SCHEDULE, Choices(), [7.0], 0)
    assert caught.value.code == "E_SAMPLER"


# Stages whose graph is for one image, or for one size of tile.


def fixed_stage(function, batch=1, edge=8):
    """A session of a graph with numbers for its sizes, and the entry with symbols."""
    half = edge // 2

    def ports(names, channels=3):
        return tuple(Port(name, "float32", (batch, channels, edge, edge)) for name in names)

    coarse = Port("coarse", "float32", (batch, 3, half, half))
    number = Port("eta", "float32", (batch,))
    inputs, outputs = (*ports(["state"]), coarse, number), ports(["clean", "grad"])
    entry = StageEntry("graphs/guided.onnx", 20, True, inputs, outputs)
    known = {name: Port(name, "float32", IMAGE) for name in ("state", "clean", "grad")}
    known["coarse"] = Port("coarse", "float32", ("batch", 3, "height/2", "width/2"))
    known["eta"] = Port("eta", "float32", ("batch",))
    opened, sizes = open_entry(entry, known)
    session = FakeSession("guided", inputs, outputs, "fake", function)
    return FixedSession(session, opened.inputs, opened.outputs, sizes), opened, sizes


def echo(arrays):
    return {"clean": arrays["state"] + arrays["eta"].reshape(-1, 1, 1, 1), "grad": arrays["state"]}


def test_sizes_that_a_graph_has_fixed_are_found():
    _, opened, sizes = fixed_stage(echo)
    assert sizes == {"batch": 1, "height": 8, "width": 8}
    assert [port.shape for port in opened.inputs] == [
        IMAGE, ("batch", 3, "height/2", "width/2"), ("batch",),
    ]  # fmt: skip
    assert all(port.shape == IMAGE for port in opened.outputs)


def test_an_open_entry_stays_as_it_is():
    entry = StageEntry("graphs/denoise.onnx", 20, True, INPUTS, PLAIN)
    assert open_entry(entry, {port.name: port for port in (*INPUTS, *PLAIN)}) == (entry, {})
    assert open_entry(entry, {}) == (entry, {})


@pytest.mark.parametrize(("height", "width"), [(8, 8), (8, 4), (2, 6)])
def test_images_go_through_one_by_one_and_small_ones_are_mirrored(height, width):
    session, _, _ = fixed_stage(echo)
    rng = np.random.default_rng(0)
    state = rng.standard_normal((3, 3, height, width)).astype(np.float32)
    arrays = {
        "state": state,
        "coarse": np.zeros((3, 3, height // 2, width // 2), np.float32),
        "eta": np.arange(3, dtype=np.float32),
    }
    results = session.run(arrays)
    assert np.array_equal(results["grad"], state)
    assert np.array_equal(results["clean"], state + arrays["eta"].reshape(-1, 1, 1, 1))
    assert (session.provider, session.fallbacks) == ("fake", ())


def test_a_graph_of_one_batch_takes_any_size():
    function = echo
    known = {name: Port(name, "float32", IMAGE) for name in ("state", "clean", "grad")}
    inputs = (Port("state", "float32", (1, 3, "height", "width")), Port("eta", "float32", (1,)))
    outputs = tuple(
        Port(name, "float32", (1, 3, "height", "width")) for name in ("clean", "grad")
    )  # fmt: skip
    entry = StageEntry("graphs/guided.onnx", 20, True, inputs, outputs)
    opened, sizes = open_entry(entry, {**known, "eta": Port("eta", "float32", ("batch",))})
    assert sizes == {"batch": 1}
    session = FixedSession(
        FakeSession("guided", inputs, outputs, "fake", function), opened.inputs, opened.outputs,
        sizes,
    )  # fmt: skip
    state = np.ones((2, 3, 6, 10), np.float32)
    results = session.run({"state": state, "eta": np.zeros(2, np.float32)})
    assert results["clean"].shape == state.shape

"""Loop: the official sampler's own states, starts and guide, and noise of each image's own."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jscc.runtime.arithmetic import HostArithmetic
from jscc.runtime.choices import Choices
from jscc.runtime.errors import UsageError
from jscc.runtime.loop import Answer, plan_loop, run_loop
from jscc.runtime.manifest_loops import Loop, SamplerSpec, ScheduleSpec
from jscc.runtime.noise import PhiloxNoise
from jscc.runtime.schedule import schedule_from
from jscc.runtime.table import Row, Table, names

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "golden" / "diffjscc"
SPEC = ScheduleSpec("scaled_linear", 0.00085, 0.012, 1000)
SCHEDULE = schedule_from(SPEC)
LOOP = Loop("latent", "hint", "hint", SPEC, SamplerSpec("ddim", 4, "received", 0.6, 0.0))

golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"no golden vectors at {GOLDEN}")


@pytest.fixture(scope="module")
def vectors():
    from safetensors.numpy import load_file

    return load_file(GOLDEN / "tiny-cnn" / "io.safetensors")


class RecordedNoise:
    """Noise from arrays: the start, then one per step."""

    def __init__(self, *draws):
        self.draws = draws
        self.asked = []

    def draw(self, seed, frame, step, shape):
        self.asked.append((seed, frame, step))
        return self.draws[step].reshape(shape)


def plain(function):
    """A stage that is told state and timestep and returns its clean estimate."""
    return lambda question: Answer(function(question.state, question.timestep))


def still(function):
    """The same, and a direction that leads nowhere."""
    stage = plain(function)
    return lambda question: replace(stage(question), direction=np.zeros_like(question.state))


def plan(choices=None, snrs_db=(7.0,), loop=LOOP, number=0, directed=False):
    return plan_loop(loop, SCHEDULE, choices or Choices(), snrs_db, number, directed=directed)


@golden
@pytest.mark.parametrize("steps", [4, 10, 50])
def test_ddpm_has_the_official_coefficients(vectors, steps):
    (path,) = plan(Choices("ddpm", steps, "noise")).paths
    rows = path.table.rows[::-1]  # the official arrays ascend
    official = {
        name: vectors[f"out.sched.{steps}.{name}"]
        for name in ("timesteps", "posterior_mean_coef1", "posterior_mean_coef2",
                     "posterior_variance", "alphas_cumprod")
    }  # fmt: skip
    assert [row.t for row in rows] == official["timesteps"].tolist()
    assert [row.b for row in rows] == pytest.approx(official["posterior_mean_coef1"], rel=1e-12)
    assert [row.a for row in rows] == pytest.approx(
        official["posterior_mean_coef2"], rel=1e-12, abs=1e-300
    )
    assert [row.s**2 for row in rows] == pytest.approx(
        official["posterior_variance"], rel=1e-12, abs=1e-300
    )
    levels = SCHEDULE.alphas_cumprod[official["timesteps"]]
    assert levels == pytest.approx(official["alphas_cumprod"], rel=1e-12)


def replay(vectors, prefix, guidance, target):
    """Run four official steps with the official network's answers; the states on the way."""
    states = []

    def denoise(state, levels):
        states.append(state)
        return vectors[f"{prefix}.step{len(states) - 1}.x0"]

    noise = RecordedNoise(vectors["in.x_T"], *vectors["in.step_noise"])
    result = run_loop(
        plan(Choices("ddpm", 4, "noise", guidance=guidance)),
        plain(denoise),
        HostArithmetic(noise, 0, 0),
        shape=(1, 4, 16, 24),
        start=None,
        guide=target,
    )
    return [*states[1:], result]


@golden
@pytest.mark.parametrize("snr", ["A", "B"])
def test_states_are_the_official_ones(vectors, snr):
    prefix = f"out.snr{snr}.n4"
    for step, state in enumerate(replay(vectors, prefix, 0.0, None)):
        expected = vectors[f"{prefix}.step{step}.x_prev"]
        assert np.abs(state - expected).max() <= 1e-6 * np.abs(expected).max()


@golden
def test_guided_states_are_the_official_ones(vectors):
    prefix, target = "out.snrA.n4.guided_mode", vectors["out.vae.target_mode"]
    states = replay(vectors, prefix, 100.0, target)
    for step, state in enumerate(states):
        expected = vectors[f"{prefix}.step{step}.x_prev"]
        assert np.abs(state - expected).max() <= 1e-6 * np.abs(expected).max()
    plain = replay(vectors, prefix, 0.0, None)
    assert np.abs(plain[-1] - states[-1]).max() > 1e-3


VARIANCE = 0.6


def ideal(state, levels):
    """The best answer for independent Gaussian data of this variance."""
    abar = SCHEDULE.alphas_cumprod[levels.astype(int)].reshape(-1, 1, 1, 1)
    factor = np.sqrt(abar) * VARIANCE / (abar * VARIANCE + 1 - abar)
    return (state * factor).astype(np.float32)


@pytest.mark.parametrize(
    ("sampler", "tolerance"), [("ddim", 0.05), ("ddpm", 0.1), ("dpmpp2m", 0.02), ("unipc", 0.02)]
)
def test_gaussian_data_comes_out_gaussian(sampler, tolerance):
    state = run_loop(
        plan(Choices(sampler, 100, "noise")), plain(ideal),
        HostArithmetic(PhiloxNoise(), 5, 0), shape=(1, 4, 128, 128), start=None, guide=None,
    )  # fmt: skip
    assert state.dtype == np.float32
    assert state.var() == pytest.approx(VARIANCE, rel=tolerance)
    assert abs(state.mean()) < 0.02
    assert np.mean(state**4) / state.var() ** 2 == pytest.approx(3.0, rel=0.05)


def test_rows_are_handed_the_last_two_answers():
    """A row that asks nothing leaves them as they are."""
    rows = (
        Row(900, a=0.5, b=0.25),
        Row(600, a=0.5, b=0.25, c=0.125),
        Row(None, a=0.5, b=0.0, c=0.25, e=2.0),
        Row(300, a=0.5, b=0.25, c=0.125, e=4.0),
        Row(0, a=1.0, b=1.0, c=8.0, e=16.0),
    )
    plan_ = plan(Choices("ddim", 4, "noise"))
    plan_ = replace(plan_, paths=tuple(replace(path, table=Table(rows)) for path in plan_.paths))
    answers = iter((3.0, 5.0, 7.0, 11.0))
    shape = (1, 1, 2, 2)
    state = run_loop(
        plan_, plain(lambda x, t: np.full_like(x, next(answers))),
        HostArithmetic(RecordedNoise(np.full((1, 2, 2), 1.0, np.float32)), 0, 0),
        shape=shape, start=None, guide=None,
    )  # fmt: skip
    x = 0.5 * 1 + 0.25 * 3
    x = 0.5 * x + 0.25 * 5 + 0.125 * 3
    x = 0.5 * x + 0.25 * 5 + 2 * 3
    x = 0.5 * x + 0.25 * 7 + 0.125 * 5 + 4 * 3
    assert np.array_equal(state, np.full(shape, x + 11 + 8 * 7 + 16 * 5))


@pytest.mark.parametrize("sampler", names())
def test_a_received_start_is_the_latent_at_that_noise_level(sampler):
    plan_ = plan(Choices(sampler), directed=True)
    (path,) = plan_.paths
    level = path.level
    assert level <= round(0.6 * 999) < level + 600 / plan_.steps
    abar = SCHEDULE.alphas_cumprod[level]
    seen = []

    def denoise(state, levels):
        seen.append((state, levels))
        return state

    start = np.full((1, 4, 64, 64), 3.0, np.float32)
    arithmetic = HostArithmetic(PhiloxNoise(), 1, 0)
    run_loop(plan_, still(denoise), arithmetic, shape=start.shape, start=start, guide=None)
    first, levels = seen[0]
    assert levels.tolist() == [level]
    noise = PhiloxNoise().draw(1, 0, 0, (4, 64, 64))
    assert np.abs(first[0] - (np.sqrt(abar) * 3 + np.sqrt(1 - abar) * noise)).max() < 1e-6


def test_without_a_level_the_start_follows_the_snr():
    loop = Loop("latent", "hint", None, SPEC, SamplerSpec("ddim", 4, "received", None, 0.0))
    paths = plan(loop=loop, snrs_db=(0.0, 14.0, 7.0, 90.0)).paths
    levels = [path.level for path in paths]
    assert levels[:3] == [SCHEDULE.level_of_snr(snr) for snr in (0.0, 14.0, 7.0)]
    assert levels[0] > levels[2] > levels[1] > levels[3]
    assert levels[3] == 3  # four steps need four levels
    for path in paths:
        assert path.signal**2 + path.noise**2 == pytest.approx(1.0)
        assert path.table.rows[0].t == path.level


def received_pair(snrs_db, frame):
    loop = Loop("latent", "hint", "hint", SPEC, SamplerSpec("dpmpp2m", 5, "received", None, 3.0))
    hints = np.random.default_rng(0).standard_normal((len(snrs_db), 4, 8, 8)).astype(np.float32)
    return run_loop(
        plan(loop=loop, snrs_db=snrs_db), plain(ideal),
        HostArithmetic(PhiloxNoise(), 3, frame), shape=hints.shape, start=hints, guide=hints,
    )  # fmt: skip


def test_images_of_a_batch_do_not_see_each_other():
    together = received_pair((2.0, 11.0), frame=10)
    alone = received_pair((2.0,), frame=10)
    assert np.array_equal(together[:1], alone)


def test_each_image_and_step_draws_by_its_own_address():
    noise = RecordedNoise(*np.zeros((9, 1, 2, 2), np.float32))
    run_loop(
        plan(Choices("ddpm", 3, "noise"), snrs_db=(1.0, 1.0)), plain(lambda x, t: x),
        HostArithmetic(noise, 8, 40), shape=(2, 1, 2, 2), start=None, guide=None,
    )  # fmt: skip
    # The last step adds no noise and asks for none.
    assert noise.asked == [(8, 40, 0), (8, 41, 0), (8, 40, 1), (8, 41, 1), (8, 40, 2), (8, 41, 2)]


def test_a_second_loop_draws_other_numbers():
    assert plan(number=1).first_draw == 1 << 32


def test_the_guide_pulls_to_its_target_however_the_sampler_steps():
    target = np.full((1, 4, 16, 16), 2.0, np.float32)
    runs = {
        guidance: run_loop(
            plan(Choices("ddim", 10, "noise", guidance=guidance)), plain(ideal),
            HostArithmetic(PhiloxNoise(), 0, 0), shape=target.shape,
            start=None, guide=target if guidance else None,
        )
        for guidance in (0.0, 100.0, 400.0)
    }  # fmt: skip
    gaps = [np.abs(state - target).mean() for state in runs.values()]
    assert gaps[0] > gaps[1] > gaps[2]


@pytest.mark.parametrize(
    ("choices", "code", "shown"),
    [
        (Choices(sampler="heun"), "E_SAMPLER", "got 'heun', expected one of ddim"),
        (Choices(steps=0), "E_STEPS", "got 0, expected 1 to 600"),
        (Choices(steps=1001, start="noise"), "E_STEPS", "got 1001, expected 1 to 1000"),
        (Choices(start="middle"), "E_START", "got 'middle', expected one of noise, received"),
        (Choices(start="noise", start_level=0.5), "E_START", "got 0.5 with start 'noise'"),
        (Choices(start_level=0.0), "E_START", "got 0.0, expected more than 0"),
        (Choices(start_level=1.5), "E_START", "got 1.5, expected more than 0"),
        (Choices(start_level=float("nan")), "E_START", "got nan, expected more than 0"),
        (Choices(guidance=-1.0), "E_GUIDANCE", "got -1.0, expected a number from 0 up"),
        (Choices(guidance=float("inf")), "E_GUIDANCE", "got inf, expected a number from 0 up"),
    ],
)
def test_what_no_loop_can_do(choices, code, shown):
    with pytest.raises(UsageError, match=shown) as caught:
        plan(choices)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("choices", "shown"),
    [
        (Choices(start="received"), "got 'received', expected 'noise'"),
        (Choices(guidance=2.0), "got 2.0, expected 0: this bundle has no guide"),
    ],
)
def test_what_this_loop_cannot_do(choices, shown):
    bare = Loop("latent", None, None, SPEC, SamplerSpec("ddim", 4, "noise", None, 0.0))
    with pytest.raises(UsageError, match=shown):
        plan(choices, loop=bare)

"""Device arithmetic against the host's: every sampler, start, guide and draw, bit for bit."""

from dataclasses import replace

import numpy as np
import pytest

from fake_cuda import make_cuda
from jscc.runtime.arithmetic import HostArithmetic
from jscc.runtime.choices import Choices
from jscc.runtime.device.arithmetic import DeviceArithmetic
from jscc.runtime.device.device import Device
from jscc.runtime.device.flow import Flow
from jscc.runtime.device.kernels import DeviceKernels
from jscc.runtime.device.loader import KernelLoader
from jscc.runtime.loop import Answer, plan_loop, run_loop
from jscc.runtime.manifest_loops import Loop, SamplerSpec, ScheduleSpec
from jscc.runtime.noise import PhiloxNoise
from jscc.runtime.schedule import schedule_from
from jscc.runtime.table import names

SEED, FRAME, SHAPE = 5, 2**64 - 2, (2, 3, 5, 7)
SPEC = ScheduleSpec("scaled_linear", 0.00085, 0.012, 1000)
LOOP = Loop("latent", "hint", "hint", SPEC, SamplerSpec("ddim", 4, "received", None, 0.0))


@pytest.fixture
def there(host):
    cuda = make_cuda(host)
    with Device(cuda) as device:
        flow = Flow(device)
        kernels = DeviceKernels(KernelLoader(cuda, device))
        yield DeviceArithmetic(flow, kernels, {}, SEED, FRAME)
        flow.close()
    assert cuda.driver.blocks == {}


def carried(arithmetic, choices, *, direct, guide_stage):
    """The last state of a loop whose network answers with all that it was asked."""
    plan = plan_loop(LOOP, schedule_from(SPEC), choices, (2.0, 11.0), 1, directed=True)
    if guide_stage:
        plan = replace(plan, guide="of this test", guide_stage="guided")
    tensor = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)

    def denoise(question):
        told = [question.state, question.timestep, question.alpha_bar, question.alpha_bar_next]
        if question.draw is not None:
            told += [question.draw(), question.draw()]
        state, time, here, ahead, *noise = map(arithmetic.bring, told)
        weights = (here * 0.5 + ahead * 0.25 + time / 4096).astype(np.float32)
        clean = state * weights.reshape(-1, 1, 1, 1)
        direction = sum(noise, clean) * np.float32(0.125)
        grad = arithmetic.take(state - clean) if question.guided else None
        given = arithmetic.take(direction) if direct else None
        return Answer(arithmetic.take(clean), grad, given)

    state = run_loop(
        plan,
        denoise,
        arithmetic,
        shape=SHAPE,
        start=arithmetic.take(tensor) if plan.start == "received" else None,
        guide=arithmetic.take(tensor + 1),
    )
    return arithmetic.bring(state)


@pytest.mark.parametrize("start", ["noise", "received"])
@pytest.mark.parametrize("sampler", names())
def test_every_sampler(there, sampler, start):
    for guidance, guide_stage in ((0.0, False), (3.0, False), (3.0, True)):
        choices = Choices(sampler, 3, start, guidance=guidance)
        given = {"direct": True, "guide_stage": guide_stage}
        expected = carried(HostArithmetic(PhiloxNoise(), SEED, FRAME), choices, **given)
        assert np.isfinite(expected).all()
        assert carried(there, choices, **given).tobytes() == expected.tobytes()


def test_time_travel_draws_where_nothing_is_asked(there):
    choices = Choices("ddpm", 4, "noise", travel=(2, 2))
    given = {"direct": False, "guide_stage": False}
    expected = carried(HostArithmetic(PhiloxNoise(), SEED, FRAME), choices, **given)
    assert np.array_equal(carried(there, choices, **given), expected)


@pytest.mark.parametrize("shape", [(1, 3), (1,), (1, 4, 1, 1)])
def test_one_item_serves_every_image(there, shape):
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    tensor = there.repeated(there.take(array), 3)
    assert there.length(tensor) == 3
    assert np.array_equal(there.bring(tensor), np.repeat(array, 3, axis=0))


def test_what_has_no_axis_has_no_length(there):
    assert there.length(there.take(np.float32(3).reshape(()))) is None
    assert not there.bring(there.zeros((2, 3))).any()


def test_no_kernel_casts(there):
    tensor = there.zeros((2,))
    assert there.cast(tensor, "float32") is tensor
    with pytest.raises(ValueError, match="cast: got float32, expected float16"):
        there.cast(tensor, "float16")

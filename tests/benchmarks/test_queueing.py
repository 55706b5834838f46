"""The queue's arithmetic against closed forms: Pollaczek–Khinchine, Erlang C, and by hand."""

import math

import numpy as np
import pytest

from jscc.benchmarks.queueing import completion_times, highest_rate, holds, poisson_arrivals

COUNT = 200_000
SERVICE = 0.4  # mean, seconds


def mean_wait(load, services, servers=1):
    """Mean time in the queue when Poisson arrivals make `load` of every server's time."""
    rate = load * servers / SERVICE
    arrivals = poisson_arrivals(rate, len(services), np.random.default_rng(1))
    waits = completion_times(arrivals, services, servers) - arrivals - services
    assert waits.min() > -1e-6
    return waits.mean()


def exponential():
    return SERVICE * np.random.default_rng(2).standard_exponential(COUNT)


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_equal_services_wait_as_pollaczek_and_khinchine_say(load):
    """M/D/1: load × service / (2 (1 − load))."""
    expected = load * SERVICE / (2 * (1 - load))
    assert mean_wait(load, np.full(COUNT, SERVICE)) == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_exponential_services_wait_twice_as_long(load):
    """M/M/1: load × service / (1 − load)."""
    expected = load * SERVICE / (1 - load)
    assert mean_wait(load, exponential()) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("servers", [2, 4])
def test_several_servers_wait_as_erlang_says(servers):
    """M/M/c: Erlang's C × service / (c (1 − load))."""
    load = 0.7
    offered = load * servers
    below = sum(offered**n / math.factorial(n) for n in range(servers))
    top = offered**servers / math.factorial(servers) / (1 - load)
    expected = top / (below + top) * SERVICE / (servers * (1 - load))
    assert mean_wait(load, exponential(), servers) == pytest.approx(expected, rel=0.05)


def test_by_hand():
    arrivals, services = np.array([0.0, 1.0, 1.5, 9.0]), np.array([4.0, 2.0, 1.0, 1.0])
    np.testing.assert_array_equal(completion_times(arrivals, services, 1), [4, 6, 7, 10])
    np.testing.assert_array_equal(completion_times(arrivals, services, 2), [4, 3, 4, 10])
    np.testing.assert_array_equal(completion_times(arrivals, services, 3), [4, 3, 2.5, 10])


def test_with_a_server_for_everyone_nobody_waits():
    rng = np.random.default_rng(0)
    arrivals, services = np.sort(rng.random(50)), rng.random(50)
    np.testing.assert_allclose(completion_times(arrivals, services, 50), arrivals + services)


def test_all_at_once_is_a_running_sum():
    services = np.random.default_rng(0).random(50)
    done = completion_times(np.zeros(50), services, 1)
    np.testing.assert_allclose(done, np.cumsum(services))


def test_gaps_of_arrivals_are_exponential():
    gaps = np.diff(poisson_arrivals(5.0, COUNT, np.random.default_rng(0)), prepend=0.0)
    assert gaps.min() > 0
    assert gaps.mean() == pytest.approx(1 / 5, rel=0.01)
    assert gaps.std() == pytest.approx(1 / 5, rel=0.01)
    assert (gaps > 1 / 5).mean() == pytest.approx(math.exp(-1), abs=0.005)
    assert abs(np.corrcoef(gaps[1:], gaps[:-1])[0, 1]) < 0.01


def test_the_same_seed_gives_the_same_pattern_at_every_rate():
    slow, fast = (poisson_arrivals(rate, 100, np.random.default_rng(3)) for rate in (2.0, 8.0))
    np.testing.assert_allclose(slow, 4 * fast)


def test_a_higher_rate_never_makes_anyone_wait_less():
    services = exponential()[:2000]
    waits = []
    for rate in (0.5, 1.0, 2.0):
        arrivals = poisson_arrivals(rate, 2000, np.random.default_rng(3))
        waits.append(completion_times(arrivals, services, 1) - arrivals)
    assert (np.diff(waits, axis=0) > -1e-6).all()


def test_the_bound_is_on_the_99th_percentile():
    latencies = [10.0] * 99 + [500.0]
    assert holds(latencies, 10.0)
    assert not holds([*latencies, 500.0], 10.0)
    assert not holds([10.0, 11.0], 10.5)  # of a few, the slowest counts


def test_the_highest_rate_is_the_last_before_one_that_fails():
    """What held beyond was lucky: a finite run of a queue that grows may end early."""
    points = [{"rate": 1, "holds": True}, {"rate": 3, "holds": True}, {"rate": 2, "holds": False}]
    assert highest_rate(points) == 1
    assert highest_rate(points[2:]) is None

"""profiles/trace.py: the step function, its integral, and its segments agree with each other."""

from __future__ import annotations

from itertools import takewhile

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from harness.errors import ProfileError
from profiles.trace import RateTrace

STEPS = st.lists(
    st.tuples(st.integers(1, 40).map(lambda n: n / 4), st.sampled_from([0.0, 8.0, 8.0, 16.0, 80.0, 4e6])),
    min_size=1,
    max_size=8,
).filter(lambda steps: any(rate for _, rate in steps))


def trace(steps: list[tuple[float, float]]) -> RateTrace:
    times = [sum(seconds for seconds, _ in steps[:i]) for i in range(len(steps))]
    return RateTrace("t", times, [rate for _, rate in steps], sum(seconds for seconds, _ in steps))


def test_by_hand():
    """2 bytes/s for 2 s, nothing for 1 s, 1 byte/s for 1 s; looped."""
    found = trace([(2.0, 16.0), (1.0, 0.0), (1.0, 8.0)])
    assert [found.rate_bps(t) for t in (0.0, 1.9, 2.0, 2.9, 3.0, 3.9, 4.0, 42.5)] == [16, 16, 0, 0, 8, 8, 16, 0]
    assert found.bytes_between(0.0, 4.0) == 5.0
    assert found.bytes_between(1.0, 3.5) == 2.5
    assert found.bytes_between(3.5, 4.5) == 1.5
    assert found.bytes_between(0.0, 4000.0) == 5000.0
    assert (found.mean_bps, found.max_bps, found.constant) == (10.0, 16.0, False)
    segments = found.segments(1.5)
    assert [next(segments) for _ in range(4)] == [(1.5, 2.0, 16.0), (2.0, 3.0, 0.0), (3.0, 4.0, 8.0), (4.0, 6.0, 16.0)]


def test_equal_neighbours_are_one_step():
    found = trace([(1.0, 8.0), (2.0, 8.0), (1.0, 16.0), (1.0, 8.0)])
    assert (found.times_s, found.rates_bps, found.period_s) == ((0.0, 3.0, 4.0), (8.0, 16.0, 8.0), 5.0)
    assert trace([(1.0, 8.0), (2.0, 8.0)]).constant


@given(STEPS, st.integers(0, 400), st.integers(0, 400))
def test_segments_integrate_to_the_bytes(steps: list[tuple[float, float]], start: int, length: int):
    found = trace(steps)
    begin, end = start / 8, (start + length) / 8
    parts = takewhile(lambda part: part[0] < end, found.segments(begin))
    whole = sum(rate * (min(until, end) - at) / 8 for at, until, rate in parts)
    assert found.bytes_between(begin, end) == pytest.approx(whole, rel=1e-12, abs=1e-9)


@given(STEPS, st.integers(0, 400))
def test_segments_say_the_rate_of_every_time(steps: list[tuple[float, float]], start: int):
    found = trace(steps)
    segments = found.segments(start / 8)
    for at, until, rate in (next(segments) for _ in range(12)):
        assert at < until
        assert found.rate_bps(at) == found.rate_bps((at + until) / 2) == rate


@given(STEPS, st.sampled_from([0.25, 1.0, 1.5, 3.0, 1000.0]))
def test_resampling_keeps_the_bytes_of_every_step(steps: list[tuple[float, float]], step_s: float):
    found = trace(steps)
    coarse = found.resampled(step_s)
    assert coarse.period_s == found.period_s
    assert coarse.mean_bps == pytest.approx(found.mean_bps, rel=1e-12)
    at = 0.0
    while at < found.period_s:
        until = min(at + step_s, found.period_s)
        assert coarse.bytes_between(at, until) == pytest.approx(found.bytes_between(at, until), rel=1e-9, abs=1e-9)
        at = until


@given(STEPS)
def test_a_mean_is_bytes_over_time(steps: list[tuple[float, float]]):
    found = trace(steps)
    assert found.mean_bps / 8 * found.period_s == pytest.approx(found.bytes_between(0.0, found.period_s), rel=1e-12)


@given(STEPS, st.floats(0, 1e6))
def test_a_step_holds_at_its_time_even_after_many_passes(steps: list[tuple[float, float]], at: float):
    found = trace(steps)
    assume(not found.constant)
    step = found.step_at(at)
    assert at <= found.step_ends_s(*step) + 1e-9
    assert found.step_ends_s(*found.step_after(*step)) > found.step_ends_s(*step)


@pytest.mark.parametrize(
    ("times", "rates", "period", "said"),
    [
        ([], [], 1.0, "0 times and 0 rates"),
        ([0.0], [1.0, 2.0], 1.0, "1 times and 2 rates"),
        ([1.0], [1.0], 2.0, "must begin at 0"),
        ([0.0, 2.0, 1.0], [1.0, 2.0, 3.0], 4.0, "rise up to the period of 4 s"),
        ([0.0, 1.0], [1.0, 2.0], 1.0, "rise up to the period"),
        ([0.0], [1.0], float("nan"), "rise up to the period"),
        ([0.0], [1.0], float("inf"), "rise up to the period"),
        ([0.0, 1.0], [1.0, -2.0], 2.0, "negative or not finite"),
        ([0.0, 1.0], [1.0, float("nan")], 2.0, "negative or not finite"),
        ([0.0, 1.0], [0.0, 0.0], 2.0, "0 from beginning to end"),
    ],
)
def test_what_is_no_trace_is_refused(times: list[float], rates: list[float], period: float, said: str):
    with pytest.raises(ProfileError, match=said):
        RateTrace("t", times, rates, period)


def test_a_resampling_step_takes_time():
    with pytest.raises(ProfileError, match="longer than 0 s"):
        trace([(1.0, 8.0)]).resampled(0.0)

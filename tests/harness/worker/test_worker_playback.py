"""harness/worker/playback.py: a rate follows its recording over and over, from where the run begins in it."""

from __future__ import annotations

import asyncio
from itertools import islice

import pytest

from harness.transport.limiter import TokenBucket
from harness.worker.clock import RunClock
from harness.worker.job import RateSteps
from harness.worker.playback import changes, play


def first(count: int, **steps: object) -> list[tuple[float, float]]:
    return list(islice(changes(RateSteps.model_validate(steps)), count))


def test_a_recording_is_repeated():
    assert first(5, times_s=[0, 2], bytes_per_s=[10, 20], period_s=3) == [(0, 10), (2, 20), (3, 10), (5, 20), (6, 10)]


@pytest.mark.parametrize(
    ("offset_s", "expected"),
    [
        (0.0, [(0, 10), (2, 20)]),
        (1.0, [(-1, 10), (1, 20)]),
        (2.0, [(0, 20), (1, 10)]),  # what ends at the start of the run is over
        (2.5, [(-0.5, 20), (0.5, 10)]),
        (3.0, [(0, 10), (2, 20)]),
        (7.0, [(-1, 10), (1, 20)]),
    ],
)
def test_the_run_begins_somewhere_in_it(offset_s: float, expected: list[tuple[float, float]]):
    assert first(2, times_s=[0, 2], bytes_per_s=[10, 20], period_s=3, offset_s=offset_s) == expected


def test_the_bucket_follows_from_the_start_of_the_run_on():
    async def scenario() -> None:
        bucket, clock = TokenBucket(5.0), RunClock()
        clock.origin_s += 0.05
        steps = RateSteps(times_s=[0.0, 0.05], bytes_per_s=[10.0, 20.0], period_s=3600.0)
        playing = asyncio.ensure_future(play(bucket, steps, clock))
        seen = [(clock.now(), bucket.rate_bytes_per_s)]
        while seen[-1][1] != 20.0:
            await asyncio.sleep(0.002)
            seen.append((clock.now(), bucket.rate_bytes_per_s))
        playing.cancel()
        assert list(dict.fromkeys(rate for _, rate in seen)) == [5.0, 10.0, 20.0]
        for at_s, rate in seen:
            assert at_s >= {5.0: -1.0, 10.0: 0.0, 20.0: 0.05}[rate] - 1e-3

    asyncio.run(asyncio.wait_for(scenario(), 60))

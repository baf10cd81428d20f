"""A limiter whose rate follows a recording from the start of the run on."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator

from harness.transport.limiter import TokenBucket
from harness.worker.clock import RunClock
from harness.worker.job import RateSteps


def changes(steps: RateSteps) -> Iterator[tuple[float, float]]:
    """Yield [real seconds since the start of the run, bytes per second]; the first is at the start or before it."""
    for cycle in itertools.count(int(steps.offset_s // steps.period_s)):
        begins_s = cycle * steps.period_s - steps.offset_s
        ends_s = [*steps.times_s[1:], steps.period_s]
        for time_s, end_s, rate in zip(steps.times_s, ends_s, steps.bytes_per_s, strict=True):
            if begins_s + end_s > 0:
                yield begins_s + time_s, rate


async def play(bucket: TokenBucket, steps: RateSteps, clock: RunClock) -> None:
    """Change the bucket's rate as the recording says; never returns."""
    start_s = asyncio.get_running_loop().time() + clock.until_start_s()
    for at_s, rate in changes(steps):
        await asyncio.sleep(start_s + at_s - asyncio.get_running_loop().time())
        bucket.set_rate(rate)

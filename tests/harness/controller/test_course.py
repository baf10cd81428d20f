"""harness/controller/course.py: phases go forwards, the first failure counts, stages end with it."""

from __future__ import annotations

import asyncio
import time

import pytest

from harness.controller.course import Course, Phase
from harness.errors import PeerLost, TestbedError

PATIENCE_S = 20.0


def test_phases_go_forwards_only():
    async def whole() -> None:
        course = Course(1.0)
        course.reach(Phase.STOPPING)
        course.reach(Phase.RUNNING)
        assert course.phase == Phase.STOPPING

    asyncio.run(whole())


def test_the_clock_begins_at_the_origin_and_counts_dilated_seconds():
    async def whole() -> None:
        course = Course(4.0)
        assert (course.now(), course.began) == (0.0, False)
        course.origin_s = time.monotonic() + 100.0
        assert (course.now(), course.began) == (0.0, False)
        course.origin_s = time.monotonic() - 100.0
        assert course.began
        assert 25.0 <= course.now() < 25.0 + PATIENCE_S

    asyncio.run(whole())


def test_a_failure_ends_a_stage_and_is_what_is_raised():
    async def whole() -> None:
        course = Course(1.0)
        ended = asyncio.Event()

        async def stage() -> None:
            try:
                await asyncio.sleep(PATIENCE_S)
            finally:
                ended.set()

        asyncio.get_running_loop().call_soon(course.fail, PeerLost("first"))
        asyncio.get_running_loop().call_soon(course.fail, TestbedError("second"))
        with pytest.raises(PeerLost, match="first"):
            await course.unless_failed(stage())
        assert ended.is_set()

    asyncio.run(whole())


def test_a_failure_is_told_before_what_it_made_the_stage_raise():
    async def whole() -> None:
        course = Course(1.0)

        async def stage() -> None:
            course.fail(PeerLost("the cause"))
            raise TestbedError("what followed")

        with pytest.raises(PeerLost, match="the cause"):
            await course.unless_failed(stage())

    asyncio.run(whole())


def test_a_stage_returns_or_raises_what_it_does():
    async def whole() -> None:
        course = Course(1.0)

        async def good() -> int:
            return 7

        async def bad() -> None:
            raise TestbedError("mine")

        assert await course.unless_failed(good()) == 7
        with pytest.raises(TestbedError, match="mine"):
            await course.unless_failed(bad())

    asyncio.run(whole())


@pytest.mark.parametrize(
    ("phase", "counts"),
    [
        (Phase.READYING, True),
        (Phase.RUNNING, True),
        (Phase.STOPPING, False),
        (Phase.SCORING, True),
        (Phase.LEAVING, False),
    ],
)
def test_what_roles_do_after_the_end_is_nobodys_business_but_scoring_is(phase: Phase, counts: bool):
    async def whole() -> None:
        course = Course(1.0)
        course.reach(phase)
        course.fail(TestbedError("late"))

        async def stage() -> str:
            await asyncio.sleep(0)
            return "done"

        if counts:
            with pytest.raises(TestbedError, match="late"):
                await course.unless_failed(stage())
        else:
            assert await course.unless_failed(stage()) == "done"

    asyncio.run(whole())

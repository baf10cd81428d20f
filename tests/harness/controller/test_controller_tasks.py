"""harness/controller/tasks.py: none is left behind."""

from __future__ import annotations

import asyncio

import pytest

from harness.controller.tasks import Tasks, together

FOREVER_S = 60.0


def test_all_values_in_order():
    async def value(number: int) -> int:
        await asyncio.sleep(0.01 * (3 - number))
        return number

    async def whole() -> list[int]:
        return await together(value(number) for number in range(3))

    assert asyncio.run(whole()) == [0, 1, 2]


@pytest.mark.parametrize("cause", ["one fails", "the caller is cancelled"])
def test_the_others_have_ended_when_it_raises(cause: str):
    ended: list[str] = []

    async def other(name: str) -> None:
        try:
            await asyncio.sleep(FOREVER_S)
        finally:
            await asyncio.sleep(0.01)  # it is waited for
            ended.append(name)

    async def bad() -> None:
        await asyncio.sleep(0.01)
        if cause == "one fails":
            raise ValueError("bad")
        await asyncio.sleep(FOREVER_S)

    async def whole() -> None:
        task = asyncio.ensure_future(together([other("a"), bad(), other("b")]))
        await asyncio.sleep(0.02)
        if cause != "one fails":
            task.cancel()
        with pytest.raises(ValueError if cause == "one fails" else asyncio.CancelledError):
            await task
        assert sorted(ended) == ["a", "b"]
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(whole())


def test_what_a_task_in_the_background_raises_is_told():
    told: list[BaseException] = []

    async def bad() -> None:
        raise ValueError("bad")

    async def endless() -> None:
        await asyncio.sleep(FOREVER_S)

    async def whole() -> None:
        tasks = Tasks(told.append)
        tasks.keep(bad())
        tasks.keep(endless())
        await asyncio.sleep(0.01)
        await tasks.close()
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(whole())
    assert [str(error) for error in told] == ["bad"]

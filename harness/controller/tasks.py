"""Coroutines beside each other, of which none is left behind."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar

_T = TypeVar("_T")


async def together(coroutines: Iterable[Coroutine[Any, Any, _T]]) -> list[_T]:
    """Return what all of them return, in order. The first that fails, or the caller's end, ends the others.

    Raises:
        Exception: the first one's.
    """
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    if not tasks:
        return []
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        for task in tasks:
            task.cancel()  # without effect on those that are done
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in tasks:
        if task in done and (error := task.exception()) is not None:
            raise error
    return [task.result() for task in tasks]


class Tasks:
    """What goes on in the background.

    Args:
        failed: told of what a task has raised.
    """

    def __init__(self, failed: Callable[[BaseException], None]) -> None:
        self._failed = failed
        self._tasks: set[asyncio.Task[None]] = set()  # asyncio itself holds tasks weakly

    def keep(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Start one."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failed(error)

    async def close(self) -> None:
        """End all of them and wait for their ends."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

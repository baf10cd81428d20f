"""What a node's activities await, on asyncio; a wait's row is written when it ends, with the time at which it ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from typing import Any, Protocol

from harness import record
from harness.randomness import TorchStream

_OWN = (record.RECV, record.GATHER, record.SLEEP, record.CHANNEL)
"""Waits that belong to one activity: when it is cancelled they are over, so that nothing is delivered to them."""


class Waits(Protocol):
    """Who is told of waits."""

    def now(self) -> float: ...

    def current(self) -> WallActivity | None: ...

    def abandoned(self, activity: WallActivity, future: WallFuture) -> None: ...

    def waited(self, activity: WallActivity, future: WallFuture, since_s: float, end_s: float) -> None: ...


class WallFuture(asyncio.Future[Any]):
    """A value that will be there later (see harness.driver.Future).

    Attributes:
        kind, tag: what is waited for (harness.record).  cause: what ended the wait.
        at_s: when the value was there, on the run's clock.
    """

    def __init__(self, waits: Waits, kind: int, tag: str) -> None:
        super().__init__()
        self.kind = kind
        self.tag = tag
        self.cause = -1
        self.at_s = -1.0
        self._waits = waits

    def set_result(self, value: Any, cause: int = -1) -> None:
        """Finish, unless it is finished or cancelled."""
        if not self.done():
            self.cause = cause
            self.at_s = self._waits.now()
            super().set_result(value)

    def set_exception(self, error: type | BaseException) -> None:
        """Fail, unless it is finished or cancelled; nobody has to ask for it."""
        if not self.done():
            self.at_s = self._waits.now()
            super().set_exception(error)
            self._log_traceback = False

    def add_done_callback(self, call: Callable[[Any], object], *, context: Any = None) -> None:
        super().add_done_callback(call, context=context)

    def __await__(self) -> Generator[Any, None, Any]:
        if self.done():
            return self.result()
        activity = self._waits.current()
        if activity is None:  # one of the worker's own tasks
            return (yield from super().__await__())
        since_s = self._waits.now()
        activity.waiting, activity.since_s = self, since_s
        try:
            if self.kind in _OWN:
                return (yield from super().__await__())
            return (yield from asyncio.shield(self).__await__())
        finally:
            activity.waiting = None
            end_s = self.at_s if self.done() and self.at_s >= since_s else self._waits.now()
            self._waits.waited(activity, self, since_s, end_s)

    __iter__ = __await__


class WallActivity(WallFuture):
    """A running coroutine; awaiting it gives its value, or None if it was cancelled.

    Attributes:
        lane: its number on its node.  daemon: nobody waits for its end.
        waiting: what it awaits, since `since_s`; None while it runs.
        randomness: its torch stream, once it has computed something.
    """

    def __init__(
        self,
        waits: Waits,
        task: asyncio.Task[Any],
        lane: int,
        daemon: bool,
        failed: Callable[[WallActivity, BaseException], None],
    ) -> None:
        super().__init__(waits, record.JOIN, "activity")
        self.lane = lane
        self.daemon = daemon
        self.task = task
        self.waiting: WallFuture | None = None
        self.since_s = 0.0
        self.randomness: TorchStream | None = None
        self._failed = failed
        task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[Any]) -> None:
        if task.cancelled():
            self.set_result(None, self.lane)
        elif (error := task.exception()) is not None:
            self._failed(self, error)
            self.set_exception(error)
        else:
            self.set_result(task.result(), self.lane)

    def cancel(self, msg: Any = None) -> bool:  # noqa: ARG002 - the shape of asyncio's
        if self.waiting is not None:  # at once: the task itself hears of it later
            self._waits.abandoned(self, self.waiting)
        return self.task.cancel()

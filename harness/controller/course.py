"""How far a run is: its phase, its clock, when each stage was reached, and what has stopped it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from enum import IntEnum
from typing import Any, TypeVar

_T = TypeVar("_T")


class Phase(IntEnum):
    """What a run is at; only ever forwards.

    READYING: nodes start, connect, are throttled and probed.  RUNNING: from the instant at which the start was
    announced.  STOPPING: the last node of the role that ends the run has returned, or the run has failed; what roles
    still do is nobody's business.  SCORING: all roles have been stopped.  LEAVING: nobody is listened to.
    """

    READYING = 0
    RUNNING = 1
    STOPPING = 2
    SCORING = 3
    LEAVING = 4


class Course:
    """How far one run is.

    Args:
        dilation: real seconds per second of the run.

    Attributes:
        origin_s: when the run starts (monotonic); None before that is known.
        end_s: when it was over, in seconds of the run.
        stages_s: real seconds from the beginning to each stage.
        over: the last node of the role that ends the run has returned.
    """

    def __init__(self, dilation: float) -> None:
        self.phase = Phase.READYING
        self.origin_s: float | None = None
        self.end_s = 0.0
        self.stages_s: dict[str, float] = {}
        self.over = asyncio.Event()
        self._dilation = dilation
        self._failure: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
        self._began_s = time.monotonic()

    @property
    def began(self) -> bool:
        """The start was announced and its instant has passed."""
        return self.origin_s is not None and time.monotonic() > self.origin_s

    def now(self) -> float:
        """Seconds of the run; 0 before its start."""
        return 0.0 if self.origin_s is None else max(0.0, (time.monotonic() - self.origin_s) / self._dilation)

    def reach(self, phase: Phase) -> None:
        """The run is at that phase now, or further."""
        self.phase = max(self.phase, phase)

    def stage(self, name: str) -> None:
        """Note when a stage was reached."""
        self.stages_s[name] = round(time.monotonic() - self._began_s, 3)

    def fail(self, error: BaseException) -> None:
        """Stop the run with the first error that comes; one of a role that goes on after the end is nobody's."""
        if not self._failure.done() and self.phase not in (Phase.STOPPING, Phase.LEAVING):
            self._failure.set_result(error)

    async def unless_failed(self, stage: Coroutine[Any, Any, _T]) -> _T:
        """Go through a stage; what `fail` is told meanwhile, or was told before, ends it.

        Raises:
            BaseException: what `fail` was told, before what it made the stage itself raise.
        """
        task = asyncio.ensure_future(stage)
        try:
            either: list[asyncio.Future[Any]] = [task, self._failure]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if self._failure.done():
                raise self._failure.result()
            return task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

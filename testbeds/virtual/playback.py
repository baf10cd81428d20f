"""Links whose rate follows a trace: the next change is in the kernel's heap while flows are on the link, no longer.

A link has one entry in the heap at most, which puts itself in again. When a change is due and nothing is on the
link, it is not: so a schedule neither keeps a run alive in which nobody can move, nor costs anything while idle.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from testbeds._fleet.schedule import Schedule
from testbeds.virtual.kernel import Kernel


class Playback:
    """Changes one link's rate as its schedule says.

    Args:
        change: called with each new rate, bytes per second, and at least once.
    """

    __slots__ = ("_change", "_cycle", "_index", "_kernel", "_pending", "_schedule", "_users")

    def __init__(self, kernel: Kernel, schedule: Schedule, change: Callable[[float], None]) -> None:
        self._kernel = kernel
        self._schedule = schedule
        self._change = change
        self._cycle = -1  # which pass through the trace, -1 before the first
        self._index = 0  # which step of it
        self._users = 0
        self._pending = False  # the next change is in the heap

    def enter(self) -> None:
        """A flow comes to the link, and will be started after this."""
        self._users += 1
        if self._users > 1:
            return
        ends = self._catch_up()
        if not self._pending:
            self._pending = True
            self._kernel.at(ends, self._due)

    def leave(self) -> None:
        """A flow has left the link."""
        self._users -= 1

    def _due(self, _: Any) -> float | None:
        """Change the rate and return when it changes next; None if nobody would notice."""
        if self._users:
            ends = self._catch_up()
            if self._users:  # flows that ended in this moment may have been the last
                return ends
        self._pending = False
        return None

    def _catch_up(self) -> float:
        """Give the link the rate it has now; return when that ends."""
        now, trace = self._kernel.now, self._schedule.trace
        before = (self._cycle, self._index)
        if now >= self._ends():
            self._cycle, self._index = trace.step_at(now + self._schedule.offset_s)
            while now >= self._ends():  # rounding: the sum above may fall just short of a step's end
                self._cycle, self._index = trace.step_after(self._cycle, self._index)
        ends = self._ends()
        if before != (self._cycle, self._index):
            self._change(trace.rates_bps[self._index] / 8)
        return ends

    def _ends(self) -> float:
        """Return when the current step ends, on the kernel's clock."""
        if self._cycle < 0:
            return -1.0
        return self._schedule.trace.step_ends_s(self._cycle, self._index) - self._schedule.offset_s

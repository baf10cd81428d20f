"""Devices that come and go: each log's next event is in the kernel's heap, and puts the one after it there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

from profiles.traces.availability import Availability
from testbeds.virtual.kernel import Kernel

PATIENCE_PERIODS = 2
"""After how many passes through all logs in which nobody did anything it is a deadlock."""


class Presence:
    """Crashes devices when they go and lets them rejoin when they come back, as their logs say.

    Logs may be without end, and a run in which nobody can move must come to one: when nothing but comings and goings
    has been due for `PATIENCE_PERIODS` passes through all logs, no more are scheduled, and the heap runs dry.

    Args:
        crash, rejoin: called with the device's name.
    """

    def __init__(self, kernel: Kernel, crash: Callable[[str], None], rejoin: Callable[[str], None]) -> None:
        self._kernel = kernel
        self._crash = crash
        self._rejoin = rejoin
        self._pending = 0  # entries of the heap that are ours
        self._quiet = 0  # events in a row between which nothing else was due
        self._patience = 0

    def add(self, name: str, log: Availability, offset_s: float) -> None:
        """Let a device come and go as a log says, read from `offset_s` on. It is there before the run begins."""
        if log.always:
            return
        events = changes(log, offset_s)
        first = next(events)
        self._pending += 1
        self._patience += 2 * PATIENCE_PERIODS * (len(log.intervals_s) + 1)
        self._kernel.at(first[0], self._due(name, first[1], events))

    def _due(self, name: str, comes: bool, events: Iterator[tuple[float, bool]]) -> Callable[[Any], float | None]:
        """Return what the kernel calls at each event of a device."""

        def due(_: Any) -> float | None:
            nonlocal comes
            self._quiet = self._quiet + 1 if len(self._kernel.heap) == self._pending else 0
            (self._rejoin if comes else self._crash)(name)
            following = next(events, None)
            if following is None or self._quiet > self._patience:
                self._pending -= 1
                return None
            at_s, comes = following
            return at_s

        return due


def changes(log: Availability, offset_s: float) -> Iterator[tuple[float, bool]]:
    """Yield (virtual time, whether the device comes) of every event of a log from `offset_s` on; at 0 it is there."""
    until_s = 0.0
    for start_s, end_s in _present(log, offset_s):
        if start_s > until_s:
            yield until_s, False
            yield start_s, True
        until_s = end_s
    yield until_s, False


def _present(log: Availability, offset_s: float) -> Iterator[tuple[float, float]]:
    """Yield the virtual times (from, to) at which a device is there, from 0 on; without end if the log is looped."""
    intervals, period_s = log.intervals_s, log.period_s
    passes = count(int(offset_s // period_s)) if period_s is not None else range(1)
    end_s = 0.0
    for cycle in passes:
        shift_s = cycle * (period_s or 0.0) - offset_s
        for number, (begins_s, ends_s) in enumerate(intervals):
            start_s = max(0.0, shift_s + begins_s)
            if number == 0 and end_s > 0 and begins_s == 0 and intervals[-1][1] == period_s:
                start_s = end_s  # there when the log ends and when it begins: it never went, whatever rounding says
            end_s = shift_s + ends_s
            if end_s > 0:
                yield start_s, end_s

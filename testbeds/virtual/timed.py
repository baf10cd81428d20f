"""A processor whose computations take as long as a real one was measured to take, where its times are known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from harness.record import TIERS
from testbeds._fleet.timings import Timing
from testbeds.virtual.pricing import Entry
from testbeds.virtual.processor import Job, Priced, Processor

_MEASURED = TIERS.index("measured")


class TimedProcessor(Processor):
    """A processor with a list of times; what is not on it costs what the node's profile says.

    Attributes:
        computations: different ones so far.
        seconds: that it has computed.
        known_seconds: of these, those that rest on the list.
    """

    def __init__(self, *args: Any, timings: Mapping[str, Timing]) -> None:
        super().__init__(*args)
        self._timings = timings
        self._found: set[Entry] = set()
        self.computations = 0
        self.seconds = 0.0
        self.known_seconds = 0.0

    @property
    def known(self) -> int:
        """How many of the computations are on the list."""
        return len(self._found)

    def _priced(self, entry: Entry) -> Priced:
        self.computations += 1
        timing = self._timings.get(entry.digest)
        priced = super()._priced(entry)
        if timing is None:
            return priced
        self._found.add(entry)
        return priced._replace(duration_s=timing.seconds, tier=_MEASURED)

    def _end(self, job: Job) -> None:
        self._count(job)
        super()._end(job)

    def halt(self) -> None:
        self._count(self._running)
        super().halt()

    def _count(self, job: Job | None) -> None:
        """Add the time since a job began, if it is the one that is running."""
        if job is None or job is not self._running or job.begun < 0.0:
            return
        passed_s = self._kernel.now - job.begun
        self.seconds += passed_s
        if job.priced.entry in self._found:
            self.known_seconds += passed_s


def coverage(processors: Iterable[Processor]) -> dict[str, Any]:
    """Return how much of a run rests on measured times, for its notes.

    `computations`: different ones, on every node; `known`: how many of them have a measured time; `share`: of the
    compute seconds, how much they are (0 where nothing was computed).
    """
    timed = [processor for processor in processors if isinstance(processor, TimedProcessor)]
    seconds = sum(processor.seconds for processor in timed)
    return {
        "computations": sum(processor.computations for processor in timed),
        "known": sum(processor.known for processor in timed),
        "share": sum(processor.known_seconds for processor in timed) / seconds if seconds else 0.0,
    }

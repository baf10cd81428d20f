"""The run's clock in one node: seconds since the start of the run, the same on all nodes, divided by the dilation."""

from __future__ import annotations

import time


class RunClock:
    """Reads the host's monotonic clock and counts from the common start.

    Args:
        dilation: how many real seconds one second of the run takes.

    Attributes:
        offset_s: what is added to this host's clock to get the controller's (real seconds).
        origin_s: when the run starts, on the controller's clock; until then `now` is measured from the clock's making.
    """

    def __init__(self, dilation: float = 1.0) -> None:
        self.dilation = dilation
        self.offset_s = 0.0
        self.origin_s = time.monotonic()

    def now(self) -> float:
        """Seconds of the run; negative before its start."""
        return (time.monotonic() + self.offset_s - self.origin_s) / self.dilation

    def real(self, seconds: float) -> float:
        """How long so many seconds of the run really take."""
        return seconds * self.dilation

    def until_start_s(self) -> float:
        """Real seconds until the run starts."""
        return self.origin_s - self.offset_s - time.monotonic()

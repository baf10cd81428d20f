"""Steps that follow each other without a hole, gathered into a RateTrace."""

from __future__ import annotations

from harness.errors import ProfileError
from profiles.trace import RateTrace

_SLACK_S = 1e-6


class Steps:
    """Gathers the steps of one trace in their order.

    Args:
        name: the trace's, for people.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._times_s: list[float] = []
        self._rates_bps: list[float] = []
        self._begin_s = 0.0
        self._end_s = 0.0

    def add(self, start_s: float, end_s: float, rate_bps: float, place: str) -> None:
        """Put one step behind the last.

        Args:
            place: "file:line" it was read from.

        Raises:
            ProfileError: it takes no time, or does not begin where the last one ended.
        """
        if end_s <= start_s:
            raise ProfileError(
                f"{place}: time does not rise ({start_s:g} s to {end_s:g} s); mend or cut the file there"
            )
        if not self._times_s:
            self._begin_s = start_s
        elif start_s > self._end_s + _SLACK_S:
            raise ProfileError(
                f"{place}: nothing is known from {self._end_s:g} s to {start_s:g} s; cut the trace in two there, or "
                "write a rate for it (0 = an outage)"
            )
        elif start_s < self._end_s - _SLACK_S:
            raise ProfileError(f"{place}: time goes back from {self._end_s:g} s to {start_s:g} s; put it in order")
        self._times_s.append(start_s - self._begin_s)
        self._rates_bps.append(rate_bps)
        self._end_s = end_s

    def trace(self) -> RateTrace:
        """Return the trace, its time counted from its first step.

        Raises:
            ProfileError: it has no step, or its rate is 0 from beginning to end.
        """
        return RateTrace(self._name, self._times_s, self._rates_bps, self._end_s - self._begin_s)

"""A rate that changes in steps, over and over: what a recorded trace says about one direction of a link."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import accumulate, pairwise
from math import inf, isfinite

from harness.errors import ProfileError


class RateTrace:
    """A step function of time, looped: step i holds from times_s[i] to times_s[i + 1], the last to the period's end.

    Neighbours of equal rate are made one step.

    Attributes:
        name: which trace, for people.
        times_s: when each step begins; the first at 0.
        rates_bps: bits per second; 0 is an outage.
        period_s: after how long it begins anew.

    Raises:
        ProfileError: no steps, times that do not rise from 0 to the period, a rate that is negative or no number,
            or one that is 0 from beginning to end.
    """

    def __init__(self, name: str, times_s: Iterable[float], rates_bps: Iterable[float], period_s: float) -> None:
        times, rates = list(map(float, times_s)), list(map(float, rates_bps))
        if not times or len(times) != len(rates):
            raise ProfileError(f"{name}: {len(times)} times and {len(rates)} rates; give one rate per time, and any")
        if times[0] != 0 or not all(a < b for a, b in pairwise([*times, period_s])) or not isfinite(period_s):
            raise ProfileError(f"{name}: times must begin at 0 and rise up to the period of {period_s:g} s")
        if not all(0 <= rate < inf for rate in rates):
            raise ProfileError(f"{name}: a rate is negative or not finite; rates are bits per second, 0 an outage")
        if not any(rates):
            raise ProfileError(f"{name}: its rate is 0 from beginning to end; nothing would ever arrive")
        kept = [i for i in range(len(times)) if i == 0 or rates[i] != rates[i - 1]]
        self.name = name
        self.times_s = tuple(times[i] for i in kept)
        self.rates_bps = tuple(rates[i] for i in kept)
        self.period_s = float(period_s)

    def __repr__(self) -> str:
        return f"RateTrace({self.name}, {len(self.times_s)} steps in {self.period_s:g} s)"

    # ---- the whole ------------------------------------------------------------------------------------------

    @property
    def constant(self) -> bool:
        """Whether it has one rate only."""
        return len(self.times_s) == 1

    @property
    def mean_bps(self) -> float:
        """Mean over time."""
        return self._bits[-1] / self.period_s

    @property
    def max_bps(self) -> float:
        """The highest rate."""
        return max(self.rates_bps)

    @cached_property
    def _bits(self) -> list[float]:
        """Bits from the beginning to the start of each step, and to the end."""
        edges = pairwise([*self.times_s, self.period_s])
        return list(accumulate((r * (b - a) for r, (a, b) in zip(self.rates_bps, edges, strict=True)), initial=0.0))

    # ---- at a time, from 0 on -------------------------------------------------------------------------------

    def step_at(self, time_s: float) -> tuple[int, int]:
        """Return which step holds at a time: (passes through the trace before, index)."""
        cycle, phase_s = divmod(time_s, self.period_s)
        return int(cycle), bisect_right(self.times_s, phase_s) - 1

    def step_after(self, cycle: int, index: int) -> tuple[int, int]:
        """Return the step after a step."""
        return (cycle, index + 1) if index + 1 < len(self.times_s) else (cycle + 1, 0)

    def step_ends_s(self, cycle: int, index: int) -> float:
        """Return when a step ends."""
        cycle, index = self.step_after(cycle, index)
        return cycle * self.period_s + self.times_s[index]

    def rate_bps(self, time_s: float) -> float:
        """Return the rate at a time."""
        return self.rates_bps[self.step_at(time_s)[1]]

    def bytes_between(self, start_s: float, end_s: float) -> float:
        """Return how many bytes pass between two times."""
        return (self._bits_until(end_s) - self._bits_until(start_s)) / 8

    def _bits_until(self, time_s: float) -> float:
        cycle, phase_s = divmod(time_s, self.period_s)
        index = bisect_right(self.times_s, phase_s) - 1
        part = self._bits[index] + self.rates_bps[index] * (phase_s - self.times_s[index])
        return cycle * self._bits[-1] + part

    def segments(self, start_s: float = 0.0) -> Iterator[tuple[float, float, float]]:
        """Yield (start_s, end_s, bits per second) of the steps from a time on, for ever."""
        step = self.step_at(start_s)
        while True:
            ends_s = self.step_ends_s(*step)
            if ends_s > start_s:
                yield start_s, ends_s, self.rates_bps[step[1]]
                start_s = ends_s
            step = self.step_after(*step)

    def resampled(self, step_s: float) -> RateTrace:
        """Return the same bytes in steps of `step_s` (the last one shorter if the period is no multiple of it).

        Raises:
            ProfileError: the step is not positive.
        """
        if not 0 < step_s < inf:
            raise ProfileError(f"{self.name}: resampled in steps of {step_s:g} s; a step is longer than 0 s")
        count = max(1, int(-(-self.period_s // step_s)))
        edges = [i * step_s for i in range(count)] + [self.period_s]
        if count > 1 and self.period_s - edges[-2] <= 1e-9 * step_s:  # rounding: a last step of no length
            del edges[-2]
        bits = [self._bits_until(edge) for edge in edges[:-1]] + [self._bits[-1]]
        rates = [
            max(0.0, (b1 - b0) / (e1 - e0)) for (b0, b1), (e0, e1) in zip(pairwise(bits), pairwise(edges), strict=True)
        ]
        return RateTrace(self.name, edges[:-1], rates, self.period_s)

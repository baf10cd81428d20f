"""Mahimahi: a line per delivery opportunity of 1500 bytes, its millisecond; looped after the last line.

Source of the format: mm-link(1) of github.com/ravinet/mahimahi. Its traces are GPL-3.0 and not shipped. An
opportunity at t lets 1500 bytes pass; here they pass evenly within a step (1 s unless said otherwise), because an event
per packet would buy nothing that a transfer of kilobytes could tell.
"""

from __future__ import annotations

from pathlib import Path

from harness.errors import ProfileError
from profiles.trace import RateTrace
from profiles.traces.lines import numbered

OPPORTUNITY_BYTES = 1500
STEP_S = 1.0


def read(path: Path, step_s: float | None = None) -> RateTrace:
    """Read a trace; `step_s` is the length of its steps.

    Raises:
        ProfileError: by file and line.
    """
    last_ms = 0
    opportunities: list[int] = []
    for line, text in numbered(path):
        place = f"{path}:{line}"
        if not text.strip().isascii() or not text.strip().isdigit():
            raise ProfileError(
                f"{place}: {text.strip()[:40]!r} is no millisecond; Mahimahi has a whole number per line"
            )
        at_ms = int(text)
        if at_ms < last_ms:
            raise ProfileError(f"{place}: time goes back from {last_ms} ms to {at_ms} ms; put it in order")
        last_ms = at_ms
        opportunities.append(at_ms)
    if last_ms == 0:
        raise ProfileError(f"{path}: has no delivery opportunity after 0 ms; is it a Mahimahi trace?")
    return _even(path, opportunities, last_ms, STEP_S if step_s is None else step_s)


def _even(path: Path, opportunities: list[int], period_ms: int, step_s: float) -> RateTrace:
    """Return the opportunities at (0, period] as rates of steps (k, k + 1] x step."""
    step_ms = step_s * 1000
    if step_ms < 1:
        raise ProfileError(f"{path}: steps of {step_s:g} s are shorter than the trace's millisecond")
    counts = [0] * max(1, int(-(-period_ms // step_ms)))
    for at_ms in opportunities:
        counts[min(len(counts) - 1, max(0, int(-(-at_ms // step_ms)) - 1))] += 1
    starts_ms = [i * step_ms for i in range(len(counts))]
    ends_ms = [*starts_ms[1:], float(period_ms)]
    rates = [
        count * OPPORTUNITY_BYTES * 8 / ((end - start) / 1000)
        for count, start, end in zip(counts, starts_ms, ends_ms, strict=True)
    ]
    return RateTrace(path.name, [start / 1000 for start in starts_ms], rates, period_ms / 1000)

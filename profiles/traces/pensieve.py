"""Pensieve: "seconds Mbit/s" per line; looped.

Source of the format: sim/fixed_env.py of github.com/hongzimao/pensieve (1120bb17): a line's rate holds from the time of
the line before it up to its own, so the first line's rate is never used: it only says when the trace begins.
"""

from __future__ import annotations

from pathlib import Path

from harness.errors import ProfileError
from profiles.trace import RateTrace
from profiles.traces.intervals import Steps
from profiles.traces.lines import number, numbered


def read(path: Path) -> RateTrace:
    """Read a trace.

    Raises:
        ProfileError: by file and line.
    """
    steps = Steps(path.name)
    before_s: float | None = None
    count = 0
    for line, text in numbered(path):
        place = f"{path}:{line}"
        words = text.split()
        if len(words) != 2:
            raise ProfileError(f"{place}: {text.strip()[:40]!r} is not 'seconds Mbit/s'; is it a Pensieve trace?")
        at_s = number(words[0], "time", place)
        rate_bps = number(words[1], "rate", place) * 1e6
        if before_s is not None:
            steps.add(before_s, at_s, rate_bps, place)
            count += 1
        before_s = at_s
    if not count:
        raise ProfileError(f"{path}: has fewer than two lines; a Pensieve trace needs a beginning and a rate")
    return steps.trace()

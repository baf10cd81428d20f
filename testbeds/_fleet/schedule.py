"""How one direction of a link follows a recorded rate."""

from __future__ import annotations

from dataclasses import dataclass

from profiles.trace import RateTrace


@dataclass(frozen=True)
class Schedule:
    """A trace as one link plays it: t seconds after the run began it has the trace's rate at `offset_s` + t."""

    trace: RateTrace
    offset_s: float = 0.0

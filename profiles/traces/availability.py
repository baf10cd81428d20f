"""When devices are there: intervals, per device, in a span of time that is looped.

Two forms. A CSV (gzip or not) with the columns user, trace_start_s, trace_end_s, ready_from_s, ready_to_s, a row per
interval: that of FLHetBench (Carkham/FLHetBench), derived from FLASH (PKU-Chengxu/FLASH, BSD-2). And FedScale's
client_behave_trace, as JSON or pickle: {client: {"active": [s, ...], "inactive": [s, ...], "finish_time" or "duration":
s}}, a client being there from active[i] to inactive[i] (fedscale/cloud/internal/client_metadata.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import ProfileError
from profiles.traces import plain
from profiles.traces.lines import number, numbered

COLUMNS = ("user", "trace_start_s", "trace_end_s", "ready_from_s", "ready_to_s")

Intervals = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Availability:
    """When one device is there.

    Attributes:
        name: whose log it is.
        intervals_s: (from, to), in order, apart from each other, each longer than 0, within the period.
        period_s: after how long it begins anew; None = never: it is gone for good after the last interval.

    Raises:
        ProfileError: the intervals are none of that.
    """

    name: str
    intervals_s: Intervals
    period_s: float | None = None

    def __post_init__(self) -> None:
        before_s = -1.0
        for start_s, end_s in self.intervals_s:
            if not max(0.0, before_s) <= start_s < end_s or start_s == before_s:
                raise ProfileError(
                    f"{self.name}: {start_s:g} s to {end_s:g} s ends before it begins, or begins before the interval "
                    "before it has ended; put them in order, and make one of those that touch"
                )
            before_s = end_s
        if not self.intervals_s:
            raise ProfileError(f"{self.name}: is never there; give one interval at least")
        if self.period_s is not None and self.period_s < before_s:
            raise ProfileError(
                f"{self.name}: an interval ends at {before_s:g} s, after the period of {self.period_s:g} s"
            )

    @property
    def always(self) -> bool:
        """Whether it never goes."""
        return self.intervals_s == ((0.0, self.period_s),)


def read(path: Path) -> dict[str, Availability]:
    """Read the availability of every device that is there at all; intervals of no length are left out.

    Raises:
        ProfileError: by file and line or client.
    """
    found = _from_csv(path) if ".csv" in path.suffixes else _from_mapping(path)
    if not found:
        raise ProfileError(f"{path}: no device in it is ever there")
    return found


def _from_csv(path: Path) -> dict[str, Availability]:
    rows = numbered(path)
    first = next(rows, None)
    if first is None or tuple(first[1].split(",")) != COLUMNS:
        raise ProfileError(f"{path}: does not begin with a line {','.join(COLUMNS)}")
    spans: dict[str, tuple[float, float]] = {}
    intervals: dict[str, list[tuple[float, float]]] = {}
    for line, text in rows:
        place = f"{path}:{line}"
        row = text.split(",")
        if len(row) != len(COLUMNS):
            raise ProfileError(f"{place}: has {len(row)} columns, not {len(COLUMNS)}; mend or cut the file there")
        start_s, end_s, from_s, to_s = (
            number(value, name, place) for value, name in zip(row[1:], COLUMNS[1:], strict=True)
        )
        if spans.setdefault(row[0], (start_s, end_s)) != (start_s, end_s):
            raise ProfileError(f"{place}: user {row[0]} has another trace_start_s or trace_end_s than before")
        mine = intervals.setdefault(row[0], [])
        after_s = mine[-1][1] if mine else 0.0
        if not start_s <= from_s <= to_s <= end_s or from_s - start_s < after_s:
            raise ProfileError(
                f"{place}: {from_s:g} s to {to_s:g} s is not within the trace, or begins before the interval "
                "above has ended; put it in order"
            )
        if to_s > from_s:
            joined = mine.pop()[0] if mine and from_s - start_s == after_s else from_s - start_s
            mine.append((joined, to_s - start_s))
    return {
        user: Availability(f"{path}: {user}", tuple(mine), spans[user][1] - spans[user][0])
        for user, mine in intervals.items()
        if mine
    }


def _from_mapping(path: Path) -> dict[str, Availability]:
    found = {}
    for client, entry in plain.mapping(plain.load(path), str(path)).items():
        place = f"{path}: client {client}"
        fields = plain.mapping(entry, place)
        active, inactive = (_seconds(fields.get(key), f"{place}: {key}") for key in ("active", "inactive"))
        if len(active) != len(inactive):
            raise ProfileError(f"{place}: has {len(active)} times in `active` and {len(inactive)} in `inactive`")
        period_s = plain.figure(fields.get("finish_time", fields.get("duration")), f"{place}: finish_time")
        intervals = tuple((a, b) for a, b in zip(active, inactive, strict=True) if a != b)
        if intervals:
            found[client] = Availability(place, intervals, period_s)
    return found


def _seconds(value: Any, place: str) -> list[float]:
    if not isinstance(value, list | tuple):
        raise ProfileError(f"{place}: is missing, or no list of seconds")
    return [plain.figure(item, place) for item in value]

"""A CSV of many traces: source, trace, mode, t_ms, duration_ms, down_kbps, up_kbps; a row per step.

What is known of published sources and decides whether a column is a capacity is in `KNOWN`.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from harness.errors import ProfileError, suggestion
from profiles.trace import RateTrace
from profiles.traces.intervals import Steps
from profiles.traces.lines import number, numbered

COLUMNS = ("source", "trace", "mode", "t_ms", "duration_ms", "down_kbps", "up_kbps")
RATES = ("down_kbps", "up_kbps")


@dataclass(frozen=True)
class Known:
    """What a source's logs measure: in which modes the link was loaded fully, and whether upwards at all."""

    modes: str = "*"
    no_uplink: str = ""


KNOWN = {
    "ireland-5g": Known(
        modes="*/download",
        no_uplink="its up_kbps is the stream of acknowledgements of a download (median 0.1 to 0.15 Mbit/s), not what "
        "the uplink can carry",
    )
}


def read(
    path: Path, source: str | None = None, mode: str | None = None, column: str = "down_kbps"
) -> dict[str, RateTrace]:
    """Read the traces of one source.

    Args:
        source: None if the file has one only.
        mode: which modes, `*` standing for anything; None = those in which the link was loaded fully.
        column: down_kbps or up_kbps.

    Raises:
        ProfileError: by file and line; a source, mode or column that is not there; an uplink that is none.
    """
    if column not in RATES:
        raise ProfileError(f"{path}: column {column!r} holds no rate{suggestion(column, RATES)}")
    rows = numbered(path)
    where = _header(path, rows)
    at_rate = where[column]
    steps: dict[str, Steps] = {}
    sources: dict[str, None] = {}
    modes: dict[str, None] = {}
    for line, text in rows:
        place = f"{path}:{line}"
        row = next(csv.reader([text]))
        if len(row) != len(where):
            raise ProfileError(
                f"{place}: has {len(row)} columns and the header {len(where)}; mend or cut the file there"
            )
        found = row[where["source"]]
        sources[found] = None
        if source is None and len(sources) > 1:
            raise ProfileError(f"{place}: the file has several sources; name one: {', '.join(sources)}, ...")
        if source is not None and found != source:
            continue
        known = KNOWN.get(found, Known())
        if column == "up_kbps" and known.no_uplink:
            raise ProfileError(
                f"{path}: {found} has no uplink: {known.no_uplink}; give up_bps, or `column: down_kbps` to let its "
                "downlink stand in"
            )
        modes[row[where["mode"]]] = None
        if not fnmatchcase(row[where["mode"]], known.modes if mode is None else mode):
            continue
        name = row[where["trace"]]
        if not row[at_rate].strip():
            raise ProfileError(f"{place}: {column} of {found} is empty: it was not measured; take the other column")
        start_s = number(row[where["t_ms"]], "t_ms", place) / 1000
        duration_s = number(row[where["duration_ms"]], "duration_ms", place) / 1000
        rate_bps = number(row[at_rate], column, place) * 1000
        steps.setdefault(name, Steps(f"{path}: {name}")).add(start_s, start_s + duration_s, rate_bps, place)
    if not sources:
        raise ProfileError(f"{path}: has a header and nothing else; a row per step is needed")
    if source is not None and source not in sources:
        raise ProfileError(f"{path}: has no source {source!r}{suggestion(source, sources)}")
    if not steps:
        raise ProfileError(f"{path}: no trace has the mode {mode!r}{suggestion(str(mode), modes)}")
    return {name: found.trace() for name, found in steps.items()}


def _header(path: Path, rows: object) -> dict[str, int]:
    """Return the position of each column."""
    first = next(iter(rows), None)  # type: ignore[call-overload]
    if first is None:
        raise ProfileError(f"{path}: is empty; the first line names the columns {','.join(COLUMNS)}")
    names = first[1].split(",")
    if missing := [name for name in COLUMNS if name not in names]:
        raise ProfileError(f"{path}:{first[0]}: has no column {', '.join(missing)}; columns are {','.join(COLUMNS)}")
    return {name: i for i, name in enumerate(names)}

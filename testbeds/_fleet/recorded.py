"""The recorded rates that a testbed section names: their files, and what each node draws of them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from harness.errors import ProfileError, suggestion
from harness.randomness import stream
from profiles.trace import RateTrace
from profiles.traces import library
from testbeds._fleet import sections
from testbeds._fleet.schedule import Schedule

Way = Literal["up", "down"]
WAYS: tuple[Way, Way] = ("up", "down")


def resolved(file: str, data_root: Path | None = None) -> Path:
    """Return where a file is: as written, from here, or in the data folder (None = $AMMETER_DATA).

    Raises:
        ProfileError: it is in neither.
    """
    path = Path(file).expanduser()
    if path.exists() or path.is_absolute():
        return path
    if data_root is None and os.environ.get("AMMETER_DATA"):
        data_root = Path(os.environ["AMMETER_DATA"])
    if data_root is None:
        raise ProfileError(f"{file}: no such file here, and no data folder is given; set AMMETER_DATA")
    if not (data_root / path).exists():
        raise ProfileError(f"{file}: no such file here, nor in {data_root}; check the path or AMMETER_DATA")
    return data_root / path


def traces(link: sections.Link, way: Way, data_root: Path | None = None) -> Mapping[str, RateTrace]:
    """Return the traces that a direction of a link may play, by name; none if its rate is constant.

    Raises:
        ProfileError: by file and line.
    """
    trace = link.up_trace if way == "up" else link.down_trace
    if trace is None:
        return {}
    column = trace.column or f"{way}_kbps"
    path = resolved(trace.file, data_root)
    found = library.rates(path, trace.format, trace.source, trace.mode, column, trace.step_s)
    if trace.name is None:
        return found
    if trace.name not in found:
        raise ProfileError(f"{path}: has no trace {trace.name!r}{suggestion(trace.name, found)}")
    return {trace.name: found[trace.name]}


def schedule(link: sections.Link, way: Way, node: str, seed: int, data_root: Path | None = None) -> Schedule | None:
    """Return what a direction of a node's link plays, drawn from the seed; None if its rate is constant.

    Both directions draw the same numbers: of files that list the two directions of the same recordings they play the
    same recording from the same moment.

    Raises:
        ProfileError: by file and line.
    """
    found = list(traces(link, way, data_root).values())
    if not found:
        return None
    which, phase = stream(seed, node, "trace").random(2).tolist()
    trace = found[int(which * len(found))]
    return Schedule(trace, phase * trace.period_s if link.offset == "random" else link.offset)

"""Every second of every node blamed on its cause.

A node is idle when its processor runs nothing while its role has not finished; after that it is done. Each gap
between computations is blamed on the activity (lane) whose computation ends it. What that lane waited for says
why, and the peers' records say more:

    transfer     a message on its way: one that the lane had posted itself, or the one it was waiting for
    dependency   a peer had not posted yet (or a sleep, or a time-out)
    straggler    dependency, while the barrier that its own message fed was still waiting for the last arrival
    unselected   dependency, in a round the device was not sampled for
    overhead     ready, but not running: never on the virtual clock

Compute + idle by cause + done tile the run: for every node they add up to its end. The intervals of a
node's lanes are swept at once, sorted by (lane, time), so a run of millions of rows takes seconds; a busy node's in
windows of time one after the other, so that they need little memory beside the rows.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from harness import record

CAUSES = ("dependency", "straggler", "transfer", "unselected", "overhead")
COLUMNS = ("compute", *CAUSES, "done")

# Structured arrays are indexed by `take` and `compress` here: several times as fast as by brackets.
Rows = np.ndarray[Any, Any]
Intervals = np.ndarray[Any, Any]

_INTERVAL = np.dtype([("lane", "i8"), ("start", "f8"), ("end", "f8")])
_DEPENDENCY, _STRAGGLER, _TRANSFER, _UNSELECTED, _OVERHEAD = range(5)
_MOST_HOPS = 4
"""How far a wait for another activity of the same node is followed."""
SWEEP_INTERVALS = 200_000
"""About how many intervals are swept at once: some 20 MB."""


def attribute(arrays: Mapping[str, Rows], names: Sequence[str], roles: Mapping[str, str], end_s: float) -> pd.DataFrame:
    """Return seconds per node: columns node, compute, the five causes, done.

    Args:
        arrays: the run's tables as structured arrays (Recorder.arrays).
        roles: role of every node by name, in order.
        end_s: when the run was over.
    """
    posted = _posted(arrays["transfer"])
    ids = {name: number for number, name in enumerate(names)}
    unselected = _unselected(arrays["mark"])
    by_node = {table: _Grouped(arrays[table], column, read) for table, (column, read) in _READ.items()}
    rows = []
    for name, role in roles.items():
        number = ids.get(name, -1)
        mine = {table: groups.of(number) for table, groups in by_node.items()}
        away = unselected(number) if role == "device" else []
        seconds = _node(mine, posted, away, end_s)
        rows.append({"node": name, **seconds})
    return pd.DataFrame(rows, columns=["node", *COLUMNS])


_READ = {
    "compute": ("node", ("lane", "start_s", "end_s")),
    "wait": ("node", ("lane", "kind", "start_s", "end_s", "cause")),
    "barrier": ("src", ("arrived_s", "last_s")),
    "mark": ("node", ("kind", "at_s")),
    "transfer": ("src", ("lane", "status", "posted_s", "arrived_s")),
}
"""What is read of a node's rows: table -> (which column says that they are the node's, columns)."""


class _Grouped:
    """The rows of a table by the number in one column: their order is kept, they are copied when asked for."""

    def __init__(self, rows: Rows, column: str, read: Sequence[str]) -> None:
        self._rows = rows
        self._dtype = np.dtype([(name, rows.dtype[name]) for name in read])
        keys = rows[column]
        self._ends = np.cumsum(np.bincount(keys))
        if len(self._ends) <= 2**15:
            keys = keys.astype(np.int16)  # numpy sorts short integers by counting
        self._order = np.argsort(keys, kind="stable")

    def of(self, number: int) -> Rows:
        """Return the columns that are read of the rows of that number, in their order."""
        known = 0 <= number < len(self._ends)
        first, end = (self._ends[number - 1] if number else 0, self._ends[number]) if known else (0, 0)
        mine = self._order[first:end]
        copied = np.empty(len(mine), dtype=self._dtype)
        for column in copied.dtype.names or ():
            copied[column] = self._rows[column][mine]
        return copied


def _posted(transfers: Rows) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return posted_s by message serial."""
    size = int(transfers["serial"].max()) + 1 if len(transfers) else 0
    posted = np.full(size, np.nan)
    posted[transfers["serial"]] = transfers["posted_s"]
    return posted


def _unselected(marks: Rows) -> Callable[[int], list[tuple[float, float]]]:
    """Return a function device id -> intervals of the rounds it was not sampled for, by the node that sampled."""
    marks = marks[np.isin(marks["node"], marks["node"][marks["kind"] == record.SAMPLED])]
    starts = marks[marks["kind"] == record.ROUND_START]
    ends = marks[marks["kind"] == record.ROUND_END]
    sampled = marks[marks["kind"] == record.SAMPLED]
    chosen: dict[int, set[int]] = {}
    for row in sampled:
        chosen.setdefault(int(row["number"]), set()).add(int(row["name"]))
    end_of = {int(row["number"]): float(row["at_s"]) for row in ends}
    spans = {int(row["number"]): (float(row["at_s"]), end_of.get(int(row["number"]), np.inf)) for row in starts}

    def of(number: int) -> list[tuple[float, float]]:
        return [spans[index] for index, names in chosen.items() if index in spans and number not in names]

    return of


def _intervals(lanes: Any, starts: Any, ends: Any) -> Intervals:
    out = np.empty(len(starts), dtype=_INTERVAL)
    out["lane"], out["start"], out["end"] = lanes, starts, ends
    return out.compress(out["end"] > out["start"])


def _node(
    mine: Mapping[str, Rows], posted: Rows, unselected: list[tuple[float, float]], end_s: float
) -> dict[str, float]:
    """Return the seconds of one node by cause."""
    spans = _spans(mine["mark"], end_s)
    compute = mine["compute"].take(np.argsort(mine["compute"]["start_s"], kind="stable"))
    busy = float((compute["end_s"] - compute["start_s"]).sum())
    waits = mine["wait"]
    refers = (waits["kind"] == record.JOIN) | (waits["kind"] == record.CHANNEL)
    direct = waits.compress(~refers)
    referring = waits.compress(refers & (waits["cause"] >= 0))
    dependency, transfer = _split(direct, posted)
    transfer = np.concatenate([transfer, _own_sends(mine["transfer"], end_s)])
    barriers = mine["barrier"]
    straggler = np.stack([barriers["arrived_s"], barriers["last_s"]], axis=1).reshape(-1, 2)
    absent = np.array(unselected, dtype=np.float64).reshape(-1, 2)
    totals = np.zeros(5)
    stuck = []
    left = _gaps(compute, spans)
    for _ in range(_MOST_HOPS):
        found, left = _sweep(left, dependency, transfer, straggler, absent, referring)
        totals += found
        left, no_reference = _refer(left, referring)
        stuck.append(no_reference)
        if not len(left):
            break
    # what no wait of its lane explains: whatever the role itself waited for, or else anybody on this node
    rest = np.concatenate([left, *stuck])
    for everybody in (False, True):
        if len(rest):
            rest["lane"] = 0
            if everybody:
                dependency, transfer = dependency.copy(), transfer.copy()
                dependency["lane"] = transfer["lane"] = 0
            found, rest = _sweep(rest, dependency, transfer, straggler, absent, referring[:0])
            totals += found
    totals[_OVERHEAD] += float((rest["end"] - rest["start"]).sum())
    present = float((spans[:, 1] - spans[:, 0]).sum())
    return {
        "compute": busy,
        "dependency": totals[_DEPENDENCY],
        "straggler": totals[_STRAGGLER],
        "transfer": totals[_TRANSFER],
        "unselected": totals[_UNSELECTED],
        "overhead": totals[_OVERHEAD],
        "done": end_s - present,
    }


def _spans(marks: Rows, end_s: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return when the node's role was there: [n, 2], from each start to its end (or loss, or the run's end)."""
    spans, since = [], None
    for row in marks[np.argsort(marks["at_s"], kind="stable")]:
        if row["kind"] == record.ROLE_START:
            since = float(row["at_s"])
        elif row["kind"] in (record.ROLE_END, record.LOST) and since is not None:
            spans.append((since, float(row["at_s"])))
            since = None
    if since is not None:
        spans.append((since, end_s))
    return np.array(spans, dtype=np.float64).reshape(-1, 2)


def _gaps(compute: Rows, spans: np.ndarray[Any, np.dtype[np.float64]]) -> Intervals:
    """Return the idle intervals, each on the lane whose computation ends it (0 at the end of the role)."""
    parts = []
    for start, end in spans:
        inside = compute[(compute["start_s"] >= start) & (compute["start_s"] < end)]
        ends = np.concatenate([[start], inside["end_s"]])
        starts = np.concatenate([inside["start_s"], [end]])
        lanes = np.concatenate([inside["lane"], [0]])
        parts.append(_intervals(lanes, ends, starts))
    return np.concatenate(parts) if parts else _intervals([], [], [])


def _split(waits: Rows, posted: np.ndarray[Any, np.dtype[np.float64]]) -> tuple[Intervals, Intervals]:
    """Return (dependency, transfer) intervals of direct waits: a message that is on its way is a transfer."""
    start, end = waits["start_s"], waits["end_s"]
    cause = waits["cause"]
    known = (cause >= 0) & (cause < len(posted)) & (waits["kind"] != record.SEND)
    turn = end.copy()  # when waiting for the peer became waiting for the network
    turn[known] = np.clip(posted[cause[known]], start[known], end[known])
    turn[waits["kind"] == record.SEND] = start[waits["kind"] == record.SEND]
    return _intervals(waits["lane"], start, turn), _intervals(waits["lane"], turn, end)


def _own_sends(transfers: Rows, end_s: float) -> Intervals:
    """Return when messages that each lane had posted were on their way."""
    ends = np.where(transfers["status"] == record.DELIVERED, transfers["arrived_s"], end_s)
    ends = np.where(transfers["status"] == record.UNDELIVERED, transfers["posted_s"], ends)
    return _intervals(transfers["lane"], transfers["posted_s"], ends)


def _sweep(
    gaps: Intervals,
    dependency: Intervals,
    transfer: Intervals,
    straggler: np.ndarray[Any, np.dtype[np.float64]],
    absent: np.ndarray[Any, np.dtype[np.float64]],
    referring: Rows,
) -> tuple[np.ndarray[Any, np.dtype[np.float64]], Intervals]:
    """Return (seconds by cause, the parts of gaps that no wait of their lane covers).

    Those parts are cut at the edges of `referring` waits, so that each lies inside one of them or in none.
    """
    cuts = _intervals(referring["lane"], referring["start_s"], referring["end_s"])
    seconds = np.zeros(5)
    left = [gaps[:0]]
    intervals = len(gaps) + len(dependency) + len(transfer) + len(cuts)
    for start, end in _windows(gaps, intervals):
        inside = [_clipped(part, start, end) for part in (gaps, dependency, transfer, cuts)]
        late, away = (
            spans[(spans[:, 0] < end) & (spans[:, 1] > start)].clip(start, end) for spans in (straggler, absent)
        )
        found, open_ = _sweep_window(inside, late, away)
        seconds += found
        left.append(open_)
    return seconds, np.concatenate(left)


def _windows(gaps: Intervals, intervals: int) -> Iterator[tuple[float, float]]:
    """Yield windows of time that hold equal shares of the gaps, and all of them together."""
    if len(gaps):
        pieces = intervals // SWEEP_INTERVALS + 1
        inner = np.quantile(gaps["start"], np.arange(1, pieces) / pieces, method="lower")
        edges = np.unique([gaps["start"].min(), *inner, gaps["end"].max()])
        yield from itertools.pairwise(edges.tolist())


def _clipped(part: Intervals, start: float, end: float) -> Intervals:
    inside = part.compress((part["start"] < end) & (part["end"] > start))
    np.clip(inside["start"], start, None, out=inside["start"])
    np.clip(inside["end"], None, end, out=inside["end"])
    return inside


def _sweep_window(
    inside: Sequence[Intervals],
    straggler: np.ndarray[Any, np.dtype[np.float64]],
    absent: np.ndarray[Any, np.dtype[np.float64]],
) -> tuple[np.ndarray[Any, np.dtype[np.float64]], Intervals]:
    """Sweep the gaps, dependencies, transfers and cuts of one window of time.

    Straggler and absent hold for every lane of the node.
    """
    gaps, dependency, transfer, cuts = inside
    lanes = np.unique(gaps["lane"])
    sets = [gaps, dependency, transfer, _on_lanes(straggler, lanes), _on_lanes(absent, lanes), cuts]
    lane = np.concatenate([part["lane"] for part in sets for _ in (0, 1)])
    time = np.concatenate([part[edge] for part in sets for edge in ("start", "end")])
    order = np.lexsort((time, lane))
    lane, time = lane[order], time[order]
    length = np.where(lane[:-1] == lane[1:], time[1:] - time[:-1], 0.0)
    covered = []
    first = 0
    for part in sets:
        change = np.zeros(len(order), dtype=np.int64)
        change[first : first + len(part)] = 1
        change[first + len(part) : first + 2 * len(part)] = -1
        covered.append(np.cumsum(change[order])[:-1] > 0)
        first += 2 * len(part)
    gap, waiting, moving, late, away, _ = covered
    gap &= length > 0
    waiting = gap & waiting & ~moving
    seconds = np.zeros(5)
    seconds[_TRANSFER] = length[gap & moving].sum()
    seconds[_UNSELECTED] = length[waiting & away].sum()
    seconds[_STRAGGLER] = length[waiting & late & ~away].sum()
    seconds[_DEPENDENCY] = length[waiting & ~late & ~away].sum()
    open_ = np.flatnonzero(gap & ~moving & ~waiting)
    return seconds, _intervals(lane[open_], time[open_], time[open_ + 1])


def _on_lanes(spans: np.ndarray[Any, np.dtype[np.float64]], lanes: Any) -> Intervals:
    """Return intervals that hold for every lane of a node."""
    return _intervals(np.repeat(lanes, len(spans)), np.tile(spans[:, 0], len(lanes)), np.tile(spans[:, 1], len(lanes)))


def _refer(left: Intervals, referring: Rows) -> tuple[Intervals, Intervals]:
    """Move what a lane spent waiting for another activity of its node to that one's lane.

    Returns (moved, what no such wait covers).
    """
    if not len(left) or not len(referring):
        return left[:0], left
    order = np.lexsort((referring["start_s"], referring["lane"]))
    rows = referring[order]
    keys = _pairs(rows["lane"], rows["start_s"])
    wanted = _pairs(left["lane"], left["start"])
    at = np.searchsorted(keys, wanted, side="right") - 1
    inside = at >= 0
    row = rows[np.maximum(at, 0)]
    inside &= (row["lane"] == left["lane"]) & (row["end_s"] >= left["end"]) & (row["cause"] != left["lane"])
    moved = _intervals(row["cause"][inside], left["start"][inside], left["end"][inside])
    return moved, left[~inside]


def _pairs(lanes: Any, starts: Any) -> Rows:
    """Return (lane, start) pairs that sort by lane first."""
    pairs = np.empty(len(lanes), dtype=[("lane", "i8"), ("start", "f8")])
    pairs["lane"], pairs["start"] = lanes, starts
    return pairs

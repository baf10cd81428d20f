"""The nodes' rows become the run's: one set of names, one numbering of messages, one clock, nothing after the end.

The run is over when its last ENDS role has returned; what the others did until they heard of it is cut off, a
computation that was running is charged up to that instant. A message's row is its sender's. Where the sender died
before it could send it, the receiver's arrival stands for it, with its first byte as the time of its post.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness import record
from harness.controller.members import Bundle
from harness.errors import BrokenRecords
from harness.record import NAMED, TABLES, Recorder, dtype
from harness.worker.rows import ARRIVAL, ARRIVALS

Rows = np.ndarray[Any, Any]

_MESSAGES = (record.RECV, record.GATHER, record.SEND)
"""Waits that end by a message: their cause is its serial."""


@dataclass(frozen=True)
class Counts:
    """Messages of the run: sent = consumed + unread + undelivered + in flight."""

    sent: int
    consumed: int
    unread: int
    undelivered: int
    in_flight: int


def collect(bundles: Sequence[Bundle], recorder: Recorder, end_s: float, dilation: float = 1.0) -> Counts:
    """Write the rows of all bundles to the run's recorder.

    Args:
        end_s: when the run was over; rows are cut there.

    Raises:
        BrokenRecords: nodes that have all lived to the end do not agree on what they have sent each other.
    """
    found: dict[str, list[Rows]] = {name: [] for name in (*TABLES, ARRIVALS)}
    for number, bundle in enumerate(bundles):
        for table, rows in _rows(bundle, recorder, end_s, dilation).items():
            if table == "barrier":  # each incarnation counted for itself
                rows["barrier"] += np.int64(number) << 40
            found[table].append(rows)
    tables = {name: _joined(name, parts) for name, parts in found.items()}
    arrivals = tables.pop(ARRIVALS)
    if all(bundle.stopped is not None and bundle.until_s is None for bundle in bundles):
        _check_agreement(tables["transfer"], arrivals)
    transfer = _transfers(tables["transfer"], arrivals, end_s)
    serials = transfer["serial"].copy()
    transfer["serial"] = np.arange(len(transfer))
    tables["transfer"] = transfer
    lookup = _Lookup(serials)
    waits = tables["wait"]
    message = np.isin(waits["kind"], _MESSAGES)
    waits["cause"][message] = lookup.of(waits["cause"][message])
    barrier = tables["barrier"]
    barrier["serial"] = lookup.of(barrier["serial"])
    barrier = tables["barrier"] = barrier[(barrier["last_s"] <= end_s) & (barrier["serial"] >= 0)]
    barrier["barrier"] = np.unique(barrier["barrier"], return_inverse=True)[1] if len(barrier) else 0
    for into in recorder.tables:
        if len(tables[into.name]):
            into.append(tables[into.name].tobytes())
    return _counts(transfer, bundles)


def _rows(bundle: Bundle, recorder: Recorder, end_s: float, dilation: float) -> dict[str, Rows]:
    """Return a bundle's tables, in the run's names and on the run's clock, cut at its end."""
    ids = np.array([recorder.id(name) for name in bundle.names] or [0], dtype=np.int32)
    found: dict[str, Rows] = {}
    for table, data in bundle.tables.items():
        kind = ARRIVAL if table == ARRIVALS else dtype(table)
        whole = len(data) // kind.itemsize  # the last row of a node that died may be torn
        rows = np.frombuffer(bytes(data[: whole * kind.itemsize]), dtype=kind).copy()
        for column in kind.names or ():
            if column in NAMED:
                rows[column] = ids[rows[column]]
            if column.endswith("_s") and abs(bundle.drift_s) > bundle.residual_s and end_s > 0:
                known = rows[column] >= 0
                rows[column][known] += bundle.drift_s / dilation * rows[column][known] / end_s
        found[table] = rows
    until_s = end_s if bundle.until_s is None else min(end_s, bundle.until_s)
    over = found.get("mark")
    if over is not None:
        ends = over["at_s"][over["kind"] == record.ROLE_END]
        until_s = min([until_s, *ends.tolist()])
    for table in ("compute", "wait"):
        if table in found:
            found[table] = _cut(found[table], until_s)
    if over is not None:
        over["at_s"][over["kind"] == record.PEAK_MEMORY] = end_s
        found["mark"] = _not_before(over[over["at_s"] <= end_s], "at_s")
    return found


def _cut(rows: Rows, until_s: float) -> Rows:
    """Cut intervals at the end; of a computation that was running, its share is charged."""
    rows = _not_before(_not_before(rows, "start_s"), "end_s")
    rows = rows[rows["start_s"] <= until_s]
    over = rows["end_s"] > until_s
    if "flops" in (rows.dtype.names or ()):
        whole = rows["end_s"][over] - rows["start_s"][over]
        share = np.divide(until_s - rows["start_s"][over], whole, out=np.zeros_like(whole), where=whole > 0)
        rows["flops"][over] *= share
        rows["samples"][over] = (rows["samples"][over] * share).astype(np.int32)
    rows["end_s"][over] = until_s
    return rows


def _not_before(rows: Rows, column: str) -> Rows:
    """A timer may wake a role some microseconds before the start."""
    np.clip(rows[column], 0.0, None, out=rows[column])
    return rows


def _joined(table: str, parts: Iterable[Rows]) -> Rows:
    kind = ARRIVAL if table == ARRIVALS else dtype(table)
    joined: Rows = np.concatenate([np.empty(0, dtype=kind), *parts])
    by = {"compute": "start_s", "wait": "end_s", "transfer": "posted_s", "barrier": "last_s"}.get(table)
    by = by or ("arrived_s" if table == ARRIVALS else "at_s")
    return joined[np.argsort(joined[by], kind="stable")]


def _transfers(transfer: Rows, arrivals: Rows, end_s: float) -> Rows:
    """Return one row per message, in the order of their posts."""
    missing = arrivals[~np.isin(arrivals["serial"], transfer["serial"])]
    known = _Lookup(transfer["serial"])
    at = known.of(arrivals["serial"])
    here = at >= 0
    rows, came = at[here], arrivals["arrived_s"][here]
    late = transfer["status"][rows] != record.DELIVERED  # acknowledged to nobody
    transfer["status"][rows[late]] = record.DELIVERED
    transfer["arrived_s"][rows[late]] = came[late]
    transfer["wire_bytes"][rows[late]] = arrivals["wire_bytes"][here][late]
    never_started = (transfer["status"] == record.DELIVERED) & (transfer["started_s"] < 0)
    transfer["started_s"][never_started] = transfer["posted_s"][never_started]
    transfer = np.concatenate([transfer, _from_arrivals(missing)])
    np.clip(transfer["posted_s"], 0.0, None, out=transfer["posted_s"])
    transfer = transfer[transfer["posted_s"] <= end_s]
    flying = (transfer["status"] == record.DELIVERED) & (transfer["arrived_s"] > end_s)
    transfer["status"][flying] = record.IN_FLIGHT
    transfer["arrived_s"][transfer["status"] != record.DELIVERED] = -1.0
    arrived = transfer["status"] == record.DELIVERED
    # two clocks: what is below their residual is no order
    for earlier, later in (("posted_s", "started_s"), ("started_s", "arrived_s")):
        transfer[later][arrived] = np.maximum(transfer[later][arrived], transfer[earlier][arrived])
    return transfer[np.argsort(transfer["posted_s"], kind="stable")]


def _check_agreement(transfer: Rows, arrivals: Rows) -> None:
    delivered = transfer["serial"][transfer["status"] == record.DELIVERED]
    unknown = int((~np.isin(delivered, arrivals["serial"])).sum())
    unsent = int((~np.isin(arrivals["serial"], transfer["serial"])).sum())
    if unknown or unsent:
        raise BrokenRecords(
            f"{unknown} messages were acknowledged by nodes that know nothing of them, and {unsent} arrived that "
            "nobody has sent; do not use these records"
        )


def _from_arrivals(arrivals: Rows) -> Rows:
    rows = np.zeros(len(arrivals), dtype=dtype("transfer"))
    for column in ("serial", "src", "dst", "tag", "connection", "round", "payload_bytes", "wire_bytes", "arrived_s"):
        if column in (arrivals.dtype.names or ()):
            rows[column] = arrivals[column]
    rows["status"] = record.DELIVERED
    rows["posted_s"] = rows["started_s"] = arrivals["first_byte_s"]
    return rows


class _Lookup:
    """Where each serial stands."""

    def __init__(self, serials: Rows) -> None:
        self._order = np.argsort(serials, kind="stable")
        self._sorted = serials[self._order]

    def of(self, wanted: Rows) -> Rows:
        """Return the position of each, -1 where it is unknown."""
        if not len(self._sorted):
            return np.full(len(wanted), -1, dtype=np.int64)
        at = np.minimum(np.searchsorted(self._sorted, wanted), len(self._sorted) - 1)
        return np.where(self._sorted[at] == wanted, self._order[at], -1)


def _counts(transfer: Rows, bundles: Sequence[Bundle]) -> Counts:
    by = np.bincount(transfer["status"], minlength=3)
    delivered, undelivered, in_flight = (int(by[k]) for k in (record.DELIVERED, record.UNDELIVERED, record.IN_FLIGHT))
    # unread by whoever could still be asked; what lay with one that died has been read or not, nobody knows
    unread = sum(bundle.stopped.get("unread", int) for bundle in bundles if bundle.stopped is not None)
    unread = min(unread, delivered)
    return Counts(len(transfer), delivered - unread, unread, undelivered, in_flight)

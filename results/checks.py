"""Invariants that every run's records must meet; a run that does not add up is reported as broken."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from harness import record
from harness.testbed import Outcome
from results.idle import COLUMNS

Rows = np.ndarray[Any, Any]

_SLACK = 1e-9


def violations(arrays: Mapping[str, Rows], idle: pd.DataFrame, outcome: Outcome, most_overhead: float) -> list[str]:
    """Return what does not add up, one sentence each; empty if all is well.

    Args:
        arrays: the run's tables.  idle: seconds per node and cause (results.idle).
        most_overhead: share of the run that a node may be ready without running: 0 on a virtual clock.
    """
    end_s = outcome.end_s
    slack = _SLACK * max(1.0, end_s)
    found = _not_numbers(arrays, idle, end_s)
    for table in ("compute", "wait"):
        rows = arrays[table]
        if len(rows) and (
            float(rows["start_s"].min()) < 0
            or float((rows["end_s"] - rows["start_s"]).min()) < 0
            or float(rows["end_s"].max()) > end_s + slack
        ):
            found.append(f"a {table} interval is negative or outside the run")
    found += _overlaps(arrays["compute"], slack)
    transfers = arrays["transfer"]
    backwards = (transfers["started_s"] < transfers["posted_s"]) | (transfers["arrived_s"] < transfers["started_s"])
    if np.any(backwards & (transfers["status"] == record.DELIVERED)):
        found.append("a message arrived before it was sent")
    if len(transfers) and (
        int(transfers["payload_bytes"].min()) < 0 or np.any(transfers["wire_bytes"] < transfers["payload_bytes"])
    ):
        found.append("a message has negative bytes, or fewer wire than payload bytes")
    accounted = outcome.consumed + outcome.unread + outcome.undelivered + outcome.in_flight
    if outcome.sent != accounted:
        found.append(
            f"{outcome.sent} messages were sent but {outcome.consumed} consumed + {outcome.unread} unread + "
            f"{outcome.undelivered} undelivered + {outcome.in_flight} in flight are {accounted}"
        )
    if len(transfers) != outcome.sent:
        found.append(f"{outcome.sent} messages were sent but {len(transfers)} are recorded")
    for _, row in idle.iterrows():
        total = float(sum(row[column] for column in COLUMNS))
        if abs(total - end_s) > slack * 10:
            found.append(f"{row['node']}: compute, idle and done add up to {total!r} s of {end_s!r} s")
        if row["overhead"] > most_overhead * end_s + slack * 10:
            found.append(f"{row['node']}: ready but not running for {row['overhead']:.6g} s")
        if min(float(row[column]) for column in COLUMNS) < -slack * 10:
            found.append(f"{row['node']}: a share of its time is negative")
    return found


def _not_numbers(arrays: Mapping[str, Rows], idle: pd.DataFrame, end_s: float) -> list[str]:
    """Every time and size must be a number: a comparison with NaN finds nothing."""
    found = [] if np.isfinite(end_s) else [f"the run ends at {end_s} s"]
    for table, rows in arrays.items():
        for column in rows.dtype.names or ():
            if table != "metric" and rows[column].dtype.kind == "f" and not np.all(np.isfinite(rows[column])):
                found.append(f"{table}.{column} holds a value that is no number")
    whole = np.isfinite(idle[list(COLUMNS)].to_numpy(dtype=float)).all(axis=1)
    return found + [f"{node}: a share of its time is no number" for node in idle["node"][~whole]]


def _overlaps(compute: Rows, slack: float) -> list[str]:
    """A node has one processor: its computations follow each other."""
    order = np.lexsort((compute["start_s"], compute["node"]))
    node, start_s, end_s = (compute[column][order] for column in ("node", "start_s", "end_s"))
    if np.any((node[1:] == node[:-1]) & (start_s[1:] < end_s[:-1] - slack)):
        return ["two computations of one node overlap"]
    return []

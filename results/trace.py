"""The timeline of a run as Chrome trace JSON, which Perfetto and chrome://tracing open."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from results.store import Run

_US = 1e6


def export(run: Run, path: Path) -> None:
    """Write computations, waits, transfers (as flows between nodes) and marks of a run.

    One process per node: one thread per lane, one for what it sends on each connection. Times are microseconds, as
    the format wants. An event is written when it is made: those of a long run would not fit into memory.
    Source of the format: "Trace Event Format" (Google, public document).
    """
    with path.open("w") as file:
        separator = '{"displayTimeUnit": "ms", "traceEvents": ['
        for event in _events(run):
            file.write(separator + json.dumps(event))
            separator = ",\n"
        file.write("]}")


def _events(run: Run) -> Iterator[dict[str, Any]]:
    nodes = {name: number for number, name in enumerate(run.table("idle")["node"].astype(str), start=1)}
    for name, pid in nodes.items():
        yield {"ph": "M", "name": "process_name", "pid": pid, "args": {"name": name}}
        for connection, what in enumerate(("sends", "sends (control)")):
            tid = _SENDS + connection
            yield {"ph": "M", "name": "thread_name", "pid": pid, "tid": tid, "args": {"name": what}}
    row: Any
    for row in run.table("compute").itertuples():
        yield _span(nodes[str(row.node)], int(row.lane), str(row.what), "compute", row.start_s, row.end_s)
    for row in run.table("wait").itertuples():
        name = f"wait: {row.kind} {row.tag}"
        yield _span(nodes[str(row.node)], int(row.lane), name, "wait", row.start_s, row.end_s)
    transfers = run.table("transfer")
    for row in transfers[transfers["status"] == "delivered"].itertuples():
        src, dst = nodes[str(row.src)], nodes[str(row.dst)]
        sends = _SENDS + int(row.connection)
        span = _span(src, sends, str(row.tag), "transfer", row.started_s, row.arrived_s)
        span["args"] = {"to": str(row.dst), "round": int(row.round), "payload_bytes": int(row.payload_bytes)}
        yield span
        flow = {"name": str(row.tag), "cat": "message", "id": int(row.serial)}
        yield {**flow, "ph": "s", "pid": src, "tid": sends, "ts": row.started_s * _US}
        yield {**flow, "ph": "f", "bp": "e", "pid": dst, "tid": 0, "ts": row.arrived_s * _US}
    marks = run.table("mark")
    for row in marks[marks["kind"].isin(["round_start", "phase", "lost", "returned"])].itertuples():
        kind = str(row.kind)
        name = {"round_start": f"round {row.number}", "phase": str(row.name)}.get(kind, f"{kind}: {row.name}")
        yield {"ph": "i", "s": "p", "name": name, "pid": nodes[str(row.node)], "tid": 0, "ts": row.at_s * _US}


_SENDS = 1_000_000
"""Thread number of a node's sends on its data connection, then on its control connection: above every lane."""


def _span(pid: int, tid: int, name: str, category: str, start_s: float, end_s: float) -> dict[str, Any]:
    return {
        "ph": "X",
        "pid": pid,
        "tid": tid,
        "name": name,
        "cat": category,
        "ts": start_s * _US,
        "dur": (end_s - start_s) * _US,
    }

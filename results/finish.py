"""From a run's rows to its folder: idle by cause, checks, summary, tables, environment."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from harness.errors import BrokenRecords
from harness.record import Recorder
from harness.testbed import Outcome
from results import checks, environment, events, idle, summary
from results.disk import write_text

_OVERHEAD = {"virtual": 0.0, "wall": 1.0}
"""Share of a run that a node may be ready without running, by clock (on a wall clock it is a finding)."""


def finish(
    folder: Path, resolved: Mapping[str, Any], run_id: str, variant: str, recorder: Recorder, outcome: Outcome
) -> dict[str, Any]:
    """Write everything that is derived from a run's rows; return its summary.

    Raises:
        BrokenRecords: the records do not add up.
    """
    arrays, names = recorder.arrays(), recorder.names
    roles = {node.name: node.role for node in outcome.nodes}
    seconds = idle.attribute(arrays, names, roles, outcome.end_s)
    record_ = summary.summarise(resolved, run_id, variant, outcome, arrays, names, seconds)
    details = environment.describe() | {
        "clock": outcome.clock,
        "testbed": outcome.notes,
        "nodes": [vars(node) for node in outcome.nodes],
        "weights": outcome.fingerprints,
        "messages": {
            what: getattr(outcome, what) for what in ("sent", "consumed", "unread", "undelivered", "in_flight")
        },
    }
    write_text(folder / "environment.json", json.dumps(details, indent=2))
    if outcome.timings:
        write_text(folder / "timings.json", json.dumps({"format": 1, "nodes": outcome.timings}, indent=1))
    if outcome.partition:
        _write_arrays(folder / "partition.npz", outcome)
    events.write(folder / "events", arrays, names)
    summary.rounds(arrays, names).to_parquet(folder / "rounds.parquet", index=False)
    summary.metrics(arrays["metric"], names).to_parquet(folder / "metrics.parquet", index=False)
    seconds["role"] = [node.role for node in outcome.nodes]
    seconds.to_parquet(folder / "idle.parquet", index=False)
    write_text(folder / "summary.json", json.dumps(record_, indent=2))
    recorder.discard()
    broken = checks.violations(arrays, seconds, outcome, _OVERHEAD[outcome.clock])
    if broken:
        raise BrokenRecords(f"{folder}: the records do not add up, do not use them:\n  " + "\n  ".join(broken))
    return record_


def _write_arrays(path: Path, outcome: Outcome) -> None:
    temporary = path.with_name("partition.part.npz")
    clients = {f"client_{number}": part for number, part in enumerate(outcome.partition)}
    np.savez_compressed(temporary, histogram=outcome.histogram, **clients)
    temporary.replace(path)

"""Small experiments, runs in a store, and handcrafted rows, for tests of what comes after a run."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from bench_nodes import Bench, Role

from harness import experiment, record
from harness.record import Recorder
from harness.run import execute
from harness.testbed import NodeInfo, Outcome
from results import idle
from results.store import Run, Store

TINY: dict[str, Any] = {
    "name": "tiny",
    "mode": "timing",
    "seeds": [1],
    "task": {"data": "digits", "model": "vgg-5", "partition": {"samples": 160}, "test_samples": 32},
    "training": {"rounds": 1, "batch_size": 16},
    "methods": ["fedavg"],
    "testbed": {
        "name": "virtual",
        "devices": [{"profile": "rpi-4-4g", "count": 2}],
        "network": {"up_bps": 1e7, "down_bps": 1e7, "latency_s": 0.01},
        "server": {"network": {}},
    },
}
"""Two devices, 160 digits, one round."""


def tiny(**changes: Any) -> dict[str, Any]:
    """Return TINY with whole sections replaced."""
    return copy.deepcopy({**TINY, **changes})


def write_tiny(folder: Path, **changes: Any) -> Path:
    """Write a tiny experiment as <name>.yaml and return its path."""
    data = tiny(**changes)
    path = folder / f"{data['name']}.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path


def record_all(root: Path, data: Mapping[str, Any]) -> list[Run]:
    """Make every run of an experiment in a store."""
    made = []
    for spec in experiment.runs(experiment.parse(dict(data))):
        made.append(Store(root).record(spec.resolved(), spec.id, lambda recorder, spec=spec: execute(spec, recorder)))
    return made


def resolved(**changes: Any) -> dict[str, Any]:
    """Return as much of a resolved run as the store and the summary read."""
    return {
        "experiment": "by-hand",
        "label": "Mine",
        "method": {"name": "mine"},
        "seed": 7,
        "mode": "timing",
        "testbed": {"name": "virtual"},
        "sweep": {},
        "target_accuracy": None,
        **changes,
    }


def benched(roles: Mapping[str, Role], **options: Any) -> Callable[[Recorder], Outcome]:
    """Return what a store can execute: these roles on the bench."""

    def go(recorder: Recorder) -> Outcome:
        bench = Bench(roles, recorder=recorder, **options).run()
        bench.outcome.nodes = [NodeInfo(name, bench.driver.topology.role(name), "bench", 2**40) for name in bench.nodes]
        return bench.outcome

    return go


def seconds(bench: Bench) -> dict[str, dict[str, float]]:
    """Return the seconds of every node of a finished bench by cause, without the zeros."""
    names = list(bench.nodes)
    table = idle.attribute(bench.recorder.arrays(), bench.recorder.names, names, bench.outcome.end_s)
    assert list(table["node"]) == names
    rows = table.set_index("node").to_dict("index")
    return {str(name): {k: v for k, v in row.items() if v != 0} for name, row in rows.items()}


def rows(table: str, *given: Iterable[Any]) -> np.ndarray:
    """Return handcrafted rows of a table, columns in the order of harness.record.TABLES."""
    return np.array([tuple(row) for row in given], dtype=record.dtype(table))


def tables(**given: np.ndarray) -> dict[str, np.ndarray]:
    """Return all tables of a run; those not given are empty."""
    return {name: given.get(name, rows(name)) for name in record.TABLES}

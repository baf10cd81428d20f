"""Small experiments, runs in a store, and handcrafted rows, for tests of what comes after a run."""

from __future__ import annotations

import copy
import errno
import os
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
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
        "claims": [],
        "target_accuracy": None,
        **changes,
    }


def benched(roles: Mapping[str, Role], **options: Any) -> Callable[[Recorder], Outcome]:
    """Return what a store can execute: these roles on the bench."""

    def go(recorder: Recorder) -> Outcome:
        bench = Bench(roles, recorder=recorder, **options).run()
        bench.outcome.nodes = [NodeInfo(name, role, "bench", 2**40) for name, role in roles_of(bench).items()]
        return bench.outcome

    return go


def roles_of(bench: Bench) -> dict[str, str]:
    """Return the role of every node of a bench by name, in order."""
    return {name: bench.driver.topology.role(name) for name in bench.nodes}


def seconds(bench: Bench) -> dict[str, dict[str, float]]:
    """Return the seconds of every node of a finished bench by cause, without the zeros."""
    roles = roles_of(bench)
    table = idle.attribute(bench.recorder.arrays(), bench.recorder.names, roles, bench.outcome.end_s)
    assert list(table["node"]) == list(roles)
    rows = table.set_index("node").to_dict("index")
    return {str(name): {k: v for k, v in row.items() if v != 0} for name, row in rows.items()}


def rows(table: str, *given: Iterable[Any]) -> np.ndarray:
    """Return handcrafted rows of a table, columns in the order of harness.record.TABLES."""
    return np.array([tuple(row) for row in given], dtype=record.dtype(table))


def tables(**given: np.ndarray) -> dict[str, np.ndarray]:
    """Return all tables of a run; those not given are empty."""
    return {name: given.get(name, rows(name)) for name in record.TABLES}


@contextmanager
def small_disk(folder: Path, size_kib: int) -> Iterator[None]:
    """Make `folder` a disk of that size, a read-only one if it is 0: a tmpfs where one may mount, else pretended."""
    folder.mkdir()
    options = f"size={size_kib}k" if size_kib else "ro,size=1m"
    words = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(words, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    if mounted:
        try:
            yield
        finally:
            subprocess.run(["umount", "-l", str(folder)], check=True)
        return
    with pytest.MonkeyPatch.context() as patch:
        _pretend(patch, folder, size_kib)
        yield


def _pretend(patch: pytest.MonkeyPatch, folder: Path, size_kib: int) -> None:
    """Refuse folders on a read-only disk; refuse files once those that are there fill the disk's pages of 4 KiB."""
    mkdir, fsync, to_parquet = Path.mkdir, os.fsync, pd.DataFrame.to_parquet

    def check(path: Path | None) -> None:
        pages = sum(-(-file.stat().st_size // 4096) for file in folder.rglob("*") if file.is_file())
        if 4 * pages > size_kib:
            where = [] if path is None else [str(path)]
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), *where)

    def made(path: Path, *args: Any, **options: Any) -> None:
        if not size_kib and folder in path.parents:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        mkdir(path, *args, **options)

    def synchronised(descriptor: int) -> None:
        check(None)
        fsync(descriptor)

    def written(table: pd.DataFrame, path: Path, **options: Any) -> None:
        to_parquet(table, path, **options)
        check(path)

    patch.setattr(Path, "mkdir", made)
    patch.setattr(os, "fsync", synchronised)
    patch.setattr(pd.DataFrame, "to_parquet", written)

"""Records at scale: 10,000 runs into a table; a run of 7 million events written and read back.

Each is measured in a process of its own, which says how long it took and how much memory it held at most (the kernel's
count: with all libraries, and with the mapped pages of files). `python -m tests.bench.records` measures both.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RUNS, LOAD_S, REPEATS = 10_000, 2.0, 3
EVENTS, PEAK_MB = 7_000_000, 2_000

METHODS = ({"name": "fedavg"}, *({"name": name, "split_point": 1} for name in ("sl", "splitfed_v1", "ampere")))
SMALL: dict[str, Any] = {
    "name": "small",
    "mode": "timing",
    "seeds": [1],
    "task": {"data": "digits", "model": "vgg-5", "partition": {"samples": 160}, "test_samples": 32},
    "training": {"rounds": 1, "batch_size": 16},
    "methods": [*METHODS],
    "testbed": {
        "name": "virtual",
        "devices": [{"profile": "rpi-4-4g", "count": 2}],
        "network": {"up_bps": 1e7, "down_bps": 1e7, "latency_s": 0.01},
        "server": {"network": {}},
    },
}
LARGE: dict[str, Any] = {
    "name": "large",
    "mode": "timing",
    "seeds": [1],
    "task": {"data": "cifar10", "model": "vgg-5", "partition": {"kind": "iid"}},
    "training": {"rounds": 83, "local_epochs": 20, "batch_size": 100},
    "methods": [{"name": "splitfed_v1", "split_point": 1}],
    "testbed": {
        "name": "virtual",
        "network": "preset-pipar-wifi",
        "compute_jitter": 0.02,
        "devices": [{"profile": "rpi-4-4g", "count": 120}],
        "server": {"profile": "server-gpu", "network": "eth-1g"},
    },
}
"""120 devices x 5 batches x 20 epochs x 83 rounds, some seven rows per batch."""


# ---- what is measured, in a process of its own ------------------------------------------------------------------


def _peak_mb() -> float:
    """The most memory that this process has held so far, in MB (getrusage would count its parent's, too)."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024 / 1e6


def _clocked(steps: dict[str, tuple[float, float, float]], name: str, step: Callable[[], Any]) -> Any:
    """Do a step and note its seconds, its processor seconds, and the peak until its end."""
    began, busy = time.perf_counter(), time.process_time()
    result = step()
    steps[name] = (time.perf_counter() - began, time.process_time() - busy, _peak_mb())
    return result


def load(root: Path) -> dict[str, Any]:
    """Load all runs below a folder into the tables of `ammeter table` and `ammeter compare`."""
    steps: dict[str, tuple[float, float, float]] = {}

    def imports() -> None:
        import pandas  # noqa: F401
        from scipy import stats  # noqa: F401

    _clocked(steps, "import pandas and scipy.stats", imports)
    from results import store, tables

    runs = _clocked(steps, "find and read the runs", lambda: store.find([root]))
    table = _clocked(steps, "a row per run (summaries)", lambda: tables.summaries(runs))
    _clocked(steps, "mean and interval per variant (comparison)", lambda: tables.comparison(table))
    return {"rows": len(table), "steps": steps}


def events(root: Path) -> dict[str, Any]:
    """Make the large run in a store below a folder, and read back its tables."""
    from harness import experiment
    from harness.cli import run as _verb  # noqa: F401  what `ammeter run` holds in memory
    from harness.record import TABLES, Recorder
    from harness.run import execute as make_it
    from harness.testbed import Outcome
    from results import tables
    from results.store import Store

    steps: dict[str, tuple[float, float, float]] = {}
    (spec,) = experiment.runs(experiment.parse(LARGE))

    def execute(recorder: Recorder) -> Outcome:
        outcome: Outcome = _clocked(steps, "run it (virtual clock)", lambda: make_it(spec, recorder))
        return outcome

    store = Store(root)
    _clocked(steps, "write", lambda: store.record(spec.resolved(), spec.id, execute))
    written, ran = steps["write"], steps["run it (virtual clock)"]
    steps["idle time, checks, summary, Parquet"] = (written[0] - ran[0], written[1] - ran[1], written[2])
    del steps["write"]
    run = store.complete(spec.resolved()["experiment"], spec.id)
    assert run is not None
    rows = sum(len(run.table(table, [next(iter(columns))])) for table, columns in TABLES.items())
    for name in ("rounds", "marks", "timeline"):
        _clocked(steps, f"read {name}", lambda name=name: getattr(tables, name)(run))
    for name in ("idle", "traffic", "metrics"):
        _clocked(steps, f"read {name}", lambda name=name: getattr(tables, name)([run]))
    size = sum(path.stat().st_size for path in run.folder.rglob("*") if path.is_file())
    return {"rows": rows, "steps": steps, "folder_mb": size / 1e6}


# ---- the runs to load -------------------------------------------------------------------------------------------


def make_runs(root: Path, count: int) -> None:
    """Fill a store: one run of each method is made, the others are its folder again with other figures.

    Twenty experiments; in each the methods, five swept values, and as many seeds as it takes. Of the files that are
    equal there is one, under many names: nobody changes them.
    """
    from harness import experiment
    from harness.run import execute
    from results.store import Store

    store = Store(root / "made")
    made = [
        store.record(spec.resolved(), spec.id, lambda recorder, spec=spec: execute(spec, recorder))
        for spec in experiment.runs(experiment.parse(SMALL))
    ]
    rng = random.Random(1)
    for number in range(count):
        source = made[number % len(made)]
        rest = number // len(made)
        value, name, seed = 2 ** (rest % 5), f"experiment-{rest // 5 % 20}", rest // 100
        variant = hashlib.sha256(f"{source.id} {name} {value}".encode()).hexdigest()[:8]
        run_id = hashlib.sha256(f"{variant} {seed}".encode()).hexdigest()[:12]
        curve = [[at_s, rng.random()] for at_s in range(20)]
        figures = {k: v * rng.uniform(0.9, 1.1) for k, v in source.summary.items() if isinstance(v, float)}
        labels = {"run_id": run_id, "experiment": name, "seed": seed, "variant": variant}
        summary = {**source.summary, **figures, **labels, "sweep": {"devices": value}, "accuracy_curve": curve}
        folder = root / "runs" / name / run_id
        shutil.copytree(source.folder, folder, copy_function=os.link)
        (folder / "summary.json").unlink()
        (folder / "summary.json").write_text(json.dumps(summary, indent=2))


# ---- the report -------------------------------------------------------------------------------------------------


def _alone(what: str, folder: Path) -> dict[str, Any]:
    """Measure in a process of its own."""
    words = [sys.executable, "-m", "tests.bench.records", what, str(folder)]
    done = subprocess.run(words, cwd=Path(__file__).parents[2], check=True, capture_output=True, text=True)
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def _table(steps: dict[str, list[float]]) -> list[str]:
    lines = ["| step | seconds | processor seconds | peak memory so far, MB |", "|---|---|---|---|"]
    return lines + [f"| {name} | {s:.2f} | {cpu:.2f} | {peak:,.0f} |" for name, (s, cpu, peak) in steps.items()]


def _seconds(measured: dict[str, Any]) -> float:
    """How long all steps but the import took."""
    return sum(seconds for name, (seconds, _, _) in measured["steps"].items() if not name.startswith("import"))


def _verdict(met: bool) -> str:
    return "met" if met else "missed"


def report() -> str:
    """Measure and return both sections."""
    with tempfile.TemporaryDirectory() as scratch:
        make_runs(Path(scratch), RUNS)
        loaded = sorted((_alone("load", Path(scratch) / "runs") for _ in range(REPEATS)), key=_seconds)[REPEATS // 2]
        written = _alone("events", Path(scratch) / "large")
    peak = max(peak for _, _, peak in written["steps"].values())
    lines = [
        f"## {RUNS:,} runs into a table",
        "",
        f"{loaded['rows']:,} folders of runs, {len(METHODS)} methods, 20 experiments, 5 swept values: what "
        "`ammeter table` and `ammeter compare` do before they print (tests/bench/records.py).",
        "",
        *_table(loaded["steps"]),
        "",
        f"Median of {REPEATS}. Without the import: {_seconds(loaded):.2f} s (target: under {LOAD_S:.0f} s, "
        f"{_verdict(_seconds(loaded) < LOAD_S)}).",
        "",
        f"## {EVENTS / 1e6:.0f} million events",
        "",
        f"SplitFed V1 on 120 devices in timing mode: {written['rows']:,} rows, a folder of "
        f"{written['folder_mb']:.0f} MB (tests/bench/records.py). Peak memory is the whole process's, libraries and "
        "mapped files included.",
        "",
        *_table(written["steps"]),
        "",
        f"At least {EVENTS:,} rows: {_verdict(written['rows'] >= EVENTS)}. "
        f"Peak: {peak:,.0f} MB (target: under {PEAK_MB:,} MB, {_verdict(peak < PEAK_MB)}).",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    if len(sys.argv) == 1:
        print(report())
    else:
        print(json.dumps({"load": load, "events": events}[sys.argv[1]](Path(sys.argv[2]))))

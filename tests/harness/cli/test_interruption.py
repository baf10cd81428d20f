"""kill -9 in the middle of a sweep: what is complete is kept, the rest is made anew, and nobody can tell afterwards."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from small_runs import write_tiny

from harness import record
from harness.cli import main as command

SEED = 20240611
RUNS = 6


def _experiment(folder: Path) -> Path:
    """Six runs of about a quarter of a second each: two methods really trained at three learning rates."""
    return write_tiny(
        folder,
        name="sweep",
        mode="learn",
        methods=["fedavg", {"name": "splitfed_v1", "split_point": 2}],
        training={"rounds": 3, "batch_size": 16},
        sweep={"training.optimizer.lr": [0.01, 0.02, 0.03]},
    )


def _states(runs: Path) -> dict[str, tuple[str, int]]:
    """State and time of the status of every run there is; a status is written whole, so it can always be read."""
    found = {}
    for status in (runs / "sweep").glob("*/status"):
        found[status.parent.name] = (json.loads(status.read_text())["state"], status.stat().st_mtime_ns)
    return found


def _complete(runs: Path) -> dict[str, int]:
    return {name: time for name, (state, time) in _states(runs).items() if state == "complete"}


def _start(path: Path, runs: Path) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "harness.cli.main", "run", str(path), "--no-figures", "--runs", str(runs)]
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _wait_until(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, "the sweep ended before it could be killed"
        assert time.monotonic() < end, "nothing happened for a minute"
        time.sleep(0.005)


def _assert_equal_records(one: Path, other: Path) -> None:
    """Tables, summary, partition and resolved run of two folders: equal in every bit but when they were made."""
    tables = [f"events/{table}.parquet" for table in record.TABLES] + [
        "rounds.parquet",
        "metrics.parquet",
        "idle.parquet",
    ]
    for name in tables:
        pd.testing.assert_frame_equal(pd.read_parquet(one / name), pd.read_parquet(other / name), check_exact=True)
    assert json.loads((one / "summary.json").read_text()) == json.loads((other / "summary.json").read_text())
    assert yaml.safe_load((one / "experiment.yaml").read_text()) == yaml.safe_load(
        (other / "experiment.yaml").read_text()
    )
    with np.load(one / "partition.npz") as mine, np.load(other / "partition.npz") as theirs:
        assert mine.files == theirs.files
        for name in mine.files:
            np.testing.assert_array_equal(mine[name], theirs[name])
    names = [sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) for folder in (one, other)]
    assert names[0] == names[1]


@pytest.mark.slow
def test_a_sweep_killed_again_and_again_ends_as_if_nothing_had_happened(tmp_path: Path) -> None:
    """Three times, when the sweep has begun another run, it is killed: at once, then a random moment (to 0.4 s) later.

    After every kill: what was complete is untouched and still complete, one more at most is half made. The next start
    keeps the complete ones. In the end the records equal those of a sweep that nobody disturbed.
    """
    path, runs = _experiment(tmp_path), tmp_path / "killed"
    rng = random.Random(SEED)
    half_made = 0
    for delay_s in (0.0, rng.uniform(0, 0.4), rng.uniform(0, 0.4)):
        before = _complete(runs)
        if len(before) == RUNS:  # a very fast machine
            break
        old = _states(runs)
        process = _start(path, runs)
        try:

            def begun(old: dict[str, tuple[str, int]] = old) -> bool:
                return any(found[0] == "running" and old.get(name) != found for name, found in _states(runs).items())

            _wait_until(begun, process)
            time.sleep(delay_s)
        finally:
            process.kill()
            assert process.wait(timeout=10) in (-signal.SIGKILL, 0)
        assert before.items() <= _complete(runs).items(), "a complete run was touched"
        left = [state for state, _ in _states(runs).values() if state != "complete"]
        assert len(left) <= 1
        half_made += len(left)
    assert half_made >= 1, "no kill hit a run in the middle"

    before = _complete(runs)
    assert command.main(["run", str(path), "--no-figures", "--runs", str(runs)]) == 0
    assert before.items() <= _complete(runs).items()
    assert len(_complete(runs)) == RUNS

    undisturbed = tmp_path / "undisturbed"
    assert command.main(["run", str(path), "--no-figures", "--runs", str(undisturbed)]) == 0
    assert _complete(undisturbed).keys() == _complete(runs).keys()
    for folder in (undisturbed / "sweep").iterdir():
        _assert_equal_records(runs / "sweep" / folder.name, folder)


@pytest.mark.slow
def test_an_interrupted_process_says_so_in_one_line(tmp_path: Path) -> None:
    """SIGINT, as Ctrl-C sends it, in the middle of a run: exit code 130, no traceback, status "failed: interrupted"."""
    path, runs = _experiment(tmp_path), tmp_path / "runs"
    words = [sys.executable, "-m", "harness.cli.main", "run", str(path), "--no-figures", "--runs", str(runs)]
    words += ["-s", "training.rounds=2000"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        _wait_until(lambda: any(state == "running" for state, _ in _states(runs).values()), process)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert out == ""
    assert err == "ammeter: interrupted; complete runs are kept, the same command makes the others\n"
    (status,) = (runs / "sweep").glob("*/status")
    assert json.loads(status.read_text()) == {"state": "failed", "format": 1, "reason": "interrupted"}

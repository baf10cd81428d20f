"""Several runs at a time: the same folders as one after the other, and nobody is left behind."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from small_runs import tiny, write_tiny

from harness import experiment
from harness.cli import main as command
from harness.cli.jobs import default_jobs

pytestmark = pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="runs beside each other need fork()"
)

SWEEP = {
    "name": "sweep",
    "methods": ["fedavg", {"name": "splitfed_v1", "split_point": 1}],
    "sweep": {"training.batch_size": [8, 16], "methods.*.split_point": [1, 2]},
}
DIFFERENT = 6  # of eight points: fedavg has no cut, its runs of both are the same


def _run(path: Path, *words: str) -> int:
    return command.main(["run", str(path), "--no-figures", *words])


def _events(folder: Path) -> dict[str, bytes]:
    return {run.name: (run / "events" / "compute.parquet").read_bytes() for run in (folder / "sweep").iterdir()}


def test_two_at_a_time_make_the_same_runs_as_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_tiny(tmp_path, **SWEEP)
    assert _run(path, "--jobs", "1", "--runs", str(tmp_path / "one")) == 0
    alone = capsys.readouterr()
    assert _run(path, "--jobs", "2", "--runs", str(tmp_path / "two")) == 0
    beside = capsys.readouterr()
    assert beside.out == alone.out
    assert len(_events(tmp_path / "one")) == DIFFERENT
    assert _events(tmp_path / "two") == _events(tmp_path / "one")
    assert beside.err.count("seed 1") == DIFFERENT


def test_what_is_complete_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_tiny(tmp_path, **SWEEP)
    assert _run(path, "--jobs", "2", "--runs", str(tmp_path)) == 0
    before = {status: status.stat().st_mtime_ns for status in (tmp_path / "sweep").glob("*/status")}
    capsys.readouterr()
    assert _run(path, "--jobs", "2", "--runs", str(tmp_path)) == 0
    assert capsys.readouterr().err.count(": kept") == DIFFERENT
    assert {status: status.stat().st_mtime_ns for status in before} == before


def test_the_first_error_is_said_and_complete_runs_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One of three does not fit its device's memory."""
    small = tmp_path / "small.yaml"
    small.write_text(json.dumps(_board(memory_bytes=30_000_000)))
    data = {
        **SWEEP,
        "methods": ["fedavg"],
        "sweep": {"testbed.devices.0.profile": ["rpi-4-4g", "rpi-5-8g", str(small)]},
    }
    data["task"] = {**tiny()["task"], "model": "resnet-18"}
    path = write_tiny(tmp_path, **data)
    assert _run(path, "--jobs", "2", "--runs", str(tmp_path)) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("ammeter: device-")
    assert "use a smaller batch" in said
    states = [json.loads(status.read_text())["state"] for status in (tmp_path / "sweep").glob("*/status")]
    assert "complete" in states


def _board(memory_bytes: int) -> dict[str, Any]:
    def figure(value: float) -> dict[str, Any]:
        return {"value": value, "status": "measured", "source": "here"}

    return {
        "id": "small",
        "title": "Small",
        "processor": "cpu",
        "figures": {"cores": figure(1), "memory_bytes": figure(memory_bytes), "flops_per_s": figure(1e9)},
    }


def test_jobs_below_one_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(write_tiny(tmp_path), "--jobs", "0") == 2
    assert "--jobs 0" in capsys.readouterr().err


def test_timing_uses_the_cores_and_training_has_them_to_itself() -> None:
    def jobs(mode: str) -> int:
        return default_jobs(experiment.runs(experiment.parse(tiny(mode=mode))))

    assert jobs("timing") == len(os.sched_getaffinity(0))
    assert jobs("learn") == 1


LONG = {
    "name": "long",
    "methods": ["fedavg"],
    "training": {"rounds": 4000, "batch_size": 1},
    "sweep": {"training.optimizer.lr": [0.01, 0.02, 0.03]},
}


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_sweep_leaves_no_process_behind(tmp_path: Path, stop: signal.Signals) -> None:
    path = write_tiny(tmp_path, **LONG)
    words = [sys.executable, "-m", "harness.cli.main", "run", str(path), "--jobs", "2", "--no-figures"]
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen([*words, "--runs", str(tmp_path)], stdout=subprocess.DEVNULL, stderr=said)
    try:
        _until(lambda: len(list((tmp_path / "long").glob("*/status"))) == 2 if (tmp_path / "long").exists() else False)
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) >= 2
        process.send_signal(stop)
        code = process.wait(timeout=30)
        _until(lambda: not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children))
    finally:
        process.kill()
        process.wait()
    assert code == (130 if stop is signal.SIGINT else -signal.SIGKILL)
    if stop is signal.SIGINT:
        assert (tmp_path / "said").read_text().splitlines()[-1].startswith("ammeter: interrupted")


def _until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "nothing happened for a minute"
        time.sleep(0.01)

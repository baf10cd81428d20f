"""The same seed gives the same event log, byte for byte, in another process and under another hash seed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

SCRIPT = """
import hashlib, json, sys
from harness import experiment
from harness.record import Recorder
from harness.run import execute

def digest(method, mode, seed, jitter, devices=None):
    data = {
        "name": "determinism", "mode": mode, "seeds": [seed], "methods": [method],
        "task": {"data": "digits", "model": "vgg-5", "partition": {"samples": 96}, "test_samples": 8},
        "training": {"rounds": 2, "batch_size": 16},
        "testbed": {
            "name": "virtual", "compute_jitter": jitter,
            "network": {"up_bps": 4e6, "down_bps": 8e6, "latency_s": 0.002, "jitter_s": 0.001},
            "devices": [{"profile": "rpi-4-4g", "count": 2}, {"profile": "rpi-5-8g", "count": 1}],
            "server": {"profile": "server-cpu", "network": {"up_bps": 1e7, "down_bps": 1e7}},
            "faults": [{"node": "device-1", "at_s": 1.0, "rejoin_s": 1.5}],
        },
    }
    if devices is not None:
        data["task"] = {"data": "fashion_mnist", "model": "vgg-5", "partition": {"min_samples": 1}}
        data["testbed"]["devices"][0]["count"] = devices
        data["testbed"]["faults"][0]["node"] = "device-0001"
    (spec,) = experiment.runs(experiment.parse(data))
    recorder = Recorder()
    outcome = execute(spec, recorder)
    hashed = hashlib.sha256(json.dumps(recorder.names).encode())
    for array in recorder.arrays().values():
        hashed.update(array.tobytes())
    hashed.update(repr(outcome.end_s).encode())
    return hashed.hexdigest()

print(json.dumps([digest(*case) for case in json.loads(sys.argv[1])]))
"""

CASES = [
    ("splitfed_v2", "timing", 1, 0.1),
    ("splitfed_v2", "timing", 2, 0.1),
    ("splitfed_v2", "timing", 1, 0.2),
    ("fedavg", "learn", 1, 0.0),
    ("fedavg", "timing", 1, 0.0),
    ("fedavg", "timing", 1, 0.1, 2000),
]


def started(hash_seed: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, json.dumps(CASES)],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def digests() -> list[list[str]]:
    """Of every case, from two processes."""
    processes = [started(hash_seed) for hash_seed in ("0", "4242")]
    found = []
    try:
        for process in processes:
            out, err = process.communicate(timeout=60)
            assert process.returncode == 0, err[-2000:]
            found.append(json.loads(out))
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return found


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes_in_every_process(digests: list[list[str]]):
    assert digests[0] == digests[1]


@pytest.mark.slow
def test_another_seed_or_jitter_gives_other_bytes(digests: list[list[str]]):
    assert len(set(digests[0][:3])) == 3


@pytest.mark.slow
def test_learning_and_timing_are_different_records_of_the_same_method(digests: list[list[str]]):
    assert digests[0][3] != digests[0][4]  # accuracies are in one of them only

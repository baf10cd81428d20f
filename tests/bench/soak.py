"""Two hundred short runs on the local testbed in one process: does anything grow?

Each run is the null method on two devices and a server: four processes, six TLS channels, a folder of keys.
"""

from __future__ import annotations

import gc
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import psutil

from harness import experiment
from harness.record import Recorder
from harness.run import execute
from testbeds._wall import ownership

RUNS = 200
WARM = 10
"""Runs before the first count: what is imported and cached by then stays."""
MOST_MIB = 10.0
"""What memory may grow by: tables of malloc settle for long."""

EXPERIMENT: dict[str, Any] = {
    "name": "soak",
    "mode": "learn",
    "seeds": [1],
    "task": {"data": "digits", "model": "vgg-5", "partition": {"samples": 48}, "test_samples": 16},
    "training": {"rounds": 1, "batch_size": 16},
    "methods": [{"name": "null", "messages": 50, "computes": 20}],
    "testbed": {
        "name": "local",
        "shaped": False,
        "preflight": False,
        "network": {},
        "devices": [{"profile": "rpi-4-4g", "count": 2}],
        "server": {"network": {}},
    },
}


@dataclass
class Held:
    """What this process holds: MiB of memory of its own, and counts."""

    memory_mib: float
    files: int
    sockets: int
    threads: int
    processes: int
    folders: int

    @classmethod
    def now(cls) -> Held:
        gc.collect()
        process = psutil.Process()
        return cls(
            process.memory_full_info().uss / 2**20,
            process.num_fds(),
            len(process.net_connections(kind="inet")),
            threading.active_count(),
            len(process.children(recursive=True)),
            sum(_is_ours(folder) for folder in Path(tempfile.gettempdir()).glob(ownership.FOLDERS)),
        )


def _is_ours(folder: Path) -> bool:
    """Other people's runs may be going on."""
    try:
        return (folder / ownership.CONTROLLER_FILE).read_text().strip() == ownership.mark()
    except OSError:
        return False


def soak(runs: int, warm: int, counted: Callable[[int, Held], None]) -> tuple[list[float], list[Held]]:
    """Make so many runs; return the seconds that each took, and what was held after the warm ones and at the end."""
    (spec,) = experiment.runs(experiment.parse(EXPERIMENT))
    took, held = [], []
    for number in range(1, runs + 1):
        began_s = time.monotonic()
        outcome = execute(spec, Recorder())
        took.append(time.monotonic() - began_s)
        assert outcome.sent == outcome.consumed
        if number in (warm, runs) or number % 50 == 0:
            counted(number, now := Held.now())
            if number in (warm, runs):
                held.append(now)
    return took, held


def report() -> str:
    """Measure and return the section."""
    took, (first, last) = soak(RUNS, WARM, lambda number, held: print(f"after {number} runs: {held}", flush=True))
    lines = [
        "## Run after run on the local testbed",
        "",
        f"{RUNS} runs of the null method, two devices and a server each, in one process (tests/bench/soak.py); "
        f"{statistics.median(took):.2f} s each (median; slowest {max(took):.2f} s).",
        "",
        f"| held | after {WARM} runs | after {RUNS} runs | target |",
        "|---|---|---|---|",
    ]
    for field in fields(Held):
        a, b = getattr(first, field.name), getattr(last, field.name)
        most = MOST_MIB if field.name == "memory_mib" else 0
        verdict = f"at most {most:g} more ({'met' if b - a <= most else 'missed'})"
        shown = (f"{a:.1f}", f"{b:.1f}") if isinstance(a, float) else (str(a), str(b))
        lines.append(f"| {field.name.replace('_', ' ')} | {shown[0]} | {shown[1]} | {verdict} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    print(report())

"""Scale: whole jobs on the virtual clock, from the command to the written run, and how they grow with the devices."""

from __future__ import annotations

import collections
import cProfile
import os
import pstats
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from harness import experiment
from harness.record import Recorder
from harness.run import execute
from plots import style

DEVICES = (10, 100, 1_000, 10_000, 100_000)
ROUNDS = 10
CURVE = Path(__file__).parents[2] / "docs" / "images" / "scale-devices.png"


class Job(NamedTuple):
    """What one `ammeter run` took, in a process of its own."""

    seconds: float
    peak_bytes: int


def federated(devices: int, rounds: int) -> dict[str, Any]:
    """FedAvg, one mini-batch per device and round."""
    return {
        "name": f"fedavg-{devices}",
        "mode": "timing",
        "methods": ["fedavg"],
        "task": {"data": "ag_news", "model": "text-transformer-6", "partition": {"kind": "iid", "min_samples": 1}},
        "training": {"rounds": rounds, "local_steps": 1, "batch_size": 8},
        "testbed": _testbed(devices),
    }


def split(rounds: int, steps: int) -> dict[str, Any]:
    """SplitFed V1 on 120 devices."""
    return {
        "name": "splitfed",
        "mode": "timing",
        "methods": [{"name": "splitfed_v1", "split_point": 1}],
        "task": {"data": "cifar10", "model": "vgg-5", "partition": {"kind": "iid"}},
        "training": {"rounds": rounds, "local_steps": steps, "batch_size": 32},
        "testbed": _testbed(120),
    }


def _testbed(devices: int) -> dict[str, Any]:
    return {
        "name": "virtual",
        "devices": [
            {"profile": "rpi-4-4g", "count": devices // 2},
            {"profile": "jetson-nano-4g/10w", "count": devices - devices // 2},
        ],
        "network": "preset-fedcomm-wifi",
        "server": {"profile": "server-gpu", "network": "eth-1g"},
    }


def job(source: dict[str, Any] | str, *words: str) -> Job:
    """Run an experiment with the command, start-up and records included, in a folder that is deleted afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        name = source if isinstance(source, str) else str(Path(folder) / "job.yaml")
        if not isinstance(source, str):
            Path(name).write_text(yaml.safe_dump(source))
        words = ("-m", "harness.cli.main", "run", name, "--runs", folder, "--figures", f"{folder}/figures", *words)
        began = time.perf_counter()
        child = os.posix_spawn(
            sys.executable,
            [sys.executable, *words],
            dict(os.environ),
            file_actions=[(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_WRONLY, 0) for fd in (1, 2)],
        )
        _, status, usage = os.wait4(child, 0)
        if status:
            raise RuntimeError(f"{name}: exit status {os.waitstatus_to_exitcode(status)}")
        return Job(time.perf_counter() - began, usage.ru_maxrss * 1024)


def shares(iterations: int = 24_000) -> list[tuple[str, float, float]]:
    """Return (module, share of the profiled time, calls per iteration) of the SplitFed run, dearest first."""
    (spec,) = experiment.runs(experiment.parse(split(iterations // 12_000, 100)))
    profile = cProfile.Profile()
    recorder = Recorder()
    profile.enable()
    execute(spec, recorder)
    profile.disable()
    spent: collections.Counter[str] = collections.Counter()
    calls: collections.Counter[str] = collections.Counter()
    root = str(Path(__file__).parents[2]) + os.sep
    for (file, _, _), (_, count, own, _, _) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        module = file.removeprefix(root) if file.startswith(root) else "built-in functions and libraries"
        spent[module] += own  # type: ignore[assignment]
        calls[module] += count
    whole = sum(spent.values())
    return [(module, own / whole, calls[module] / iterations) for module, own in spent.most_common(10)]


def draw(taken: dict[int, Job]) -> None:
    """Draw time and peak memory of a job against its number of devices."""
    figure = style.figure(style.PAGE_IN, 2.25, "")
    panels = (
        ("Whole job", "seconds", [took.seconds for took in taken.values()]),
        ("Peak memory", "GB", [took.peak_bytes / 1e9 for took in taken.values()]),
    )
    for axes, (title, unit, values) in zip(figure.subplots(1, 2), panels, strict=True):
        axes.loglog(list(taken), values, marker="o")
        axes.set(title=title, ylabel=unit, xlabel="Devices")
    figure.savefig(CURVE, dpi=150)


def report() -> str:
    """Measure and return the section."""
    rounds = 100
    iterations = 120 * rounds * 100
    whole = job(split(rounds, 100), "--no-figures")
    parts = shares()
    lines = [
        "## Scale",
        "",
        "Whole jobs (tests/bench/scale.py): `ammeter run` in a process of its own, from its start to the written run,",
        "idle time attributed, Parquet written; peak resident memory of the process.",
        "",
        f"SplitFed V1, timing mode, 120 devices x {rounds} rounds x 100 batches = {iterations:,} split iterations: "
        f"**{whole.seconds:.1f} s,",
        f"{whole.peak_bytes / 1e9:.2f} GB** ({whole.seconds / iterations * 1e6:.1f} us per iteration, all in). "
        "Targets: 60 s and 1.5 GB.",
        "",
        f"What stops it from 15 s: {iterations:,} iterations in 15 s are {15e6 / iterations:.1f} us each, and an "
        f"iteration makes {sum(calls for _, _, calls in parts):.0f}",
        "Python and built-in calls, most of them short; no part of it is dear by itself. Where a profiled run spends",
        "its time (profiling makes calls dearer than they are):",
        "",
        "| part | share | calls per iteration |",
        "|---|---|---|",
        *(f"| {module} | {share:.0%} | {calls:.0f} |" for module, share, calls in parts),
        "",
        f"FedAvg, timing mode, {ROUNDS} rounds, one mini-batch per device and round:",
        "",
        "| devices | whole job, s | peak memory, GB | beyond the smallest: us per device and round | kB per device |",
        "|---|---|---|---|---|",
    ]
    taken = {devices: job(federated(devices, ROUNDS), "--no-figures") for devices in DEVICES}
    base = taken[DEVICES[0]]
    for devices, took in taken.items():
        more = devices - DEVICES[0]
        per = "", ""
        if more:
            per = (
                f"{(took.seconds - base.seconds) / more / ROUNDS * 1e6:,.0f}",
                f"{(took.peak_bytes - base.peak_bytes) / more / 1e3:,.0f}",
            )
        lines.append(f"| {devices:,} | {took.seconds:.1f} | {took.peak_bytes / 1e9:.2f} | {per[0]} | {per[1]} |")
    draw(taken)
    lines += [
        "",
        "Target: 10,000 devices in 60 s and 2 GB.",
        "",
        f"![Time and memory over devices](images/{CURVE.name})",
        "",
    ]
    ampere = job("ampere-scale")
    lines += [
        f"`ammeter run ampere-scale`, all of it, figures included: **{ampere.seconds:.0f} s**. Target: 120 s.",
        "",
    ]
    return "\n".join(lines)

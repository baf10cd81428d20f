"""What the real testbeds cost, and how exact they are: overheads, quotas, sixteen containers, records.

`python -m tests.bench.real` measures this part alone. The docker lines need an engine and root.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from harness import experiment
from harness.errors import AmmeterError
from harness.record import Recorder
from harness.run import execute
from harness.testbed import Outcome

MESSAGES = COMPUTES = 2000
SHARES = (0.10, 0.25, 0.50)
CONTAINERS = 16
MODEL = "mobilenet-v3-small"
"""Of the quotas: its steps are long enough to be throttled."""
REPEATS = 7


def _spec(testbed: dict[str, Any], method: Any, model: str = "vgg-5", **training: Any) -> experiment.RunSpec:
    data = {
        "name": "bench",
        "mode": "learn",
        "task": {"data": "digits", "model": model, "partition": {"kind": "iid"}, "test_samples": 100},
        "training": {"rounds": 1, "batch_size": 16, **training},
        "methods": [method],
        "testbed": testbed,
    }
    return experiment.runs(experiment.parse(data))[0]


def _run(testbed: dict[str, Any], method: Any, **more: Any) -> tuple[Outcome, Recorder, float]:
    recorder = Recorder()
    began_s = time.monotonic()
    outcome = execute(_spec(testbed, method, **more), recorder)
    return outcome, recorder, time.monotonic() - began_s


_FREE = {"devices": [{"profile": "rpi-5-8g"}], "network": {}, "server": {"profile": "rpi-5-8g", "network": {}}}
_TESTBEDS: dict[str, dict[str, Any]] = {
    "virtual": {"name": "virtual", **_FREE},
    "local": {"name": "local", "compute": "native", "shaped": False, "preflight": False, **_FREE},
    "docker": {"name": "docker", "compute": "native", "shaped": False, "preflight": False, **_FREE},
}


# ---- overheads --------------------------------------------------------------------------------------------------


def _overheads() -> str:
    rows = []
    for name, testbed in _TESTBEDS.items():
        try:
            per = [_null(testbed, messages, computes) for messages, computes in ((MESSAGES, 0), (0, COMPUTES))]
        except AmmeterError as error:
            rows.append(f"| {name} | not here: {str(error).splitlines()[0]} | |")
            continue
        clock = " (of the host: its clock is simulated)" if name == "virtual" else ""
        rows.append(f"| {name} | {per[0] / 2 * 1e6:,.0f}{clock} | {per[1] * 1e6:,.0f} |")
    return "\n".join(
        [
            f"The null method, a device and the server: {MESSAGES:,} empty messages each way in turn, and {COMPUTES:,}",
            "computations of nothing (methods/null.py): what a testbed itself costs, mutual TLS and records included.",
            "",
            "| testbed | us per message | us per computation |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )


def _null(testbed: dict[str, Any], messages: int, computes: int) -> float:
    """Return seconds per round trip or computation."""
    if testbed["name"] == "virtual":  # so cheap that its start would be all there is to see
        few, many = ({"name": "null", "messages": messages * k, "computes": computes * k} for k in (1, 20))
        return (_run(testbed, many)[2] - _run(testbed, few)[2]) / (19 * (messages or computes))
    outcome, _, _ = _run(testbed, {"name": "null", "messages": messages, "computes": computes})
    return outcome.end_s / (messages or computes)


# ---- quotas -----------------------------------------------------------------------------------------------------


def _quotas() -> str:
    host_s = _host_step_s()
    rows = []
    for share in SHARES:
        outcome, recorder, _ = _run(_quota(host_s, share), "fedavg", model=MODEL, local_steps=40)
        steps = _steps(recorder)
        target_s = outcome.notes["throttles"]["nodes"]["device-0"]["calibration"]["target_s"]
        cpu = outcome.notes["throttles"]["nodes"]["device-0"]["cpu"]
        error = target_s / outcome.notes["dilation"] / statistics.mean(steps) - 1
        rows.append(
            f"| {share:.0%} | {target_s * 1e3:.1f} | {statistics.mean(steps) * outcome.notes['dilation'] * 1e3:.1f} | "
            f"{error:+.1%} | {cpu['throttled']} of {cpu['periods']} |"
        )
    return "\n".join(
        [
            "One device under a calibrated quota, FedAvg on the digits, MobileNetV3-Small, 40 steps of 16 samples:",
            "throughput against the target (5 % at most).",
            "",
            "| share of a core | step to be, ms | step, ms | throughput error | periods throttled |",
            "|---|---|---|---|---|",
            *rows,
            "",
        ]
    )


def _host_step_s() -> float:
    """Return how long a step takes in an unthrottled container."""
    _, recorder, _ = _run(_TESTBEDS["docker"], "fedavg", model=MODEL, local_steps=20)
    return statistics.median(_steps(recorder))


def _steps(recorder: Recorder) -> list[float]:
    rows = recorder.arrays()["compute"]
    names = recorder.names
    return [
        float(row["end_s"] - row["start_s"])
        for row in rows
        if names[row["node"]] == "device-0" and names[row["what"]] == "step"
    ][1:]


def _quota(host_s: float, share: float) -> dict[str, Any]:
    """Return a testbed whose device gets about that share of a core."""
    from testbeds._fleet.links import NodeLink, topology
    from testbeds._wall.targets import targets

    bed = {"name": "docker", "compute": "quota", "shaped": False, "preflight": False, **_FREE}
    spec = _spec(bed, "fedavg", model=MODEL, local_steps=1)
    nodes = topology(spec.bed)  # type: ignore[arg-type]
    target = targets(spec, nodes, {"device-0": NodeLink()}, True)["device-0"].step_s
    assert target is not None
    return {**bed, "dilation": max(1.0, host_s / share / target)}


# ---- sixteen containers -----------------------------------------------------------------------------------------


def _fleet() -> str:
    bed = {
        "name": "docker",
        "compute": "paced",
        "dilation": 8,
        "devices": [{"profile": "rpi-4-4g", "count": CONTAINERS - 1}],
        "network": {"up_bps": 20e6, "down_bps": 20e6},
        "server": {"profile": "rpi-5-8g", "network": {}},
        "tolerance": {"step": 1.0, "rate": 1.0},
    }
    before = _leftovers()
    outcome, _, took_s = _run(bed, {"name": "null", "messages": 1, "computes": 1})
    stages = outcome.notes["stages_s"]
    findings = outcome.notes["preflight"]
    worst = max(abs(f["error"]) for f in findings if f["error"] is not None and "rate" in f["what"])
    left = _leftovers() - before
    said = ", ".join(f"{name} {seconds:.1f}" for name, seconds in stages.items())
    return "\n".join(
        [
            f"{CONTAINERS} containers (15 devices of 20 Mbit/s and a server), started, warmed up, throttled,",
            f"probed, one message each, torn down: **{took_s:.1f} s** (target 60). Stages, s since the start: {said}.",
            f"Worst rate of a link {worst:.1%} off. Left behind (containers, networks, folders, network devices): "
            f"{len(left) or 'nothing'}.",
            "",
        ]
    )


def _leftovers() -> set[str]:
    from testbeds.docker import leftovers

    links = set(os.listdir("/sys/class/net"))
    return links | {f"{thing.kind} {thing.name}" for thing in leftovers.find(all=True)}


# ---- records ----------------------------------------------------------------------------------------------------


def _records() -> str:
    ratios = []
    for _ in range(REPEATS):
        taken = []
        for recording in (True, False):
            bed = {**_TESTBEDS["local"], "recording": recording}
            outcome, _, _ = _run(bed, {"name": "splitfed_v1", "split_point": 2}, rounds=3, local_steps=100)
            taken.append(sum(figures["cpu_s"] for figures in outcome.notes["pacing"].values()))
        ratios.append(taken[0] / taken[1] - 1)
    return (
        "Records of a real run (`local`, SplitFed V1 on the digits, 300 short split iterations, unpaced: as\n"
        f"dear as it gets beside the work): {statistics.median(ratios):+.1%} of the workers' processor time (median "
        f"of {REPEATS} pairs,\n{min(ratios):+.1%} to {max(ratios):+.1%}; target 2 %).\n"
    )


def report() -> str:
    """Measure and return the text for docs/benchmarks.md."""
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            parts = ["## Real testbeds\n", _overheads(), _records()]
            try:
                from testbeds.docker.access import connect

                connect().close()
            except AmmeterError as error:
                parts.append(f"No docker here: {error}\n")
            else:
                parts += [_quotas(), _fleet()]
        finally:
            os.chdir(here)
    return "\n".join(parts)


if __name__ == "__main__":
    print(report())

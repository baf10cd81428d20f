"""A method is written once: the virtual clock and a wall clock give the same messages, bytes and bits.

The wall (tests/support/wall.py) runs one process per node over loopback TCP. A synchronous method with the same
seed must send as many messages of every kind between the same nodes, of as many payload bytes, and end with weights
that are equal bit for bit, dropout included. Only the times differ.
"""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import wall

from harness import experiment, record
from harness.errors import DeadlockError
from harness.record import Recorder
from harness.run import execute
from harness.topology import Topology
from testbeds.virtual.driver import VirtualDriver

SUPPORT = Path(__file__).parents[1] / "support"
MODEL = f"{SUPPORT / 'dropout_net.py'}:build"
DEVICES = 2
TIMEOUT_S = 20.0
"""Of one run, so that a hang is a failure; each takes a second at most."""

METHODS: dict[str, Any] = {
    "fedavg": "fedavg",
    "sl": {"name": "sl", "split_point": 1},
    "splitfed_v1": {"name": "splitfed_v1", "split_point": 2},
    "ampere": {"name": "ampere", "split_point": 1, "server_epochs": 1},
    "ampere, half precision, on disk": {
        "name": "ampere",
        "split_point": 1,
        "server_epochs": 1,
        "activation_dtype": "float16",
        "store": "disk",
    },
}


def job(method: Any) -> dict[str, Any]:
    """An experiment of one run: unequal devices, few samples, two rounds."""
    return {
        "name": "contract",
        "mode": "learn",
        "seeds": [3],
        "task": {
            "data": "digits",
            "model": MODEL,
            "partition": {"kind": "dirichlet", "alpha": 1.0, "samples": 60},
            "test_samples": 8,
        },
        "training": {"rounds": 2, "batch_size": 16, "optimizer": {"lr": 0.05}},
        "methods": [copy.deepcopy(method)],
        "testbed": {
            "name": "virtual",
            "devices": [{"profile": "rpi-4-4g"}, {"profile": "jetson-nano-4g/5w"}],
            "network": {"up_bps": 1e6, "down_bps": 3e6, "latency_s": 0.003},
            "framing": "none",
        },
    }


def on_virtual(job: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, wall.Report]:
    """Run a job on the virtual clock and report of it as the wall does."""
    (spec,) = experiment.runs(experiment.parse(job))
    recorder = Recorder()
    reports = {name: wall.Report() for name in Topology.numbered(DEVICES).names}

    def evaluate(_: VirtualDriver, node: Any, label: str, __: Any, states: tuple[Any, ...], round_index: int) -> None:
        reports[node.name].evaluated.append((label, round_index, wall.digest(states)))

    with monkeypatch.context() as patched:
        patched.setattr(VirtualDriver, "evaluate", evaluate)
        execute(spec, recorder)
    names = recorder.names
    for row in sorted(recorder.arrays()["transfer"], key=lambda row: row["serial"]):
        reports[names[row["src"]]].posted.append(
            (names[row["dst"]], names[row["tag"]], int(row["payload_bytes"]), int(row["status"]))
        )
    return reports


@pytest.fixture(scope="module")
def on_wall() -> dict[str, dict[str, wall.Report]]:
    """Every method on one set of processes: starting them costs more than all they do."""
    played = wall.play([job(method) for method in METHODS.values()], Topology.numbered(DEVICES), "server", TIMEOUT_S)
    return dict(zip(METHODS, played, strict=True))


def messages(reports: dict[str, wall.Report]) -> Counter[tuple[str, str, str]]:
    return Counter((src, dst, tag) for src, report in reports.items() for dst, tag, _, _ in report.posted)


def payload_bytes(reports: dict[str, wall.Report]) -> Counter[tuple[str, str, str]]:
    total: Counter[tuple[str, str, str]] = Counter()
    for src, report in reports.items():
        for dst, tag, size, _ in report.posted:
            total[src, dst, tag] += size
    return total


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_the_same_on_both_clocks(
    name: str, on_wall: dict[str, dict[str, wall.Report]], monkeypatch: pytest.MonkeyPatch
):
    virtual, real = on_virtual(job(METHODS[name]), monkeypatch), on_wall[name]
    assert messages(real) == messages(virtual)
    assert payload_bytes(real) == payload_bytes(virtual)
    assert real["server"].evaluated == virtual["server"].evaluated
    assert len(real["server"].evaluated) >= 2
    # a device's order of posts is its own program's, so it is the same, message by message
    for node in ("device-0", "device-1"):
        assert real[node].posted == virtual[node].posted
    statuses = {status for report in real.values() for _, _, _, status in report.posted}
    assert statuses == {record.DELIVERED}
    assert [report.unread for report in real.values()] == [0] * (DEVICES + 1)


@pytest.mark.slow
def test_the_comparison_can_fail(on_wall: dict[str, dict[str, wall.Report]], monkeypatch: pytest.MonkeyPatch):
    """Another seed gives other bits and the same number of messages."""
    other = {**job(METHODS["fedavg"]), "seeds": [4]}
    virtual = on_virtual(other, monkeypatch)
    assert messages(virtual) == messages(on_wall["fedavg"])
    assert virtual["server"].evaluated != on_wall["fedavg"]["server"].evaluated


@pytest.mark.slow
def test_a_node_that_fails_is_named_and_leaves_nobody_waiting():
    broken = job({"name": "fedavg"})
    broken["task"]["data"] = "cifar10"  # its files are not there
    with pytest.raises(wall.WallError, match=r"(device|server).*(DataError|ConfigError)"):
        wall.play([broken], Topology.numbered(1), "server", TIMEOUT_S)


@pytest.mark.slow
def test_a_run_that_hangs_is_ended_and_its_node_is_named(monkeypatch: pytest.MonkeyPatch):
    hanging = job(str(SUPPORT / "never_ends.py"))
    with pytest.raises(DeadlockError, match="server waits for 'never'"):
        on_virtual(hanging, monkeypatch)
    with pytest.raises(wall.WallError, match=r"^server: no 'over' within 1 s"):
        wall.play([hanging], Topology.numbered(DEVICES), "server", 1.0)


def test_a_digest_depends_on_every_bit():
    weights = torch.ones(4)
    before = wall.digest({"w": weights})
    assert wall.digest({"w": weights.clone()}) == before
    weights.view(torch.int32)[3] ^= 1
    assert wall.digest({"w": weights}) != before
    assert wall.digest({"w": torch.ones(2, 2)}) != before

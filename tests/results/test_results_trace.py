"""The exported timeline: valid JSON of the Trace Event Format, whose spans and flows are the records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bench_nodes import burn, letter
from small_runs import benched, record_all, resolved, tiny

from harness.node import Node
from results import trace
from results.store import Run, Store

Events = list[dict[str, Any]]


def _exported(run: Run, path: Path) -> Events:
    trace.export(run, path)
    data = json.loads(path.read_text())
    assert data["displayTimeUnit"] in ("ms", "ns")
    return data["traceEvents"]


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """SplitFed V1 with two devices, priced."""
    methods = [{"name": "splitfed_v1", "split_point": 2}]
    (run,) = record_all(tmp_path_factory.mktemp("runs"), tiny(methods=methods))
    return run


@pytest.fixture
def mixed(tmp_path: Path) -> Run:
    """A run by hand with a control message, an undelivered one, a phase, a crash and a return."""

    async def device(node: Node) -> None:
        if node.incarnation:
            return
        await node.compute(burn, 1)
        await node.send("server", "go", letter(100), lane="control")
        await node.recv("never")

    async def server(node: Node) -> None:
        node.phase("opening")
        for _ in node.rounds(1):
            await node.recv("go")
            node.post("device-0", "reply", letter(200))
        await node.sleep(5)
        await node.send("device-0", "late", letter(100))

    machines = {"device-0": {"latency_s": 0.5}}
    faults = [(3.0, "crash", "device-0"), (4.0, "rejoin", "device-0")]
    execute = benched({"device-0": device, "server": server}, machines=machines, faults=faults)
    return Store(tmp_path / "runs").record(resolved(), "mixed", execute)


def _pids(events: Events) -> dict[int, str]:
    return {e["pid"]: e["args"]["name"] for e in events if e["ph"] == "M" and e["name"] == "process_name"}


def test_every_event_has_what_the_format_wants(learned: Run, tmp_path: Path) -> None:
    """ph and pid everywhere; X: ts, dur >= 0, tid, name; s and f: id, ts; i: a scope."""
    events = _exported(learned, tmp_path / "t.json")
    assert {e["ph"] for e in events} == {"M", "X", "s", "f", "i"}
    pids = _pids(events)
    assert sorted(pids.values()) == ["device-0", "device-1", "server"]
    for event in events:
        assert event["pid"] in pids
        if event["ph"] != "M":
            assert event["ts"] >= 0
            assert isinstance(event["tid"], int)
            assert event["name"]
        if event["ph"] == "X":
            assert event["dur"] >= 0


def test_spans_are_the_records_in_microseconds(learned: Run, tmp_path: Path) -> None:
    events = _exported(learned, tmp_path / "t.json")
    pids = _pids(events)
    for table, start, end, who in (
        ("compute", "start_s", "end_s", "node"),
        ("wait", "start_s", "end_s", "node"),
        ("transfer", "started_s", "arrived_s", "src"),
    ):
        rows = learned.table(table)
        spans = [e for e in events if e["ph"] == "X" and e["cat"] == table]
        assert len(spans) == len(rows) > 0
        expected = (rows[end] - rows[start]).groupby(rows[who].astype(str)).sum()
        for pid, name in pids.items():
            total_us = sum(e["dur"] for e in spans if e["pid"] == pid)
            assert total_us == pytest.approx(1e6 * expected.get(name, 0.0), rel=1e-9, abs=1e-6)


def test_what_is_computed_and_sent_is_named(learned: Run, tmp_path: Path) -> None:
    events = _exported(learned, tmp_path / "t.json")
    names = {category: {e["name"] for e in events if e.get("cat") == category} for category in ("compute", "transfer")}
    assert names["compute"] == set(learned.table("compute")["what"].astype(str))
    assert names["transfer"] == {"weights", "activation", "gradient", "update"}
    (example, *_) = [e for e in events if e.get("cat") == "transfer" and e["name"] == "update"]
    assert example["args"]["to"] == "server"
    assert example["args"]["payload_bytes"] > 1000


def test_every_flow_has_both_ends_and_goes_forward(learned: Run, tmp_path: Path) -> None:
    events = _exported(learned, tmp_path / "t.json")
    starts = {e["id"]: e for e in events if e["ph"] == "s"}
    ends = {e["id"]: e for e in events if e["ph"] == "f"}
    assert starts.keys() == ends.keys() == set(learned.table("transfer")["serial"])
    pids = _pids(events)
    for row in learned.table("transfer").itertuples():
        start, end = starts[row.serial], ends[row.serial]
        assert (pids[start["pid"]], pids[end["pid"]]) == (row.src, row.dst)
        assert start["ts"] <= end["ts"]
        assert (start["cat"], start["name"]) == (end["cat"], end["name"])


def test_a_flow_begins_at_the_span_of_its_message(mixed: Run, tmp_path: Path) -> None:
    """A viewer draws the arrow from the slice around it on the same thread: control messages' slices, too."""
    events = _exported(mixed, tmp_path / "t.json")
    spans = [e for e in events if e["ph"] == "X" and e["cat"] == "transfer"]
    flows = [e for e in events if e["ph"] == "s"]
    assert {e["name"] for e in flows} == {"go", "reply"}
    for flow in flows:
        around = [
            span
            for span in spans
            if (span["pid"], span["tid"]) == (flow["pid"], flow["tid"])
            and span["ts"] <= flow["ts"] <= span["ts"] + span["dur"]
        ]
        assert len(around) == 1, f"{flow['name']} begins at no slice of thread {flow['tid']}"
        assert around[0]["name"] == flow["name"]


def test_every_thread_that_sends_has_a_name(mixed: Run, tmp_path: Path) -> None:
    """device-0 has sent on the control connection, the server on the other."""
    events = _exported(mixed, tmp_path / "t.json")
    names = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    found = {e["name"]: names[e["pid"], e["tid"]] for e in events if e["ph"] == "X" and e["cat"] == "transfer"}
    assert found == {"go": "sends (control)", "reply": "sends"}


def test_what_was_not_delivered_has_no_arrow(mixed: Run, tmp_path: Path) -> None:
    events = _exported(mixed, tmp_path / "t.json")
    assert "undelivered" in set(mixed.table("transfer")["status"].astype(str))
    assert not [e for e in events if e["name"] == "late"]


def test_rounds_phases_losses_and_returns_are_instants(mixed: Run, tmp_path: Path) -> None:
    events = _exported(mixed, tmp_path / "t.json")
    instants = {e["name"]: e["ts"] for e in events if e["ph"] == "i"}
    assert instants["opening"] == 0.0
    assert instants["round 1"] == 0.0
    pids = _pids(events)
    lost = [e["ts"] for e in events if e["ph"] == "i" and pids[e["pid"]] == "device-0"]
    assert lost == [3e6, 4e6]


def test_a_loss_and_a_return_can_be_told_apart(mixed: Run, tmp_path: Path) -> None:
    """Two instants of the same name at 3 and 4 s would say the same."""
    events = _exported(mixed, tmp_path / "t.json")
    pids = _pids(events)
    names = [e["name"] for e in events if e["ph"] == "i" and pids[e["pid"]] == "device-0"]
    assert names == ["lost: device-0", "returned: device-0"]

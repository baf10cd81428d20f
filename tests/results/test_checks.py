"""Good records pass; each invariant, violated by one small edit of good records, is found and named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pytest
from bench_nodes import Bench, burn, letter
from small_runs import roles_of

from harness import record
from harness.node import Node
from harness.testbed import Outcome
from results import checks, idle


@dataclass
class Records:
    """What `violations` looks at."""

    arrays: dict[str, np.ndarray]
    idle: pd.DataFrame
    outcome: Outcome

    def violations(self, most_overhead: float = 0.0) -> list[str]:
        return checks.violations(self.arrays, self.idle, self.outcome, most_overhead)


async def _device(node: Node) -> None:
    await node.recv("weights")
    await node.compute(burn, 2)
    await node.compute(burn, 1)
    await node.send("server", "update", letter(100), round=1)


async def _server(node: Node) -> None:
    node.broadcast("weights", letter(100), round=1)
    await node.gather("update", round=1)
    await node.compute(burn, 1)


@pytest.fixture
def good() -> Records:
    """Two devices, one round, 1 s of latency: all of it in order."""
    roles = {"device-0": _device, "device-1": _device, "server": _server}
    bench = Bench(roles, {"device-0": {"latency_s": 1.0}}).run()
    arrays = {name: array.copy() for name, array in bench.recorder.arrays().items()}
    seconds = idle.attribute(arrays, bench.recorder.names, roles_of(bench), bench.outcome.end_s)
    return Records(arrays, seconds, bench.outcome)


def test_good_records_pass(good: Records) -> None:
    assert len(good.arrays["compute"]) == 5
    assert len(good.arrays["transfer"]) == 4
    assert good.violations() == []


def test_no_rows_at_all_pass() -> None:
    arrays = {table: np.empty(0, dtype=record.dtype(table)) for table in record.TABLES}
    assert checks.violations(arrays, pd.DataFrame(columns=["node", *idle.COLUMNS]), Outcome(), 0.0) == []


def _set(table: str, column: str, value: float, row: int = 0) -> Callable[[Records], None]:
    def edit(records: Records) -> None:
        records.arrays[table][column][row] = value

    return edit


def _shift(table: str, column: str, by: float, row: int = 0) -> Callable[[Records], None]:
    def edit(records: Records) -> None:
        records.arrays[table][column][row] += by

    return edit


def _drop(table: str) -> Callable[[Records], None]:
    def edit(records: Records) -> None:
        records.arrays[table] = records.arrays[table][1:]

    return edit


def _count(what: str, by: int) -> Callable[[Records], None]:
    def edit(records: Records) -> None:
        setattr(records.outcome, what, getattr(records.outcome, what) + by)

    return edit


def _move(source: str, to: str, seconds: float, row: int = 0) -> Callable[[Records], None]:
    """Blame seconds on another cause: the sum stays."""

    def edit(records: Records) -> None:
        records.idle.loc[row, source] -= seconds
        records.idle.loc[row, to] += seconds

    return edit


def _add(column: str, seconds: float, row: int = 0) -> Callable[[Records], None]:
    def edit(records: Records) -> None:
        records.idle.loc[row, column] += seconds

    return edit


NAN = float("nan")


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (_set("compute", "end_s", -1.0), "a compute interval is negative"),
        (_set("compute", "start_s", -0.001), "a compute interval is negative or outside"),
        (_set("compute", "end_s", 1e3), "a compute interval is negative or outside the run"),
        (_set("wait", "end_s", -1.0), "a wait interval is negative"),
        (_set("wait", "end_s", 1e3), "a wait interval is negative or outside the run"),
        (_shift("compute", "end_s", 2.0), "two computations of one node overlap"),
        (_set("transfer", "arrived_s", -0.5), "a message arrived before it was sent"),
        (_shift("transfer", "posted_s", 1e3), "a message arrived before it was sent"),
        (_shift("transfer", "started_s", 1e3), "a message arrived before it was sent"),
        (_set("transfer", "payload_bytes", -1), "negative bytes"),
        (_shift("transfer", "wire_bytes", -1), "fewer wire than payload bytes"),
        (_drop("transfer"), "4 messages were sent but 3 are recorded"),
        (_count("consumed", -1), "4 messages were sent but 3 consumed + 0 unread + 0 undelivered + 0 in flight are 3"),
        (_count("unread", 1), "1 unread"),
        (_count("undelivered", 1), "1 undelivered"),
        (_count("in_flight", 1), "1 in flight are 5"),
        (_count("sent", 1), "5 messages were sent but"),
        (_add("dependency", 1e-6), "device-0: compute, idle and done add up to"),
        (_add("done", -1e-6, row=2), "server: compute, idle and done add up to"),
        (_move("dependency", "overhead", 0.01), "device-0: ready but not running for 0.01 s"),
        (_move("straggler", "compute", 50.0), "device-0: a share of its time is negative"),
        (_set("compute", "end_s", NAN), "compute.end_s holds a value that is no number"),
        (_set("wait", "start_s", NAN), "wait.start_s holds a value that is no number"),
        (_set("transfer", "arrived_s", NAN), "transfer.arrived_s holds a value that is no number"),
        (_set("transfer", "arrived_s", np.inf), "transfer.arrived_s holds a value that is no number"),
        (_set("mark", "at_s", NAN), "mark.at_s holds a value that is no number"),
        (_add("dependency", NAN), "device-0: a share of its time is no number"),
        (_add("done", np.inf, row=2), "server: a share of its time is no number"),
    ],
    ids=[
        "compute-ends-first",
        "compute-before-the-run",
        "compute-after-the-run",
        "wait-ends-first",
        "wait-after-the-run",
        "overlap",
        "arrived-before-started",
        "posted-last",
        "started-last",
        "negative-bytes",
        "wire-below-payload",
        "row-lost",
        "consumed",
        "unread",
        "undelivered",
        "in-flight",
        "sent",
        "too-idle",
        "too-little-done",
        "overhead",
        "negative-share",
        "compute-nan",
        "wait-nan",
        "arrived-nan",
        "arrived-never",
        "mark-nan",
        "idle-nan",
        "idle-inf",
    ],
)
def test_one_wrong_figure_is_found(good: Records, edit: Callable[[Records], None], said: str) -> None:
    edit(good)
    found = good.violations()
    assert found, "nothing was found"
    assert any(said in sentence for sentence in found), found


def test_an_endless_run_is_found(good: Records) -> None:
    """A clock that ran to infinity makes every sum infinite or no number: such a run must not pass."""
    good.arrays["compute"]["end_s"][-1] = np.inf
    good.outcome.end_s = np.inf
    roles = {"device-0": "device", "device-1": "device", "server": "server"}
    good.idle = idle.attribute(good.arrays, list(roles), roles, np.inf)
    assert good.violations()


def test_the_order_of_rows_does_not_matter(good: Records) -> None:
    """Overlaps are found, and none invented, whatever order the rows were written in."""
    good.arrays["compute"] = good.arrays["compute"][::-1].copy()
    assert good.violations() == []
    rows = good.arrays["compute"]
    first = int(np.flatnonzero(rows["node"] == rows["node"][-1])[0])
    rows["start_s"][first] -= 1.0
    assert "two computations of one node overlap" in good.violations()


def test_a_message_that_did_not_arrive_has_no_times_to_check(good: Records) -> None:
    """An undelivered message's arrival is -1, which is no arrival before its sending."""
    row = good.arrays["transfer"][0]
    row["status"], row["arrived_s"] = record.UNDELIVERED, -1.0
    good.outcome.consumed -= 1
    good.outcome.undelivered += 1
    assert good.violations() == []


def test_rounding_of_a_long_run_is_forgiven_and_a_microsecond_is_not(good: Records) -> None:
    """A day is 86400 s, where sums of many rows are off by about 1e-9 of it; 1e-8 of it (0.9 ms) is too much."""
    day: Any = 86400.0
    good.outcome.end_s = day
    for row in range(3):
        good.idle.loc[row, "done"] += day - float(good.idle.loc[row, list(idle.COLUMNS)].sum())
    assert good.violations() == []
    good.idle.loc[1, "done"] += 1e-9 * day
    assert good.violations() == []
    good.idle.loc[1, "done"] += 1e-7 * day
    assert len(good.violations()) == 1


def test_a_wall_clock_may_have_overhead(good: Records) -> None:
    """With 1 % allowed, a hundredth of the run passes and more does not."""
    end = good.outcome.end_s
    good.idle.loc[0, "overhead"] += 0.01 * end
    good.idle.loc[0, "transfer"] -= 0.01 * end
    assert good.violations(most_overhead=0.01) == []
    good.idle.loc[0, "overhead"] += 0.001 * end
    good.idle.loc[0, "transfer"] -= 0.001 * end
    assert len(good.violations(most_overhead=0.01)) == 1


def test_every_violation_is_reported(good: Records) -> None:
    good.outcome.unread += 1
    good.arrays["transfer"]["payload_bytes"][0] = -1
    good.idle.loc[2, "done"] += 1.0
    assert len(good.violations()) == 3

"""harness/controller/collecting.py: the nodes' rows become the run's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from harness import record
from harness.controller.collecting import Counts, collect
from harness.controller.members import Bundle
from harness.errors import BrokenRecords
from harness.management.note import Note
from harness.record import DELIVERED, IN_FLIGHT, UNDELIVERED, Recorder
from harness.worker.rows import ARRIVALS, Rows


class Diary:
    """What one node writes, with numbers for names as it finds them."""

    def __init__(self, node: str, *before: str, incarnation: int = 0) -> None:
        self.node = node
        self.incarnation = incarnation
        self.rows = Rows()
        for name in before:  # so that numbers differ between nodes
            self.rows.id(name)

    def compute(self, start_s: float, end_s: float, samples: int = 8, flops: float = 100.0) -> Diary:
        ids, table = self.rows.id, self.rows.recorder.compute
        table.append(table.pack(ids(self.node), 0, ids("step"), samples, start_s, end_s, flops, 0))
        return self

    def wait(self, kind: int, start_s: float, end_s: float, cause: int) -> Diary:
        ids, table = self.rows.id, self.rows.recorder.wait
        table.append(table.pack(ids(self.node), 0, kind, ids("x"), start_s, end_s, cause))
        return self

    def sent(
        self, serial: int, dst: str, posted_s: float, arrived_s: float = -1.0, status: int = DELIVERED, size: int = 10
    ) -> Diary:
        ids, table = self.rows.id, self.rows.recorder.transfer
        started_s = posted_s + 0.01
        row = (serial, ids(self.node), ids(dst), ids("x"), 0, 0, status, 1, size, size + 1, posted_s, started_s)
        table.append(table.pack(*row, arrived_s))
        return self

    def arrived(self, serial: int, src: str, first_s: float, last_s: float) -> Diary:
        ids = self.rows.id
        self.rows.arrival(serial, ids(src), ids(self.node), ids("x"), 0, 1, 10, 11, first_s, last_s)
        return self

    def barrier(self, number: int, src: str, serial: int, arrived_s: float, last_s: float) -> Diary:
        ids, table = self.rows.id, self.rows.recorder.barrier
        table.append(table.pack(number, ids(self.node), ids(src), 1, serial, arrived_s, last_s))
        return self

    def mark(self, kind: int, at_s: float, number: int = 0) -> Diary:
        ids, table = self.rows.id, self.rows.recorder.mark
        table.append(table.pack(ids(self.node), 0, kind, ids("m"), number, at_s))
        return self

    def bundle(self, unread: int | None = 0, until_s: float | None = None, **more: Any) -> Bundle:
        """Return it as it comes home; `unread` None: it never stopped in order."""
        names, tables = self.rows.take()
        stopped = None if unread is None else Note("stopped", {"unread": unread})
        found = Bundle(self.node, self.incarnation, names, {k: bytearray(v) for k, v in tables.items()})
        found.stopped, found.until_s = stopped, until_s
        for name, value in more.items():
            setattr(found, name, value)
        return found


def collected(
    bundles: Sequence[Bundle], end_s: float, dilation: float = 1.0
) -> tuple[Counts, dict[str, Any], list[str]]:
    recorder = Recorder()
    recorder.id("somebody else")
    counts = collect(bundles, recorder, end_s, dilation)
    return counts, recorder.arrays(), recorder.names


def test_numbers_of_names_are_the_runs_whatever_each_node_called_them():
    mine = Diary("server").compute(0.0, 1.0).bundle()
    other = Diary("device-0", "a", "b").compute(1.0, 2.0).bundle()
    _, tables, names = collected([mine, other], 2.0)
    assert [(names[row["node"]], names[row["what"]]) for row in tables["compute"]] == [
        ("server", "step"),
        ("device-0", "step"),
    ]


def test_serials_are_dense_in_the_order_of_the_posts_and_causes_follow():
    device = Diary("device-0").sent(40, "server", 1.0, 1.5).wait(record.RECV, 1.0, 3.5, 7)
    server = (
        Diary("server").arrived(40, "device-0", 1.2, 1.5).sent(7, "device-0", 3.0, 3.5).sent(9, "device-0", 0.5, 0.8)
    )
    device.arrived(7, "server", 3.2, 3.5).arrived(9, "server", 0.6, 0.8)
    server.barrier(5, "device-0", 40, 1.5, 1.5).wait(record.GATHER, 0.0, 1.5, 40).wait(record.JOIN, 0.0, 1.0, 3)
    counts, tables, names = collected([device.bundle(), server.bundle()], 4.0)
    rows = tables["transfer"]
    assert rows["serial"].tolist() == [0, 1, 2]
    assert [names[row["src"]] for row in rows] == ["server", "device-0", "server"]
    assert rows["posted_s"].tolist() == [0.5, 1.0, 3.0]
    causes = {int(row["kind"]): int(row["cause"]) for row in tables["wait"]}
    assert causes == {record.RECV: 2, record.GATHER: 1, record.JOIN: 3}  # a lane's number is no serial
    assert tables["barrier"]["serial"].tolist() == [1]
    assert counts == Counts(3, 3, 0, 0, 0)


def test_a_cause_that_is_in_no_row_is_unknown():
    _, tables, _ = collected([Diary("server").wait(record.RECV, 0.0, 1.0, 99).bundle()], 2.0)
    assert tables["wait"]["cause"].tolist() == [-1]


def test_what_runs_at_the_end_is_cut_and_charged_in_part():
    diary = Diary("device-0").compute(0.0, 1.0).compute(1.0, 5.0, samples=8, flops=100.0).compute(6.0, 7.0)
    diary.wait(record.SLEEP, 1.0, 9.0, -1).wait(record.SLEEP, 9.0, 9.5, -1)
    diary.mark(record.ROUND_START, 1.0, 1).mark(record.ROUND_END, 5.0, 1).mark(record.PEAK_MEMORY, 8.0, 123)
    _, tables, _ = collected([diary.bundle()], 2.0)
    assert tables["compute"][["start_s", "end_s", "samples", "flops"]].tolist() == [
        (0.0, 1.0, 8, 100.0),
        (1.0, 2.0, 2, 25.0),
    ]
    assert tables["wait"][["start_s", "end_s"]].tolist() == [(1.0, 2.0)]
    kinds = dict(zip(tables["mark"]["kind"].tolist(), tables["mark"]["at_s"].tolist(), strict=True))
    assert kinds == {record.ROUND_START: 1.0, record.PEAK_MEMORY: 2.0}


def test_nothing_of_a_role_follows_its_own_end():
    diary = Diary("device-0").compute(0.0, 4.0, flops=100.0).mark(record.ROLE_END, 2.0)
    _, tables, _ = collected([diary.bundle()], 5.0)
    assert tables["compute"][["end_s", "flops"]].tolist() == [(2.0, 50.0)]


def test_a_timer_that_wakes_early_does_not_begin_before_the_run():
    diary = Diary("device-0").compute(-1e-5, 1.0).sent(0, "server", -1e-5, 0.5)
    server = Diary("server").arrived(0, "device-0", 0.1, 0.5)
    _, tables, _ = collected([diary.bundle(), server.bundle()], 2.0)
    assert tables["compute"]["start_s"].tolist() == [0.0]
    assert tables["transfer"]["posted_s"].tolist() == [0.0]


def test_messages_that_are_on_their_way_at_the_end_are_in_flight_and_later_ones_do_not_count():
    device = (
        Diary("device-0")
        .sent(0, "server", 1.0, 3.0)
        .sent(2, "server", 2.5, 2.8)
        .sent(4, "server", 1.5, status=IN_FLIGHT)
    )
    device.sent(6, "server", 1.6, status=UNDELIVERED)
    server = Diary("server").arrived(0, "device-0", 1.1, 3.0).arrived(2, "device-0", 2.6, 2.8)
    counts, tables, _ = collected([device.bundle(), server.bundle(unread=0)], 2.0)
    assert counts == Counts(sent=3, consumed=0, unread=0, undelivered=1, in_flight=2)
    assert tables["transfer"]["arrived_s"].tolist() == [-1.0] * 3


def test_unread_messages_are_not_consumed():
    device = Diary("device-0").sent(0, "server", 1.0, 1.1).sent(2, "server", 1.2, 1.3)
    server = Diary("server").arrived(0, "device-0", 1.0, 1.1).arrived(2, "device-0", 1.2, 1.3)
    counts, _, _ = collected([device.bundle(), server.bundle(unread=1)], 2.0)
    assert counts == Counts(2, 1, 1, 0, 0)


def test_what_only_its_receiver_knows_of_a_node_that_died_is_kept():
    """It had sent 0 home and died before it could send 2."""
    device = Diary("device-0").sent(0, "server", 1.0, status=IN_FLIGHT).bundle(unread=None, until_s=2.5)
    server = Diary("server").arrived(0, "device-0", 1.2, 1.5).arrived(2, "device-0", 2.0, 2.2).bundle()
    counts, tables, names = collected([device, server], 3.0)
    assert counts == Counts(2, 2, 0, 0, 0)
    first, second = tables["transfer"]
    assert (first["status"], first["arrived_s"], first["posted_s"]) == (DELIVERED, 1.5, 1.0)
    assert (names[second["src"]], names[second["dst"]], names[second["tag"]]) == ("device-0", "server", "x")
    assert (second["posted_s"], second["started_s"], second["arrived_s"]) == (2.0, 2.0, 2.2)
    assert (second["payload_bytes"], second["wire_bytes"], second["round"]) == (10, 11, 1)


def test_the_rows_of_a_node_that_died_end_with_it():
    device = Diary("device-0").compute(1.0, 3.0, flops=100.0).bundle(unread=None, until_s=2.0)
    _, tables, _ = collected([device, Diary("server").bundle()], 5.0)
    assert tables["compute"][["end_s", "flops"]].tolist() == [(2.0, 50.0)]


def test_two_incarnations_are_one_node_and_their_barriers_are_apart():
    first = Diary("edge-0").compute(0.0, 1.0).barrier(0, "device-0", 1, 0.5, 0.5).bundle(unread=None, until_s=1.0)
    second = Diary("edge-0", "z", incarnation=1).compute(3.0, 4.0).barrier(0, "device-0", 3, 3.5, 3.5).bundle()
    device = Diary("device-0").sent(1, "edge-0", 0.2, 0.5).sent(3, "edge-0", 3.2, 3.5).bundle()
    counts, tables, names = collected([first, second, device], 5.0)
    assert {names[row["node"]] for row in tables["compute"]} == {"edge-0"}
    assert tables["compute"]["start_s"].tolist() == [0.0, 3.0]
    assert tables["barrier"]["barrier"].tolist() == [0, 1]
    assert tables["barrier"]["serial"].tolist() == [0, 1]
    assert counts.sent == 2


def test_a_torn_last_row_is_left_out():
    device = Diary("device-0").compute(0.0, 1.0).compute(1.0, 2.0).bundle(unread=None, until_s=2.0)
    del device.tables["compute"][-3:]
    device.tables[ARRIVALS] = bytearray(b"torn")
    _, tables, _ = collected([device], 5.0)
    assert tables["compute"]["end_s"].tolist() == [1.0]


def test_a_clock_that_drifts_is_pulled_back_in_proportion():
    device = Diary("device-0").compute(1.0, 2.0).mark(record.ROLE_END, 4.0)
    _, tables, _ = collected([device.bundle(drift_s=0.8, residual_s=0.001)], 4.0, dilation=2.0)
    # 0.8 real seconds are 0.4 of the run at its end, a tenth of its length
    assert tables["compute"][["start_s", "end_s"]].tolist() == [pytest.approx((1.1, 2.2))]


def test_a_drift_below_what_can_be_told_is_none():
    device = Diary("device-0").compute(1.0, 2.0)
    _, tables, _ = collected([device.bundle(drift_s=0.001, residual_s=0.002)], 4.0)
    assert tables["compute"]["end_s"].tolist() == [2.0]


def test_what_was_not_there_stays_so_on_a_clock_that_drifts():
    device = Diary("device-0").sent(0, "server", 1.0, status=UNDELIVERED)
    _, tables, _ = collected([device.bundle(drift_s=-0.5)], 4.0)
    assert tables["transfer"]["arrived_s"].tolist() == [-1.0]


def test_two_clocks_do_not_make_a_message_arrive_before_it_was_sent():
    device = Diary("device-0").sent(0, "server", 1.0, 0.9999)
    server = Diary("server").arrived(0, "device-0", 0.9998, 0.9999)
    _, tables, _ = collected([device.bundle(), server.bundle()], 2.0)
    (row,) = tables["transfer"]
    assert row["posted_s"] <= row["started_s"] <= row["arrived_s"]


@pytest.mark.parametrize("wrong", ["nobody sent it", "nobody got it"])
def test_nodes_that_lived_to_the_end_must_agree(wrong: str):
    device, server = Diary("device-0"), Diary("server")
    if wrong == "nobody got it":
        device.sent(0, "server", 1.0, 1.1)
    else:
        server.arrived(0, "device-0", 1.0, 1.1)
    with pytest.raises(BrokenRecords, match="do not use these records"):
        collected([device.bundle(), server.bundle()], 2.0)


def test_no_rows_at_all():
    counts, tables, _ = collected([Bundle("server", 0)], 0.0)
    assert counts == Counts(0, 0, 0, 0, 0)
    assert all(len(rows) == 0 for rows in tables.values())
    assert np.array_equal(tables["wait"]["cause"], [])

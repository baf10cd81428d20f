"""testbeds/virtual/presence.py: devices that come and go, and runs that end all the same."""

from __future__ import annotations

from itertools import pairwise, takewhile
from typing import Any

import pytest
from bench_nodes import Bench, letter
from hypothesis import given
from hypothesis import strategies as st

from harness import experiment
from harness.errors import DeadlockError, PeerLost
from harness.node import Node
from harness.record import MARK_KINDS, Recorder
from harness.run import execute
from harness.topology import SERVER
from profiles.traces.availability import Availability
from testbeds.virtual.presence import Presence, changes


def first(log: Availability, offset_s: float, until_s: float) -> list[tuple[float, bool]]:
    return list(takewhile(lambda event: event[0] <= until_s, changes(log, offset_s)))


# ---- events of a log ------------------------------------------------------------------------------------------------


def test_events_by_hand():
    log = Availability("d", ((2.0, 5.0), (7.0, 8.0)), 10.0)
    early = [(0.0, False), (2.0, True), (5.0, False), (7.0, True), (8.0, False)]
    assert first(log, 0.0, 15.0) == [*early, (12.0, True), (15.0, False)]
    assert first(log, 3.0, 9.0) == [(2.0, False), (4.0, True), (5.0, False), (9.0, True)]
    assert first(log, 23.0, 9.0) == first(log, 3.0, 9.0)
    assert first(log, 5.0, 3.0) == [(0.0, False), (2.0, True), (3.0, False)]


def test_a_log_without_a_period_ends_for_good():
    assert list(changes(Availability("d", ((0.0, 4.0), (6.0, 8.0))), 0.0)) == [(4.0, False), (6.0, True), (8.0, False)]
    assert list(changes(Availability("d", ((0.0, 4.0),)), 9.0)) == [(0.0, False)]


def test_who_is_there_at_the_end_and_the_beginning_of_a_log_stays():
    log = Availability("d", ((0.0, 0.1), (0.2, 0.3)), 0.3)
    found = first(log, 0.0, 300.0)
    assert len(found) == 2 * 1000
    assert all(b[0] - a[0] > 0.05 for a, b in pairwise(found))


@given(st.lists(st.integers(1, 9), min_size=2, max_size=8).filter(lambda n: len(n) % 2 == 0), st.integers(0, 200))
def test_events_agree_with_the_log(lengths: list[int], offset: int):
    """At the middle of every half second the device is there if the log says so."""
    ends = [sum(lengths[: i + 1]) for i in range(len(lengths))]
    log = Availability(
        "d", tuple((float(a), float(b)) for a, b in zip(ends[::2], ends[1::2], strict=True)), ends[-1] + 1.0
    )
    events = first(log, offset / 2, 60.0)
    assert [comes for _, comes in events] == [bool(i % 2) for i in range(len(events))]
    for half in range(100):
        at = half / 2 + 0.25
        there = not len([time for time, _ in events if time <= at]) % 2
        phase = (at + offset / 2) % (ends[-1] + 1.0)
        assert there == any(a <= phase < b for a, b in log.intervals_s)


# ---- in a run -------------------------------------------------------------------------------------------------------


def bench(roles: dict[str, Any], logs: dict[str, Availability], **options: Any) -> Bench:
    made = Bench(roles, **options)
    presence = Presence(made.driver.kernel, made.driver.crash, made.driver.rejoin)
    for name, log in logs.items():
        presence.add(name, log, 0.0)
    return made


def test_a_device_works_while_it_is_there():
    """There from 2 to 5 s and from 7 to 8 s: it says so when it comes; before, and after its end, nothing is heard."""

    async def device(node: Node) -> None:
        await node.send(SERVER, "here", letter(64), incarnation=node.incarnation)
        await node.sleep(4)
        await node.send(SERVER, "still here", letter(64))

    async def server(node: Node) -> None:
        await node.sleep(9)

    made = bench({"device-0": device, SERVER: server}, {"device-0": Availability("d", ((2.0, 5.0), (7.0, 8.0)), 10.0)})
    made.run()
    assert made.arrivals(tag="here", status="delivered") == [2.0, 7.0]
    assert made.arrivals(tag="still here") == []
    marks = [(row["kind"], row["at_s"]) for row in made.rows("mark") if row["kind"] in ("lost", "returned")]
    assert marks == [("lost", 0.0), ("returned", 2.0), ("lost", 5.0), ("returned", 7.0), ("lost", 8.0)]
    assert {"lost", "returned"} <= set(MARK_KINDS)
    assert made.balanced


def test_devices_that_come_and_go_for_ever_keep_no_stuck_run_alive():
    """The server waits for what nobody sends."""

    async def server(node: Node) -> None:
        await node.recv("never")

    roles = {"device-0": lambda node: node.recv("orders"), "device-1": lambda node: node.recv("orders"), SERVER: server}
    logs = {name: Availability(name, ((1.0, 2.0), (4.0, 5.0 + i)), 10.0) for i, name in enumerate(list(roles)[:2])}
    with pytest.raises(DeadlockError, match="server waits for 'never'"):
        bench(roles, logs).run()


def test_a_run_that_sleeps_through_comings_and_goings_is_not_stuck():
    async def server(node: Node) -> None:
        await node.sleep(10_000)

    made = bench(
        {"device-0": lambda node: node.recv("orders"), SERVER: server},
        {"device-0": Availability("d", ((1.0, 2.0),), 3.0)},
    ).run()
    assert made.outcome.end_s == 10_000


# ---- in an experiment -----------------------------------------------------------------------------------------------


def outcome(availability: dict[str, Any], seed: int = 1, rounds: int = 3) -> tuple[float, list[tuple[str, float]]]:
    """End of a small run, and (kind, time) of what was lost and returned."""
    data = {
        "name": "presence",
        "mode": "timing",
        "seeds": [seed],
        "task": {"data": "digits", "model": "vgg-5", "partition": {"samples": 96}, "test_samples": 8},
        "training": {"rounds": rounds, "batch_size": 16},
        "methods": ["fedavg"],
        "testbed": {
            "devices": [{"profile": "rpi-4-4g", "count": 3}],
            "network": {"up_bps": 4e6, "down_bps": 4e6},
            "server": {"network": {}},
            "availability": availability,
        },
    }
    recorder = Recorder()
    end = execute(experiment.runs(experiment.parse(data))[0], recorder)
    marks = [tuple(row) for row in recorder.arrays()["mark"].tolist()]
    names = recorder.arrays()["mark"].dtype.names
    kind, at = names.index("kind"), names.index("at_s")
    gone = [(MARK_KINDS[row[kind]], row[at]) for row in marks if MARK_KINDS[row[kind]] in ("lost", "returned")]
    return end.end_s, gone


def test_a_round_goes_on_without_who_is_away():
    end_s, gone = outcome({"devices": {"device-1": [[0.0, 0.01]]}})
    assert gone == [("lost", 0.01)]
    assert end_s > 0.01


def test_a_run_of_which_every_device_is_away_when_a_round_begins_ends_with_peer_lost():
    away = {f"device-{i}": [[0.0, 0.01]] for i in range(3)}
    with pytest.raises(PeerLost, match="round 2 cannot begin, every device is gone"):
        outcome({"devices": away})


def test_logs_are_drawn_from_the_seed(tmp_path: Any):
    rows = "".join(f"{user},0,1,{begin / 100},{begin / 100 + 0.5}\n" for user, begin in enumerate(range(0, 50, 5)))
    file = tmp_path / "logs.csv"
    file.write_text("user,trace_start_s,trace_end_s,ready_from_s,ready_to_s\n" + rows)
    found = [_events({"file": str(file)}, seed) for seed in (1, 1, 2)]
    assert found[0] == found[1] != found[2]
    at_start = _events({"file": str(file), "name": "3", "offset": 0.0}, 1)
    assert at_start == _events({"file": str(file), "name": "3", "offset": 0.0}, 2)


def _events(availability: dict[str, Any], seed: int) -> Any:
    try:
        return outcome(availability, seed)
    except PeerLost as error:
        return str(error)

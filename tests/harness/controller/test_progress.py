"""harness/controller/progress.py: nobody moves, all of them wait for others, and that for long."""

from __future__ import annotations

import pytest

from harness.controller import progress
from harness.controller.members import Member
from harness.controller.progress import Progress
from harness.errors import DeadlockError


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def members(count: int = 2) -> list[Member]:
    found = []
    for number in range(count):
        member = Member(f"device-{number}", "device")
        member.present = member.stuck = True
        member.wants = f"device-{number} waits for 'x'"
        found.append(member)
    return found


def look(mine: Progress, nodes: list[Member], clock: Clock, times: int, every_s: float = 1.0) -> None:
    for _ in range(times):
        mine.check(nodes, 3.5)
        clock.now_s += every_s


def test_nodes_that_all_wait_for_too_long_end_the_run_and_say_for_what(clock: Clock):
    mine, nodes = Progress(5.0), members()
    look(mine, nodes, clock, 5)
    with pytest.raises(DeadlockError) as caught:
        look(mine, nodes, clock, 2)
    assert str(caught.value) == (
        "nobody has moved for 5 s, at 3.5 s of the run, and 2 roles are unfinished:\n"
        "  device-0 waits for 'x'\n  device-1 waits for 'x'"
    )


def test_one_that_moves_is_enough(clock: Clock):
    mine, nodes = Progress(5.0), members()
    for _ in range(10):
        nodes[1].moved += 1
        look(mine, nodes, clock, 4)


def test_one_that_is_at_work_is_enough_however_long_it_takes(clock: Clock):
    mine, nodes = Progress(5.0), members()
    nodes[0].stuck = False
    look(mine, nodes, clock, 100)
    nodes[0].stuck = True
    look(mine, nodes, clock, 4)
    with pytest.raises(DeadlockError):
        look(mine, nodes, clock, 2)


def test_who_is_lost_does_not_count(clock: Clock):
    mine, nodes = Progress(5.0), members()
    nodes[0].present = nodes[0].stuck = False
    with pytest.raises(DeadlockError, match="1 roles are unfinished:\n  device-1 waits"):
        look(mine, nodes, clock, 7)


def test_roles_that_are_over_wait_for_nobody(clock: Clock):
    mine, nodes = Progress(5.0), members()
    for node in nodes:
        node.over = True
    look(mine, nodes, clock, 20)


def test_who_was_deaf_begins_to_wait_anew(clock: Clock):
    mine, nodes = Progress(5.0), members()
    look(mine, nodes, clock, 4)
    clock.now_s += 100.0
    mine.forget()
    look(mine, nodes, clock, 5)


def test_of_many_only_some_are_listed(clock: Clock):
    mine, nodes = Progress(5.0), members(20)
    with pytest.raises(DeadlockError) as caught:
        look(mine, nodes, clock, 7)
    assert str(caught.value).splitlines()[-1].strip() == "and 12 more nodes"
    assert len(str(caught.value).splitlines()) == 10

"""harness/controller/alignment.py: the exchange with the shortest round trip is believed."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from harness.controller.alignment import EXCHANGES, align, best
from harness.controller.members import Member
from harness.errors import TestbedError
from harness.management.note import Note


def test_the_shortest_round_trip_is_believed_and_bounds_the_error():
    aligned = best([(10.0, 3.9, 11.0), (20.0, 13.05, 20.1), (30.0, 29.0, 40.0)])
    assert aligned.offset_s == pytest.approx(7.0)  # its 13.05 is our 20.05
    assert aligned.residual_s == pytest.approx(0.05)


@pytest.mark.parametrize("away_s", [0.0, 0.2, 0.5, 1.0])
def test_the_truth_is_within_the_residual_however_the_way_is_split(away_s: float):
    true_s, round_trip_s = 1000.0, 0.08
    exchange = (50.0, 50.0 + away_s * round_trip_s - true_s, 50.0 + round_trip_s)
    aligned = best([exchange])
    assert abs(aligned.offset_s - true_s) <= aligned.residual_s + 1e-9


class Distant(Member):
    """A node whose clock is ahead and whose answers take turns in being late."""

    AHEAD_S = 500.0

    def __init__(self) -> None:
        super().__init__("device-0", "device")
        self.asked = 0

    def send(self, kind: str, **fields: Any) -> None:
        assert kind == "ping"
        self.asked += 1
        answer = Note("pong", {"sent_s": fields["sent_s"], "here_s": time.monotonic() + self.AHEAD_S})
        asyncio.get_running_loop().call_later(0.02 if self.asked % 4 else 0.0, self.hears, answer)


def test_a_node_is_asked_until_one_answer_was_quick():
    node = Distant()
    aligned = asyncio.run(align(node, 10.0))
    assert node.asked == EXCHANGES
    assert abs(aligned.offset_s + Distant.AHEAD_S) <= aligned.residual_s


class Mute(Member):
    def send(self, kind: str, **fields: Any) -> None:
        """Say nothing."""


def test_a_node_that_does_not_answer_is_named():
    with pytest.raises(TestbedError, match=r"^device-0 has not finished reading its clock within 0\.05 s; .*start_s"):
        asyncio.run(align(Mute("device-0", "device"), 0.05))

"""One clock for all nodes: each node's distance to the controller's, corrected by the round trip.

An exchange says that the node's clock read `here_s` at some instant between `sent_s` and `back_s` of ours. Taken to be
in the middle, that is wrong by at most half the round trip; the exchange with the shortest one is believed.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from harness.controller.members import Member

EXCHANGES = 20


@dataclass(frozen=True)
class Aligned:
    """Add `offset_s` to the node's clock to get the controller's; wrong by at most `residual_s` (real seconds)."""

    offset_s: float
    residual_s: float


def best(exchanges: list[tuple[float, float, float]]) -> Aligned:
    """Return what the exchanges [(sent_s, here_s, back_s), ...] say."""
    sent_s, here_s, back_s = min(exchanges, key=lambda exchange: exchange[2] - exchange[0])
    return Aligned((sent_s + back_s) / 2 - here_s, (back_s - sent_s) / 2)


async def align(member: Member, within_s: float) -> Aligned:
    """Exchange times with a node.

    Raises:
        TestbedError: it does not answer.
    """
    found = []
    for _ in range(EXCHANGES):
        pong = member.expect("pong")
        member.send("ping", sent_s=time.monotonic())
        note = await member.until(pong, within_s, "reading its clock")
        found.append((note.get("sent_s", float), note.get("here_s", float), time.monotonic()))
    return best(found)

"""harness/controller/reception.py: workers that do not know their incarnation; the testbed knows which is the last."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from harness.controller.members import Member
from harness.controller.reception import Reception
from harness.controller.tasks import Tasks
from harness.management.connection import Connection, ConnectionGone, dial
from harness.transport import tls
from harness.worker.session import CONTROLLER

PATIENCE_S = 20.0
DEAD, LAST = {"pid": 7, "born": 100}, {"pid": 7, "born": 250}


class Deaf:
    """Losses that nobody is to tell anything."""

    async def lose(self, member: Member, why: str) -> None:
        raise AssertionError(f"{member.name} {why}")


def heard(folder: Path, *hellos: Mapping[str, int]) -> tuple[list[bool], list[str]]:
    """Return, for each hello in turn, whether who said it was let in; and the strangers."""
    keys = folder / "keys"
    tls.make(keys, [CONTROLLER, "device-0"])
    errors: list[BaseException] = []

    async def whole() -> tuple[list[bool], list[str]]:
        member = Member("device-0", "device")
        member.begin()
        tasks, losses = Tasks(errors.append), Deaf()
        everybody: Any = {"device-0": member}
        reception = Reception(
            everybody,
            losses,  # type: ignore[arg-type]
            tasks,
            dict,
            {},
            lambda name, pid, born: (name, pid, born) == ("device-0", LAST["pid"], LAST["born"]),
        )
        port = await reception.open(keys, "127.0.0.1", 0)
        found, connections = [], []
        try:
            for hello in hellos:
                connection = await dial("device-0", CONTROLLER, "127.0.0.1", port, keys, PATIENCE_S)
                connections.append(connection)
                welcome = member.expect("hello")
                connection.send("hello", **hello)
                over = asyncio.ensure_future(_over(connection))
                await asyncio.wait([welcome, over], timeout=PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
                found.append(welcome.done())
                over.cancel()
            member.connection = None  # who leaves now is not lost
        finally:
            for connection in connections:
                connection.abort("the test is over")
                await connection.wait_closed()
            await reception.close()
            await tasks.close()
        return found, reception.strangers

    result = asyncio.run(asyncio.wait_for(whole(), PATIENCE_S))
    assert errors == []
    return result


async def _over(connection: Connection) -> None:
    with pytest.raises(ConnectionGone):
        await connection.receive()


def test_the_process_that_was_started_last_is_let_in(tmp_path: Path) -> None:
    assert heard(tmp_path, {"incarnation": -1, **LAST}) == ([True], [])


def test_one_that_was_declared_lost_is_not_taken_for_the_next(tmp_path: Path) -> None:
    """Its process number may be used again: when it began tells them apart."""
    found, strangers = heard(tmp_path, {"incarnation": -1, **DEAD}, {"incarnation": -1, **LAST})
    assert found == [False, True]
    (stranger,) = strangers
    assert stranger.endswith("another device-0, or an earlier one")


def test_one_is_let_in_once(tmp_path: Path) -> None:
    found, strangers = heard(tmp_path, {"incarnation": -1, **LAST}, {"incarnation": -1, **LAST})
    assert found == [True, False]
    assert len(strangers) == 1


def test_one_that_does_not_say_who_it_is_is_not_let_in(tmp_path: Path) -> None:
    assert heard(tmp_path, {"incarnation": -1})[0] == [False]

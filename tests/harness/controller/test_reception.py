"""harness/controller/reception.py: who is let in, and a worker's failure as the error it was there."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from harness.controller.members import Member
from harness.controller.reception import MOST_STRANGERS, Reception, as_error
from harness.controller.tasks import Tasks
from harness.errors import ConfigError, DataError, TestbedError
from harness.management.connection import Connection, ConnectionGone, dial
from harness.management.note import Note
from harness.transport import tls
from harness.worker.session import CONTROLLER

PATIENCE_S = 20.0


class Accusations:
    def __init__(self) -> None:
        self.found: list[tuple[str, str]] = []

    async def lose(self, member: Member, why: str) -> None:
        self.found.append((member.name, why))
        member.lose(why)


class Scene:
    """A reception for one device, and a folder of keys that also has somebody who is no node of the run."""

    def __init__(self, keys: Path) -> None:
        self.keys = keys
        self.member = Member("device-0", "device")
        self.member.begin()
        self.losses = Accusations()
        self.gone: dict[str, str] = {}
        self.heard: list[str] = []
        self.errors: list[BaseException] = []
        self.tasks = Tasks(self.errors.append)
        self.reception = Reception(
            {"device-0": self.member},
            self.losses,  # type: ignore[arg-type]
            self.tasks,
            lambda: self.gone,
            {"role_over": lambda member, note: self.heard.append(f"{member.name} {note['at_s']}")},
        )
        self.port = 0

    async def joins(self, name: str = "device-0", incarnation: int = 0) -> Connection:
        connection = await dial(name, CONTROLLER, "127.0.0.1", self.port, self.keys, PATIENCE_S)
        connection.send("hello", incarnation=incarnation)
        return connection


def played(folder: Path, part: Callable[[Scene], Awaitable[None]]) -> None:
    async def whole() -> None:
        keys = folder / "keys"
        tls.make(keys, [CONTROLLER, "device-0", "device-9"])
        scene = Scene(keys)
        scene.port = await scene.reception.open(keys, "127.0.0.1")
        try:
            await asyncio.wait_for(part(scene), PATIENCE_S)
        finally:
            await scene.reception.close()
            await scene.tasks.close()
        assert scene.errors == []
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(whole())


async def until(true: Callable[[], Any]) -> None:
    while not true():
        await asyncio.sleep(0.01)


async def ends(connection: Connection) -> None:
    with pytest.raises(ConnectionGone):
        await connection.receive()


def test_a_node_is_heard_from_its_hello_on(tmp_path: Path):
    async def part(scene: Scene) -> None:
        hello = scene.member.expect("hello")
        connection = await scene.joins()
        await scene.member.until(hello, PATIENCE_S, "starting")
        connection.send("role_over", at_s=1.5)
        connection.send("beat", moved=7, stuck=True, wants="device-0 waits for 'x'")
        connection.send("names", names=["a"])
        connection.send("rows", table="mark", data=b"12")
        connection.send("rows", table="mark", data=b"34")
        await until(lambda: bytes(scene.member.bundle.tables.get("mark", b"")) == b"1234")
        assert scene.heard == ["device-0 1.5"]
        assert (scene.member.moved, scene.member.stuck) == (7, True)
        assert scene.member.bundle.names == ["a"]
        connection.close()
        await connection.wait_closed()

    played(tmp_path, part)


def test_who_is_no_node_of_the_run_is_sent_away(tmp_path: Path):
    async def part(scene: Scene) -> None:
        await ends(await scene.joins("device-9"))
        (stranger,) = scene.reception.strangers
        assert "'device-9' is no node of this run" in stranger

    played(tmp_path, part)


@pytest.mark.parametrize("which", ["earlier", "second"])
def test_an_earlier_incarnation_and_a_second_worker_are_sent_away(tmp_path: Path, which: str):
    async def part(scene: Scene) -> None:
        if which == "earlier":
            scene.member.begin()
        else:
            first = await scene.joins()
            await until(lambda: scene.member.connection)
        connected = scene.member.connection
        await ends(await scene.joins())
        assert scene.member.connection is connected
        assert scene.losses.found == []
        if which == "second":
            first.close()
            await first.wait_closed()

    played(tmp_path, part)


@pytest.mark.parametrize(("died", "why"), [(True, "was killed by SIGKILL"), (False, "has left (")])
def test_a_connection_that_is_lost_is_told_by_the_death_behind_it(tmp_path: Path, died: bool, why: str):
    async def part(scene: Scene) -> None:
        connection = await scene.joins()
        await until(lambda: scene.member.connection)
        connection.abort("by the test")
        if died:
            await asyncio.sleep(0.1)  # a process takes a moment to end
            scene.gone["device-0"] = "was killed by SIGKILL"
        await until(lambda: scene.losses.found)
        ((name, said),) = scene.losses.found
        assert name == "device-0"
        assert said.startswith(why)

    played(tmp_path, part)


def test_a_node_that_makes_no_sense_is_lost(tmp_path: Path):
    async def part(scene: Scene) -> None:
        connection = await scene.joins()
        connection.send("beat", moved="much")
        await until(lambda: scene.losses.found)
        assert scene.losses.found[0][1].startswith("said what makes no sense (")
        await ends(connection)

    played(tmp_path, part)


def test_strangers_are_counted_to_a_limit(tmp_path: Path):
    async def part(scene: Scene) -> None:
        connection = await scene.joins()
        for number in range(MOST_STRANGERS + 5):
            connection.send("stranger", what=f"number {number}")
        connection.send("role_over", at_s=0.0)
        await until(lambda: scene.heard)
        assert len(scene.reception.strangers) == MOST_STRANGERS
        assert scene.reception.strangers[0] == "device-0: number 0"
        connection.close()
        await connection.wait_closed()

    played(tmp_path, part)


def failed(error: str, message: str, where: str = "", traceback: str = "") -> Note:
    return Note("failed", {"error": error, "message": message, "where": where, "traceback": traceback})


def test_an_error_keeps_its_class_and_names_node_and_place_once():
    member = Member("device-0", "device")
    found = as_error(member, failed("DataError", "it is truncated", "in activity 1 of device-0"))
    assert type(found) is DataError
    assert str(found) == "device-0: it is truncated (in activity 1 of device-0)"
    found = as_error(member, failed("ConfigError", "device-0: job: no such key"))
    assert type(found) is ConfigError
    assert str(found) == "device-0: job: no such key"


@pytest.mark.parametrize("error", ["", "ValueError", "annotations", "suggestion", "Iterable"])
def test_what_is_no_error_of_ours_is_the_testbeds_with_its_traceback(error: str):
    found = as_error(Member("device-0", "device"), failed(error, "ValueError: x", "doing 'job'", "Traceback\n  line\n"))
    assert type(found) is TestbedError
    assert str(found) == "device-0: ValueError: x (doing 'job')\nTraceback\n  line"

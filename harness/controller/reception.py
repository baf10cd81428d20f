"""Where workers come in: who is who, and who is told what they say."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from harness import errors
from harness.controller.losses import Losses
from harness.controller.members import Member
from harness.controller.tasks import Tasks
from harness.errors import AmmeterError, TestbedError, TransportError
from harness.management.connection import Connection, ConnectionGone, Desk, listen
from harness.management.note import Note
from harness.worker.session import CONTROLLER

MOST_STRANGERS = 100
_BYE_S = 2.0
_LOOK_S, _DYING_LOOKS = 0.02, 50

On = Mapping[str, Callable[[Member, Note], None]]


class Reception:
    """The controller's end of all management connections.

    Args:
        gone: see harness.controller.emulator.Emulator.gone.
        on: who is told of a note of some kind; others wake who waits for them (Member.expect).
        is_worker: see harness.controller.emulator.Emulator.is_worker.

    Attributes:
        strangers: who has tried to connect here or to a node without being of this run, and how it was refused.
    """

    def __init__(
        self,
        members: Mapping[str, Member],
        losses: Losses,
        tasks: Tasks,
        gone: Callable[[], Mapping[str, str]],
        on: On,
        is_worker: Callable[[str, int, int], bool] = lambda *_: False,
    ) -> None:
        self.strangers: list[str] = []
        self._members = members
        self._losses = losses
        self._tasks = tasks
        self._gone = gone
        self._is_worker = is_worker
        self._desk: Desk | None = None
        self._connections: set[Connection] = set()
        self._on: On = {
            "names": lambda member, note: member.bundle.take(note),
            "rows": lambda member, note: member.bundle.take(note),
            "beat": Member.beats,
            "stranger": lambda member, note: self._stranger(member.name, note.get("what", str)),
            **on,
        }

    async def open(self, keys: Path, host: str, port: int = 0) -> int:
        """Listen at a port (0: any); return it.

        Raises:
            TransportError: nothing can listen there.
        """
        self._desk = await listen(
            CONTROLLER,
            keys,
            host,
            port,
            self._welcome,
            lambda address, error: self._stranger(CONTROLLER, f"{address}: {error}"),
        )
        return self._desk.port

    def _stranger(self, where: str, what: str) -> None:
        if len(self.strangers) < MOST_STRANGERS:
            self.strangers.append(f"{where}: {what}")

    def _welcome(self, connection: Connection) -> None:
        self._connections.add(connection)
        self._tasks.keep(self._listen(connection))

    async def _listen(self, connection: Connection) -> None:
        try:
            await self._attend(connection)
        finally:
            connection.abort("nobody listens any more")
            self._connections.discard(connection)

    async def _attend(self, connection: Connection) -> None:
        member = self._members.get(connection.peer)
        if member is None:
            self._stranger(CONTROLLER, f"{connection.address}: {connection.peer!r} is no node of this run")
            return
        try:
            first = await connection.receive()
            if first.kind != "hello" or not self._is_awaited(member, first) or member.connection:
                self._stranger(CONTROLLER, f"{connection.address}: another {member.name}, or an earlier one")
                return
            member.connection = connection
            self._hear(member, first)
            while member.connection is connection:
                self._hear(member, await connection.receive())
        except ConnectionGone as error:
            how = f"has left ({error})" if error.orderly else await self._death(member.name, error)
            if member.connection is connection:
                await self._losses.lose(member, how)
        except TransportError as error:
            if member.connection is connection:
                await self._losses.lose(member, f"said what makes no sense ({error})")

    def _is_awaited(self, member: Member, hello: Note) -> bool:
        """Whether it is the incarnation that was started last, as it knows itself or as the testbed knows it."""
        said = hello.get("incarnation", int)
        if said >= 0:
            return said == member.incarnation
        return self._is_worker(member.name, hello.get("pid", int), hello.get("born", int))

    async def _death(self, name: str, error: ConnectionGone) -> str:
        """Say how a node has ended whose connection has: its process may take a moment longer."""
        for _ in range(_DYING_LOOKS):
            if how := self._gone().get(name):
                return how
            await asyncio.sleep(_LOOK_S)
        return f"has left ({error})"

    def _hear(self, member: Member, note: Note) -> None:
        member.heard_s = time.monotonic()
        self._on.get(note.kind, Member.hears)(member, note)

    async def close(self) -> None:
        """Say good-bye to all workers; who does not leave in time is cut off."""
        for connection in self._connections:
            connection.send("bye")
        leaving = [asyncio.ensure_future(connection.wait_closed()) for connection in self._connections]
        try:
            if leaving:
                await asyncio.wait(leaving, timeout=_BYE_S)
        finally:
            for connection in list(self._connections):
                connection.abort("the run is over")
            if self._desk is not None:
                await self._desk.close()
            await asyncio.gather(*leaving, return_exceptions=True)


def as_error(member: Member, note: Note) -> AmmeterError:
    """Return a worker's failure as the error it was there; one that nobody raised on purpose with its traceback."""
    where, message, trace = note.get("where", str), note.get("message", str), note.get("traceback", str)
    if member.name not in message:
        message = f"{member.name}: {message}"
    if where:
        message = f"{message} ({where})"
    kind = getattr(errors, note.get("error", str), None)
    if not (isinstance(kind, type) and issubclass(kind, AmmeterError)):
        kind = TestbedError
    found: AmmeterError = kind(f"{message}\n{trace.rstrip()}" if trace else message)
    return found

"""Small helpers for the transport's tests: messages, listeners that remember, keys made once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from harness.errors import TransportError
from harness.message import HEADER_BYTES, Message, tree_bytes
from harness.transport import tls
from harness.transport.assembler import Arrival
from harness.transport.endpoint import Listener, connect, listen
from harness.transport.outgoing import Outgoing

WITHIN_S = 60.0
"""No test waits longer: a hang fails instead."""


def message(payload: Any = None, serial: int = 0, src: str = "device-0", dst: str = "server", **meta: Any) -> Message:
    made = Message(src, dst, "tag", payload, meta, "data", HEADER_BYTES + tree_bytes(payload))
    made.serial = serial
    return made


class Ends:
    """A listener called `server` and a channel to it from `device-0`, and all they were told."""

    def __init__(self) -> None:
        self.arrivals: list[Arrival] = []
        self.strangers: list[TransportError] = []
        self.incoming_closed: list[TransportError | None] = []
        self.outgoing_closed: list[TransportError | None] = []
        self.wanted = True
        self.listener: Listener
        self.channel: Outgoing

    def deliver(self, arrival: Arrival) -> bool:
        self.arrivals.append(arrival)
        return self.wanted

    async def listen(self, keys: Path | None = None, **options: Any) -> None:
        self.listener = await listen(
            "server",
            self.deliver,
            tls=None if keys is None else tls.server_context(keys, "server"),
            refused=lambda _, error: self.strangers.append(error),
            closed=lambda _, error: self.incoming_closed.append(error),
            **options,
        )

    async def connect(self, keys: Path | None = None, **options: Any) -> Outgoing:
        context = None if keys is None else tls.client_context(keys, "device-0")
        self.channel = await connect(
            "device-0",
            "server",
            "127.0.0.1",
            self.listener.port,
            tls=context,
            closed=lambda _, error: self.outgoing_closed.append(error),
            **options,
        )
        return self.channel


@contextlib.asynccontextmanager
async def ends(
    keys: Path | None = None, incoming: dict[str, Any] | None = None, outgoing: dict[str, Any] | None = None
) -> AsyncIterator[Ends]:
    """Both ends, connected; closed afterwards."""
    pair = Ends()
    await pair.listen(keys, **(incoming or {}))
    try:
        await pair.connect(keys, **(outgoing or {}))
        try:
            yield pair
        finally:
            await pair.channel.close()
    finally:
        await pair.listener.close()


def run(scenario: Callable[[], Any]) -> Any:
    """Run an asynchronous scenario; what hangs fails."""

    async def limited() -> Any:
        return await asyncio.wait_for(scenario(), WITHIN_S)

    return asyncio.run(limited())


async def until(condition: Callable[[], Any]) -> None:
    """Wait for something that happens on the other side."""
    while not condition():
        await asyncio.sleep(0.002)

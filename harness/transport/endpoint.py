"""Who may connect: the listening side of a node, and the way to one."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import Callable
from typing import Any

from harness.errors import TransportError
from harness.transport.assembler import SCRATCH_BYTES, Arrival
from harness.transport.frame import DEFAULT, Limits
from harness.transport.incoming import Incoming
from harness.transport.limiter import Delay, TokenBucket
from harness.transport.outgoing import Outgoing

HANDSHAKE_S = 10.0
_BACKLOG = 1024
_RETRY_S = 0.1


def _tune(connection: Any) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # a peer without power says nothing


class Listener:
    """Accepts the connections of a node's peers; made by `listen`.

    Attributes:
        port: where it listens.
        connections: those that are open.
    """

    def __init__(
        self,
        bound: socket.socket,
        make: Callable[[], Incoming],
        context: ssl.SSLContext | None,
        refused: Callable[[str, TransportError], None],
        handshake_s: float,
    ) -> None:
        self.port: int = bound.getsockname()[1]
        self.connections: set[Incoming] = set()
        self._socket = bound
        self._make = make
        self._tls = context
        self._refused = refused
        self._handshake_s = handshake_s
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()  # asyncio itself holds tasks weakly
        self._entering: set[socket.socket] = set()  # accepted; their task may be cancelled before it has begun
        self._keep(self._accept())

    def _keep(self, coroutine: Any) -> None:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self) -> None:
        while True:
            try:
                connection, address = await self._loop.sock_accept(self._socket)
            except OSError as error:  # too many open files, or a peer that has left already
                self._refused("a peer", TransportError(f"a connection could not be accepted: {error}"))
                await asyncio.sleep(_RETRY_S)
                continue
            self._entering.add(connection)
            self._keep(self._welcome(connection, f"{address[0]}:{address[1]}"))

    async def _welcome(self, connection: socket.socket, address: str) -> None:
        """Do the handshake; who fails it is reported and never heard."""
        made: list[Incoming] = []

        def protocol() -> Incoming:
            made.append(self._make())
            return made[0]

        self._entering.discard(connection)
        timeouts: dict[str, Any] = {} if self._tls is None else {"ssl_handshake_timeout": self._handshake_s}
        try:
            _tune(connection)
            transport, _ = await self._loop.connect_accepted_socket(protocol, connection, ssl=self._tls, **timeouts)
        except OSError as error:  # ssl.SSLError and timeouts are among them
            connection.close()
            self._refused(address, TransportError(f"the peer at {address} was refused: {error}"))
            return
        except asyncio.CancelledError:
            connection.close()
            raise
        if not transport.is_closing():
            self.connections.add(made[0])

    async def close(self) -> None:
        """Listen no more; close what is open."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for accepted in self._entering:
            accepted.close()
        self._socket.close()
        await asyncio.gather(*(connection.close() for connection in list(self.connections)))


async def listen(
    name: str,
    deliver: Callable[[Arrival], bool],
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    tls: ssl.SSLContext | None = None,
    refused: Callable[[str, TransportError], None],
    closed: Callable[[Incoming, TransportError | None], None] | None = None,
    clock: Callable[[], float] = time.monotonic,
    limits: Limits = DEFAULT,
    bucket: TokenBucket | None = None,
    handshake_s: float = HANDSHAKE_S,
) -> Listener:
    """Listen for the peers of node `name`.

    Args:
        deliver: takes each message; False: it is not wanted any more.
        port: 0: any free one, see `Listener.port`.
        tls: see harness.transport.tls.server_context.
        refused: told of strangers: their address and a sentence.
        closed: told of every connection that is over; None as error: it ended as it should.
        handshake_s: a peer that has not finished its handshake by then is refused.
        The others: see Incoming.

    Raises:
        TransportError: nothing can listen there.
    """
    try:
        bound = socket.create_server((host, port), backlog=_BACKLOG)
    except OSError as error:
        raise TransportError(f"{name}: cannot listen on {host}:{port} ({error}); choose another port") from None
    bound.setblocking(False)
    scratch = bytearray(SCRATCH_BYTES)

    def over(connection: Incoming, error: TransportError | None) -> None:
        listener.connections.discard(connection)
        if closed is not None:
            closed(connection, error)

    def make() -> Incoming:
        return Incoming(
            name,
            deliver,
            closed=over,
            check_names=tls is not None,
            clock=clock,
            limits=limits,
            bucket=bucket,
            scratch=scratch,
        )

    listener = Listener(bound, make, tls, refused, handshake_s)
    return listener


async def connect(
    src: str,
    dst: str,
    host: str,
    port: int,
    *,
    lane: str = "data",
    tls: ssl.SSLContext | None = None,
    timeout_s: float = 30.0,
    closed: Callable[[Outgoing, TransportError | None], None] | None = None,
    clock: Callable[[], float] = time.monotonic,
    limits: Limits = DEFAULT,
    bucket: TokenBucket | None = None,
    delay: Delay | None = None,
    stall_s: float | None = None,
) -> Outgoing:
    """Open the channel from `src` to `dst` on a lane; return it when the peer has said that it is `dst`.

    Args:
        tls: see harness.transport.tls.client_context; the peer's certificate must name `dst`.
        The others: see Outgoing.

    Raises:
        TransportError: nobody is there, it is somebody else, or it does not take us for `src`.
    """
    loop = asyncio.get_running_loop()
    made: list[Outgoing] = []
    told = False  # a connection that never was is not reported as closed: connect raises

    def over(channel: Outgoing, error: TransportError | None) -> None:
        if told and closed is not None:
            closed(channel, error)

    def protocol() -> Outgoing:
        options: dict[str, Any] = {"clock": clock, "limits": limits, "bucket": bucket, "delay": delay}
        made.append(Outgoing(src, dst, lane, closed=over, stall_s=stall_s, **options))
        return made[-1]

    async def attempt() -> Outgoing:
        transport, channel = await loop.create_connection(
            protocol, host, port, ssl=tls, server_hostname=dst if tls is not None else None
        )
        _tune(transport.get_extra_info("socket"))
        await channel.ready
        return channel

    try:
        channel = await asyncio.wait_for(attempt(), timeout_s)
    except TransportError:
        raise
    except (OSError, asyncio.TimeoutError) as error:
        with contextlib.suppress(IndexError):
            made[-1].abort(TransportError(f"{src}: no answer from {dst}"))
        why = str(error) or f"no answer within {timeout_s:g} s"
        raise TransportError(f"{src}: cannot reach {dst} at {host}:{port}: {why}") from None
    told = True
    if channel.over.done():
        raise TransportError(f"{src}: {dst} at {host}:{port} has closed the connection at once")
    return channel

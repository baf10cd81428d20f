"""Notes both ways over mutual TLS: in order, without acknowledgements.

A connection runs on the event loop's callbacks alone: no task, so nothing that could be collected. Each side's stream
begins with a mark, so that who dials knows that it was let in, and ends with one. Who closes sends what it has queued
and its mark, reads on and throws away what comes, and who reads the mark cuts the connection: all that was sent before
has then come. A connection that is cut without a mark was lost.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from harness.errors import TransportError
from harness.management.note import MARK, Note, Reader, pack
from harness.transport.tls import client_context, peer_names, server_context

UNSENT_BYTES = 8 * 2**20
"""`Connection.drain` waits while more than this is unsent."""
UNREAD_BYTES = 64 * 2**20
UNREAD_NOTES = 64
"""The peer is read no further while more than this lies unread."""
HANDSHAKE_S = 10.0
LINGER_S = 5.0
"""After `close`: a peer that takes nothing for so long, or does not answer the end, is cut off."""
_SLICE_BYTES = 2**18
_TURN_BYTES = 2**24
"""So much goes out before others on the event loop have their turn."""
_RETRY_S = 0.1
_BACKLOG = 1024


class ConnectionGone(TransportError):  # noqa: N818 - as harness.errors.PeerLost, an event
    """The connection is over.

    Attributes:
        orderly: one of the sides has closed it; False: it was lost, cut or broke the protocol.
    """

    def __init__(self, why: str, orderly: bool = False) -> None:
        super().__init__(why)
        self.orderly = orderly


class Connection(asyncio.Protocol):
    """One end of a connection; made by `dial` and `listen`.

    A peer's end is seen when the notes before it have been received.

    Attributes:
        name, peer: the nodes at this end and at the other, as its certificate says.
        address: host and port of the other end.
    """

    def __init__(self, name: str, address: str) -> None:
        self.name = name
        self.peer = ""
        self.address = address
        self._loop = asyncio.get_running_loop()
        self._transport: Any = None
        self._reader = Reader()
        self._unread: deque[Note] = deque()
        self._unread_bytes = 0
        self._deaf = False  # the transport reads no further
        self._queue: deque[memoryview] = deque()
        self._unsent = 0
        self._full = False  # the transport takes no more
        self._turn = False  # the pump is due on the loop
        self._closing = False
        self._linger: asyncio.TimerHandle | None = None
        self._gone: ConnectionGone | None = None
        self._news = asyncio.Event()  # a note, the peer's first mark, or the end
        self._room = asyncio.Event()  # little is unsent, or it is over
        self._over = asyncio.Event()
        self._room.set()

    # ---- for the owner

    def send(self, kind: str, /, **fields: Any) -> None:
        """Queue a note; its values may change afterwards. On a connection that is over it is dropped.

        Raises:
            TransportError: no note can carry it (see harness.management.note).
        """
        frame = pack(kind, fields)
        if self._gone is None and not self._closing:
            self._put(frame)

    async def drain(self) -> None:
        """Wait while more than UNSENT_BYTES are unsent.

        Raises:
            ConnectionGone: the connection is over.
        """
        await self._room.wait()
        self._check()

    async def receive(self) -> Note:
        """Return the next note. The notes that came before the peer's end are all returned first.

        Raises:
            ConnectionGone: there is none, and will be none.
        """
        while not self._unread:
            self._check()
            self._news.clear()
            await self._news.wait()
        note = self._unread.popleft()
        self._unread_bytes -= note.frame_bytes
        if self._deaf and len(self._unread) <= UNREAD_NOTES // 2 and self._unread_bytes <= UNREAD_BYTES // 2:
            self._listen(True)
        return note

    def close(self) -> None:
        """Send what is queued and end the connection; what comes from now on is thrown away."""
        if self._closing or self._gone is not None:
            return
        self._closing = True
        self._forget()
        self._news.set()
        self._put(MARK)
        self._room.set()
        self._listen(True)
        self._linger = self._loop.call_later(LINGER_S, self._check_linger, self._unsent)

    def abort(self, why: str) -> None:
        """Cut the connection at once, whatever is unsent or unread; `receive` and `drain` say `why` from now on."""
        self._forget()
        self._end(why, orderly=False)

    async def wait_closed(self) -> None:
        """Wait until it is over and its socket is closed. This does not close it."""
        await self._over.wait()

    # ---- for dial and listen

    async def opened(self) -> None:
        """Wait for the peer's first mark.

        Raises:
            ConnectionGone: it will not come.
        """
        while not self._reader.begun:
            if self._over.is_set() or self._transport is None:
                raise self._gone or ConnectionGone("the connection was lost during the handshake")
            self._news.clear()
            await self._news.wait()

    # ---- inside

    def _check(self) -> None:
        if self._gone is not None:
            raise ConnectionGone(str(self._gone), self._gone.orderly)
        if self._closing:
            raise ConnectionGone(self._say("the connection was closed here"), orderly=True)

    def _forget(self) -> None:
        self._unread.clear()
        self._unread_bytes = 0

    def _say(self, what: str) -> str:
        return f"{self.name}: {self.peer or 'a peer'} at {self.address}: {what}"

    def _end(self, why: str, orderly: bool) -> None:
        """It is over; wait for asyncio to say so."""
        if self._gone is not None:
            return
        if self._closing:
            why, orderly = "the connection was closed here", True
        self._gone = ConnectionGone(self._say(why), orderly)
        self._queue.clear()
        self._unsent = 0
        if self._linger is not None:
            self._linger.cancel()
        self._news.set()
        self._room.set()
        if self._transport is not None:
            self._transport.abort()

    def _check_linger(self, before: int) -> None:
        if self._gone is None and self._unsent == before:
            self._end("", orderly=True)
        elif self._gone is None:
            self._linger = self._loop.call_later(LINGER_S, self._check_linger, self._unsent)

    def _listen(self, on: bool) -> None:
        if self._gone is None and self._deaf is on:
            self._deaf = not on
            try:
                (self._transport.resume_reading if on else self._transport.pause_reading)()
            except AttributeError:  # asyncio's TLS before Python 3.11, on a connection that was lost just now
                self._deaf = False

    def _put(self, frame: bytes) -> None:
        self._queue.append(memoryview(frame))
        self._unsent += len(frame)
        if self._unsent > UNSENT_BYTES:
            self._room.clear()
        self._pump()

    def _pump(self) -> None:
        """Write slices until the transport is full, nothing is left, or others are due."""
        room = _TURN_BYTES
        while self._queue and not self._full and not self._turn:
            if room <= 0:
                self._turn = True
                self._loop.call_soon(self._again)
                return
            part = self._queue.popleft()
            if part.nbytes > _SLICE_BYTES:
                self._queue.appendleft(part[_SLICE_BYTES:])
                part = part[:_SLICE_BYTES]
            room -= part.nbytes
            self._unsent -= part.nbytes
            self._transport.write(part)
        if self._unsent <= UNSENT_BYTES:
            self._room.set()

    def _again(self) -> None:
        self._turn = False
        self._pump()

    # ---- asyncio's side

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        if self._gone is not None:
            transport.abort()
            return
        names = peer_names(transport)
        if len(names) != 1:
            self._end(f"its certificate names {len(names)} nodes, not one", orderly=False)
            return
        (self.peer,) = names
        transport.set_write_buffer_limits(high=1, low=0)  # asyncio's TLS would pause for ever at 0
        self._put(MARK)

    def data_received(self, data: bytes) -> None:
        if self._gone is not None:
            return
        try:
            notes = self._reader.feed(data)
        except TransportError as error:
            self._end(str(error), orderly=False)
            return
        if not self._closing:
            self._unread.extend(notes)
            self._unread_bytes += sum(note.frame_bytes for note in notes)
        self._news.set()
        if self._reader.ended:
            self._end("the peer has closed the connection", orderly=True)
        elif len(self._unread) > UNREAD_NOTES or self._unread_bytes > UNREAD_BYTES:
            self._listen(False)

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        self._pump()

    def connection_lost(self, exc: BaseException | None) -> None:
        middle = " in the middle of a note" if self._reader.middle else ""
        self._end(f"the connection was lost{middle}" + (f" ({exc})" if exc is not None else ""), orderly=False)
        self._over.set()
        self._news.set()


def _tune(connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # a peer without power says nothing


async def _open(
    make: Callable[..., Coroutine[Any, Any, Any]], connection: Connection, context: Any, limit_s: float, **where: Any
) -> None:
    """Do the handshake on a connected socket with one of the event loop's ways to make a transport.

    Args:
        limit_s: the caller waits no longer; asyncio's own limit for TLS must not be the shorter one.

    Raises:
        OSError: TLS failed.
        ConnectionGone: the peer did not open its stream.
    """
    _tune(where["sock"])
    await make(lambda: connection, ssl=context, ssl_handshake_timeout=limit_s + HANDSHAKE_S, **where)
    await connection.opened()


# ---- to dial ----------------------------------------------------------------------------------------------------


async def _socket(host: str, port: int) -> socket.socket:
    """Return a socket that is connected.

    Raises:
        OSError: nobody listens there.
    """
    loop = asyncio.get_running_loop()
    why = OSError("no such host")
    for family, kind, protocol, _, where in await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        connection = socket.socket(family, kind, protocol)
        try:
            connection.setblocking(False)
            await loop.sock_connect(connection, where)
            if connection.getsockname() == connection.getpeername():  # loopback can meet itself on a free port
                raise ConnectionRefusedError("nobody listens")
            return connection
        except OSError as error:
            connection.close()
            why = error
        except BaseException:
            connection.close()
            raise
    raise why


async def _reach(host: str, port: int, end_s: float) -> socket.socket:
    """Return a socket that is connected, when somebody listens.

    Raises:
        asyncio.TimeoutError: nobody did until `end_s` on the event loop's clock; it says what happened instead.
    """
    loop = asyncio.get_running_loop()
    why = "no answer"
    while (left_s := end_s - loop.time()) > 0:
        try:
            return await asyncio.wait_for(_socket(host, port), left_s)
        except (OSError, asyncio.TimeoutError) as error:
            why = str(error) or why
        await asyncio.sleep(_RETRY_S)
    raise asyncio.TimeoutError(why)


async def dial(name: str, peer: str, host: str, port: int, keys: Path, timeout_s: float) -> Connection:
    """Connect the node `name` to the node `peer`; wait up to `timeout_s` seconds until it listens and answers.

    Args:
        keys: the folder with the certificate of `name` (see harness.transport.tls.make).

    Raises:
        TransportError: nobody listens, it is somebody else, or it does not let us in.
    """
    loop = asyncio.get_running_loop()
    context = client_context(keys, name)
    end_s = loop.time() + timeout_s
    connection = Connection(name, f"{host}:{port}")
    place = f"{name}: cannot reach {peer} at {host}:{port}"
    reached: socket.socket | None = None
    try:
        reached = await _reach(host, port, end_s)
        opening = _open(loop.create_connection, connection, context, timeout_s, sock=reached, server_hostname=peer)
        await asyncio.wait_for(opening, end_s - loop.time())
    except BaseException as error:
        connection.abort("it was not opened")
        if reached is not None:
            reached.close()
        if isinstance(error, asyncio.TimeoutError):
            raise TransportError(
                f"{place} within {timeout_s:g} s: {str(error) or 'no answer'}; check that it runs and can be reached"
            ) from None
        if isinstance(error, ConnectionGone):
            raise TransportError(f"{place}: it did not let us in ({error}); give both the keys of one run") from None
        if isinstance(error, OSError):  # ssl.SSLError is one
            why = str(error) or "it has left during the handshake"
            raise TransportError(f"{place}: {why}; give both the keys of one run") from None
        raise
    return connection


# ---- to listen --------------------------------------------------------------------------------------------------


class Desk:
    """Where peers come in; made by `listen`.

    Attributes:
        port: where it listens.
    """

    def __init__(
        self,
        name: str,
        bound: socket.socket,
        context: Any,
        welcome: Callable[[Connection], None],
        refused: Callable[[str, TransportError], None],
        handshake_s: float,
    ) -> None:
        self.port: int = bound.getsockname()[1]
        self._name = name
        self._socket = bound
        self._context = context
        self._welcome = welcome
        self._refused = refused
        self._handshake_s = handshake_s
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()  # asyncio itself holds tasks weakly
        self._entering: set[socket.socket] = set()  # a task that is cancelled before it began closes nothing
        self._closed = False
        self._pause: asyncio.TimerHandle | None = None
        self._hear()

    def _tell(self, whom: Callable[..., None], *what: Any) -> None:
        """Call the owner; its mistakes are the event loop's to report, and stop nobody from coming in."""
        try:
            whom(*what)
        except Exception as error:
            self._loop.call_exception_handler({"message": f"{self._name}: after a peer came", "exception": error})

    def _refuse(self, address: str, why: object) -> None:
        self._tell(self._refused, address, TransportError(f"{self._name}: the peer at {address} was refused: {why}"))

    def _hear(self) -> None:
        self._loop.add_reader(self._socket, self._accept)

    def _accept(self) -> None:
        try:
            accepted, address = self._socket.accept()
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:  # too many open files, or a peer that has left already
            self._loop.remove_reader(self._socket)
            self._pause = self._loop.call_later(_RETRY_S, self._hear)
            self._refuse("an unknown address", error)
            return
        accepted.setblocking(False)
        self._entering.add(accepted)
        task = self._loop.create_task(self._admit(accepted, f"{address[0]}:{address[1]}"))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _admit(self, accepted: socket.socket, address: str) -> None:
        """Let a peer in, or report it; who is refused is never heard."""
        connection = Connection(self._name, address)
        opening = _open(self._loop.connect_accepted_socket, connection, self._context, self._handshake_s, sock=accepted)
        try:
            await asyncio.wait_for(opening, self._handshake_s)
        except BaseException as error:
            connection.abort("it was not opened")
            accepted.close()
            self._entering.discard(accepted)
            if isinstance(error, asyncio.TimeoutError):
                self._refuse(address, f"it has not finished its handshake within {self._handshake_s:g} s")
            elif isinstance(error, (OSError, TransportError)):  # ssl.SSLError is an OSError
                self._refuse(address, str(error) or "it has left during the handshake")
            else:
                raise
            return
        self._entering.discard(accepted)
        if self._closed:
            connection.close()
        else:
            self._tell(self._welcome, connection)

    async def close(self) -> None:
        """Listen no more. Who has been welcomed stays."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._socket)
            self._socket.close()
            if self._pause is not None:
                self._pause.cancel()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for accepted in self._entering:
            accepted.close()
        self._entering.clear()


async def listen(
    name: str,
    keys: Path,
    host: str,
    port: int,
    welcome: Callable[[Connection], None],
    refused: Callable[[str, TransportError], None],
    handshake_s: float = HANDSHAKE_S,
) -> Desk:
    """Listen for the peers of the node `name`.

    Args:
        keys: the folder with the certificate of `name` (see harness.transport.tls.make).
        port: 0: any free one, see `Desk.port`.
        welcome: given each connection with a peer that has the run's certificate.
        refused: told of all others: their address and a sentence.
        handshake_s: a peer that has not finished its handshake by then is refused.

    Raises:
        TransportError: nothing can listen there, or the certificate cannot be used.
    """
    context = server_context(keys, name)
    try:
        if not 0 <= port < 2**16:  # create_server would lose its socket
            raise OSError("no such port")
        bound = socket.create_server((host, port), backlog=_BACKLOG)
    except OSError as error:
        raise TransportError(f"{name}: cannot listen on {host}:{port} ({error}); choose another port") from None
    bound.setblocking(False)
    return Desk(name, bound, context, welcome, refused, handshake_s)

"""The sending end of a channel: messages in order, each over when its receiver has acknowledged it.

The next one begins when the last byte of the one before has left: waiting for its acknowledgement would cost a latency
per message, which one TCP connection does not take.

It runs on the event loop's callbacks alone: no task, so nothing that could be collected, and no hop between a post
and its first byte. A frame goes out in slices; asyncio holds at most what it could not give to the kernel of one
slice, so a slow reader costs the sender no memory. A payload in CUDA memory is copied to the host when its turn comes,
on the event loop: a node that minds does it inside `compute`.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from harness.errors import TransportError
from harness.message import Message
from harness.transport import acknowledgement
from harness.transport.frame import DEFAULT, Limits, encode
from harness.transport.limiter import SLICE_BYTES, Delay, TokenBucket

QUEUED, SENDING, ARRIVED, REFUSED, LOST = range(5)
"""Of a transfer: waits for those before it; in flight; at the receiver; not wanted there; the connection is gone or
the receiver found it wrong."""

SMALL_BYTES = 2**16
"""Frames up to this are joined and written at once: one system call is dearer than the copy."""
CLOSE_S = 3.0
"""So long a peer may take over the end of TLS before it is cut off."""
_TURN_BYTES = 2**24
"""So much goes out before others on the event loop have their turn."""


class Transfer:
    """One message on its way; await `settled`, which never raises, then look at `status`.

    Attributes:
        payload_bytes, frame_bytes: what the method meant to send, and with prefix and header (0 until it starts).
        enqueued_s, started_s, acknowledged_s: post, first byte written, acknowledgement; on this node's clock.
        first_byte_s, arrived_s: first and last byte at the receiver; on the receiver's clock.
        error: a sentence if the status is LOST, else None.
    """

    __slots__ = (
        "acknowledged_s",
        "arrived_s",
        "enqueued_s",
        "error",
        "first_byte_s",
        "frame_bytes",
        "message",
        "payload_bytes",
        "settled",
        "started_s",
        "status",
    )

    def __init__(self, message: Message, enqueued_s: float, settled: asyncio.Future[Transfer]) -> None:
        self.message = message
        self.payload_bytes = message.payload_bytes
        self.frame_bytes = 0
        self.enqueued_s = enqueued_s
        self.started_s = self.acknowledged_s = self.first_byte_s = self.arrived_s = -1.0
        self.status = QUEUED
        self.error: TransportError | None = None
        self.settled = settled


class Outgoing(asyncio.BufferedProtocol):
    """The connection of one channel, on the side that sends; made by `endpoint.connect`.

    Args:
        src, dst, lane: the channel.
        closed: called once when the connection is over; with None if `close` did it, else with what happened.
        clock: seconds, for the times of transfers.
        bucket: paces this node's way out; shared by its channels.
        delay: of this channel alone.
        stall_s: give the peer up if a message is in flight and neither bytes nor an acknowledgement have moved for so
            long (a frozen peer keeps its connection open). None: never.
    """

    def __init__(
        self,
        src: str,
        dst: str,
        lane: str,
        *,
        closed: Callable[[Outgoing, TransportError | None], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        limits: Limits = DEFAULT,
        bucket: TokenBucket | None = None,
        delay: Delay | None = None,
        stall_s: float | None = None,
    ) -> None:
        self.src = src
        self.dst = dst
        self.lane = lane
        self.backlog_bytes = 0
        """Payload bytes that are queued or in flight."""
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.ready.add_done_callback(lambda done: done.cancelled() or done.exception())  # asked for: no complaint
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the connection is gone."""
        self._loop = asyncio.get_running_loop()
        self._closed = closed
        self._clock = clock
        self._limits = limits
        self._bucket = bucket
        self._delay = delay
        self._stall_s = stall_s
        self._transport: Any = None
        self._reader = acknowledgement.Reader()
        self._queue: deque[Transfer] = deque()
        self._current: Transfer | None = None  # whose frame is being sent
        self._flying: deque[Transfer] = deque()  # sent, not acknowledged yet
        self._parts: deque[memoryview] = deque()  # of the current frame, not yet through the bucket
        self._line: deque[tuple[float, memoryview]] = deque()  # through it, on their delayed way
        self._line_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None
        self._moved_s = 0.0  # when something moved last
        self._taking = 0  # bytes that the bucket has been asked for
        self._paused = False
        self._turn = False  # the pump is due on the loop
        self._closing = False
        self._error: TransportError | None = None

    # ---- for the owner

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._closing and self._error is None and not self.over.done()

    def post(self, message: Message) -> Transfer:
        """Queue a message; its payload must not change until the transfer is settled.

        On a connection that is gone the transfer is LOST at once; so is one whose payload no frame can carry, when
        its turn comes.
        """
        transfer = Transfer(message, self._clock(), self._loop.create_future())
        self.backlog_bytes += transfer.payload_bytes
        if not self.is_open:
            self._lose(transfer, self._error or TransportError(f"{self.src}: the connection to {self.dst} is closed"))
        else:
            self._queue.append(transfer)
            if not self._turn:
                self._pump()
        return transfer

    def pending(self) -> list[Transfer]:
        """Return what is on its way, then what waits."""
        return [*self._flying, *([] if self._current is None else [self._current]), *self._queue]

    async def close(self) -> None:
        """Close the connection; what is not acknowledged is LOST. Wait until it is gone."""
        self._closing = True
        self._drop(TransportError(f"{self.src}: the connection to {self.dst} was closed here"))
        if self._transport is not None:
            if self._transport.get_write_buffer_size():
                self._transport.abort()  # half a frame is of no use to anybody
            elif not self._transport.is_closing():  # a second close of asyncio's TLS would take `abort` its effect
                self._transport.close()
            await asyncio.wait([self.over], timeout=CLOSE_S)
            self._transport.abort()  # without effect on one that is closed
            await self.over

    def abort(self, error: TransportError) -> None:
        """Cut the connection because of an error."""
        if self._error is None and not self.over.done():
            self._error = error
            if self._transport is not None:
                self._transport.abort()

    # ---- sending

    def _load(self) -> bool:
        """Make the next message's frame the current one; return whether there is one."""
        while self._queue:
            transfer = self._queue.popleft()
            try:
                frame = encode(transfer.message, self._limits)
            except TransportError as error:
                self._lose(transfer, error)
                continue
            transfer.frame_bytes = frame.frame_bytes
            self._current = transfer
            joined = frame.frame_bytes <= SMALL_BYTES
            self._parts.extend([memoryview(b"".join(frame.parts))] if joined else frame.parts)
            if self._stall_s is not None and self._stall_timer is None:
                self._moved_s = self._loop.time()
                self._stall_timer = self._loop.call_later(self._stall_s, self._check_stall)
            return True
        return False

    def _pump(self) -> None:
        """Write slices until the socket is full, the bucket empty, all frames out, or others are due."""
        self._turn = False
        room = _TURN_BYTES
        while not self._paused and not self._taking and self.is_open:
            if not self._parts and not self._load():
                return
            if room <= 0:
                if not self._turn:
                    self._turn = True
                    self._loop.call_soon(self._pump)
                return
            if self._bucket is None:
                size = min(SLICE_BYTES, self._parts[0].nbytes)
            else:
                size = min(self._bucket.grain_bytes, self._parts[0].nbytes)
                self._begins()  # what is on the wire counts from its first bit
                if not self._bucket.take(size, self._granted):
                    self._taking = size
                    return
            self._release(size)
            room -= size

    def _granted(self) -> None:
        size, self._taking = self._taking, 0
        if self._parts and self.is_open:
            self._release(size)
            self._pump()

    def _release(self, size: int) -> None:
        part = self._parts.popleft()
        if size < part.nbytes:
            self._parts.appendleft(part[size:])
            part = part[:size]
        self._begins()
        if self._delay is None:
            self._write(part)
        else:
            self._line.append((self._delay.release(self._loop.time()), part))
            if self._line_timer is None:
                self._line_timer = self._loop.call_at(self._line[0][0], self._arrive)
        if not self._parts:  # the last byte has left: the next message may
            assert self._current is not None
            self._flying.append(self._current)
            self._current = None

    def _begins(self) -> None:
        """The current message is on its way."""
        assert self._current is not None
        if self._current.status == QUEUED:
            self._current.status = SENDING
            self._current.started_s = self._clock()

    def _arrive(self) -> None:
        """Write what has been delayed long enough."""
        self._line_timer = None
        now_s = self._loop.time()
        while self._line and not self._paused and self.is_open:
            due_s, part = self._line[0]
            if due_s > now_s:
                self._line_timer = self._loop.call_at(due_s, self._arrive)
                return
            self._line.popleft()
            self._write(part)

    def _write(self, part: memoryview) -> None:
        self._moved_s = self._loop.time()
        self._transport.write(part)

    def _check_stall(self) -> None:
        assert self._stall_s is not None
        self._stall_timer = None
        slowest = self._flying[0] if self._flying else self._current
        if slowest is None or not self.is_open:
            return
        now_s = self._loop.time()
        if not self._paused and (self._taking or self._line):  # it is our own pacing that holds it
            self._moved_s = now_s
        if now_s - self._moved_s >= self._stall_s:
            self.abort(
                TransportError(
                    f"{self.src}: {self.dst} has neither taken nor acknowledged anything of "
                    f"{slowest.message.tag!r} for {self._stall_s:g} s"
                )
            )
        else:
            self._stall_timer = self._loop.call_later(self._moved_s + self._stall_s - now_s, self._check_stall)

    # ---- endings

    def _settle(self, transfer: Transfer) -> None:
        self.backlog_bytes -= transfer.payload_bytes
        if not transfer.settled.done():
            transfer.settled.set_result(transfer)

    def _lose(self, transfer: Transfer, error: TransportError) -> None:
        transfer.status = LOST
        transfer.error = error
        self._settle(transfer)

    def _drop(self, error: TransportError) -> None:
        """Nothing more goes out."""
        if self._bucket is not None:
            self._bucket.forget(self._granted)
        for timer in (self._line_timer, self._stall_timer):
            if timer is not None:
                timer.cancel()
        self._line_timer = self._stall_timer = None
        self._parts.clear()
        self._line.clear()
        lost = self.pending()
        self._flying.clear()
        self._current = None
        self._queue.clear()
        for transfer in lost:
            self._lose(transfer, error)

    def _acknowledged(self, found: acknowledgement.Acknowledgement) -> None:
        if not self.ready.done():
            if found.status != acknowledgement.READY or found.text != self.dst:
                why = f"calls itself {found.text!r}" if found.status == acknowledgement.READY else found.text
                self.abort(TransportError(f"{self.src}: the peer at the address of {self.dst} {why}"))
            else:
                self.ready.set_result(None)
            return
        if found.status == acknowledgement.BROKEN:
            self.abort(TransportError(f"{self.src}: {self.dst} refused the connection: {found.text}"))
            return
        if not self._flying or found.serial != self._flying[0].message.serial:
            self.abort(TransportError(f"{self.src}: {self.dst} acknowledged {found.serial}, which is not in flight"))
            return
        transfer = self._flying.popleft()
        transfer.acknowledged_s = self._clock()
        transfer.first_byte_s = found.first_byte_s
        transfer.arrived_s = found.last_byte_s
        transfer.status = ARRIVED if found.status == acknowledgement.ARRIVED else REFUSED
        self._settle(transfer)

    # ---- asyncio's side

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        transport.set_write_buffer_limits(high=1, low=0)  # asyncio's TLS would pause for ever at 0

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002
        return self._reader.buffer()

    def buffer_updated(self, nbytes: int) -> None:
        self._moved_s = self._loop.time()
        try:
            for found in self._reader.filled(nbytes):
                if self._error is None and not self._closing:
                    self._acknowledged(found)
        except TransportError as error:
            self.abort(TransportError(f"{self.src}: {self.dst}: {error}"))

    def eof_received(self) -> None:
        """The peer has closed its side: nothing can be acknowledged any more, so the connection is closed."""

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._moved_s = self._loop.time()
        if self._line_timer is None:
            self._arrive()
        self._pump()

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._error is None and not self._closing:
            why = f" ({exc})" if exc is not None else ""
            self._error = TransportError(f"{self.src}: {self.dst} has closed the connection{why}")
        error = self._error or TransportError(f"{self.src}: the connection to {self.dst} is closed")
        self._drop(error)
        if not self.ready.done():
            self.ready.set_exception(error)
        self.over.set_result(None)
        if self._closed is not None:
            self._closed(self, None if self._closing else error)

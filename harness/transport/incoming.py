"""The receiving end of a channel: frames in, an acknowledgement for each.

A peer sends on one lane under one name. Under TLS the name must be in its certificate. What is no frame, or comes under
another name, is answered by a sentence, and the connection is closed.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from harness.errors import TransportError
from harness.transport.acknowledgement import ARRIVED, BROKEN, READY, REFUSED, Acknowledgement
from harness.transport.assembler import Arrival, Assembler
from harness.transport.frame import DEFAULT, Limits
from harness.transport.limiter import TokenBucket
from harness.transport.outgoing import CLOSE_S
from harness.transport.tls import peer_names

_AHEAD_GRAINS = 4
"""So much may be read and not have passed the bucket: it must never be idle while a peer has more to send."""


class Incoming(asyncio.BufferedProtocol):
    """The connection of one channel, on the side that receives; made by `endpoint.Listener`.

    Args:
        name: of this node.
        deliver: takes each message that has arrived; False: it is not wanted any more (the node is done).
        closed: called once when the connection is over; with None if the peer closed it between two messages or
            `close` did it, else with what happened.
        check_names: the peer must send under a name of its certificate; else (without TLS) under any, always the same.
        bucket: paces this node's way in; shared by its connections. Bytes count as arrived when it lets them pass.
        scratch: see Assembler.
    """

    def __init__(
        self,
        name: str,
        deliver: Callable[[Arrival], bool],
        *,
        closed: Callable[[Incoming, TransportError | None], None],
        check_names: bool,
        clock: Callable[[], float] = time.monotonic,
        limits: Limits = DEFAULT,
        bucket: TokenBucket | None = None,
        scratch: bytearray | None = None,
    ) -> None:
        self.name = name
        self.peer: str | None = None
        """Who sends here, once it has sent something."""
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the connection is gone."""
        self._deliver = deliver
        self._closed = closed
        self._check_names = check_names
        self._names: frozenset[str] = frozenset()
        self._clock = clock
        self._bucket = bucket
        self._assembler = Assembler(self._arrived, limits, scratch)
        self._lane = ""
        self._transport: Any = None
        self._error: TransportError | None = None
        self._closing = False
        self._held = False  # the owner's pause
        self._choked = False  # the peer does not read its acknowledgements
        self._reads: deque[int] = deque()  # sizes of reads that the bucket has not let pass yet
        self._owed = 0  # bytes of them
        self._passed = 0  # how many reads have passed
        self._waiting: deque[tuple[int, Arrival]] = deque()  # reads that must pass before it has arrived

    # ---- for the owner

    def pause(self) -> None:
        """Read nothing until `resume`: the kernel's buffers fill up, and then the sender waits."""
        self._held = True
        self._apply()

    def resume(self) -> None:
        self._held = False
        self._apply()

    async def close(self) -> None:
        """Close the connection and wait until it is gone."""
        self._closing = True
        if self._transport is not None:
            if not self._transport.is_closing():  # a second close of asyncio's TLS would take `abort` its effect
                self._transport.close()
            await asyncio.wait([self.over], timeout=CLOSE_S)
            self._transport.abort()  # without effect on one that is closed
            await self.over

    # ---- receiving

    def _arrived(self, arrival: Arrival) -> None:
        message = arrival.message
        if self._check_names and message.src not in self._names:
            raise TransportError(
                f"frame refused: {', '.join(sorted(self._names))!r} claims to be {message.src[:80]!r}; its "
                "certificate says otherwise"
            )
        if self.peer is None:
            self.peer, self._lane = message.src, message.lane
        if (message.src, message.dst, message.lane) != (self.peer, self.name, self._lane):
            raise TransportError(
                f"frame refused: {message.src[:80]!r} to {message.dst[:80]!r} on {message.lane!r}, on the connection "
                f"of {self.peer!r} to {self.name!r} on {self._lane!r}"
            )
        if self._reads:
            self._waiting.append((self._passed + len(self._reads), arrival))
        else:
            self._hand_over(arrival)

    def _hand_over(self, arrival: Arrival) -> None:
        status = ARRIVED if self._deliver(arrival) else REFUSED
        answer = Acknowledgement(status, arrival.message.serial, arrival.first_byte_s, arrival.last_byte_s)
        self._transport.write(answer.packed())

    def _granted(self) -> None:
        """The oldest read has passed."""
        self._owed -= self._reads.popleft()
        self._passed += 1
        now_s = self._clock()
        while self._waiting and self._waiting[0][0] <= self._passed:
            _, arrival = self._waiting.popleft()
            self._hand_over(Arrival(arrival.message, arrival.frame_bytes, arrival.first_byte_s, now_s))
        self._apply()

    def _refuse(self, error: TransportError) -> None:
        self._error = error
        self._transport.write(Acknowledgement(BROKEN, text=str(error)).packed())
        self._transport.close()

    def _apply(self) -> None:
        """Read, or do not."""
        if self._transport is None or self._transport.is_closing():
            return
        ahead = 0 if self._bucket is None else _AHEAD_GRAINS * self._bucket.grain_bytes
        if self._held or self._choked or self._owed > ahead:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    # ---- asyncio's side

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._names = peer_names(transport)
        transport.write(Acknowledgement(READY, text=self.name).packed())

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002
        target = self._assembler.buffer()
        return target if self._bucket is None else target[: self._bucket.grain_bytes]

    def buffer_updated(self, nbytes: int) -> None:
        if self._error is not None:
            return
        if self._bucket is not None:
            self._reads.append(nbytes)
            self._owed += nbytes
            if self._bucket.take(nbytes, self._granted):  # never where an earlier read still waits
                self._reads.pop()
                self._owed -= nbytes
                self._passed += 1
            self._apply()
        try:
            self._assembler.filled(nbytes, self._clock())
        except TransportError as error:
            self._refuse(error)

    def eof_received(self) -> None:
        """The peer sends no more."""

    def pause_writing(self) -> None:
        self._choked = True
        self._apply()

    def resume_writing(self) -> None:
        self._choked = False
        self._apply()

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._bucket is not None:
            self._bucket.forget(self._granted)
        error = self._error
        who = self.peer or "a peer that has sent nothing"
        if error is None and not self._closing:
            if self._assembler.middle or self._waiting:
                error = TransportError(
                    f"{self.name}: {who} is gone in the middle of a frame, after {self._assembler.received_bytes:,} "
                    f"bytes" + (f" ({exc})" if exc is not None else "")
                )
            elif exc is not None:
                error = TransportError(f"{self.name}: the connection from {who} is lost ({exc})")
        self._waiting.clear()
        self.over.set_result(None)
        self._closed(self, error)

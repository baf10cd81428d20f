"""Frames out of a stream of reads.

A large tensor is received straight into its own memory; everything else passes through one scratch buffer, from
where a tensor's bytes are copied once. The caller asks where to read to, reads, and says how much came.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from harness.errors import TransportError
from harness.message import Message
from harness.transport.frame import DEFAULT, PREFIX, Limits, Opened, open_header, open_prefix

SCRATCH_BYTES = 2**18
DIRECT_BYTES = 2**16
"""A tensor that still misses so many bytes is read into directly."""


@dataclass(frozen=True)
class Arrival:
    """A message that is here in full; times on the receiver's clock, in seconds."""

    message: Message
    frame_bytes: int
    first_byte_s: float
    last_byte_s: float


class Assembler:
    """Takes reads, gives messages.

    Args:
        arrived: called with every message as soon as its last byte is there.
        scratch: at least as large as a prefix; may be shared by all assemblers of an event loop, as nothing stays in
            it between two reads.
    """

    def __init__(
        self, arrived: Callable[[Arrival], None], limits: Limits = DEFAULT, scratch: bytearray | None = None
    ) -> None:
        self._arrived = arrived
        self._limits = limits
        self._scratch = memoryview(bytearray(SCRATCH_BYTES) if scratch is None else scratch)
        self._direct = False
        self._held = bytearray()  # of a prefix or a header that is not complete
        self._wanted: tuple[int, int] | None = None  # lengths of header and body, once the prefix is known
        self._opened: Opened | None = None
        self._next = 0  # of the opened frame's buffers
        self._filled = 0  # bytes of that buffer
        self._received = 0  # bytes of this frame
        self._first_byte_s = 0.0

    @property
    def middle(self) -> bool:
        """Whether a frame has begun and is not complete."""
        return self._received > 0

    @property
    def received_bytes(self) -> int:
        """How much of the current frame is there."""
        return self._received

    def buffer(self) -> memoryview:
        """Return where the next bytes go: never empty."""
        if self._opened is not None:
            target = self._opened.buffers[self._next]
            self._direct = target.nbytes - self._filled >= DIRECT_BYTES
            if self._direct:
                return target[self._filled :]
        else:
            self._direct = False
        return self._scratch

    def filled(self, count: int, now_s: float) -> None:
        """Take the `count` bytes that were read into `buffer()` at `now_s`.

        Raises:
            TransportError: they are not what a frame may be; the stream is of no use any more.
        """
        if self._direct:
            self._filled += count
            self._received += count
            self._advance(now_s)
            return
        data = self._scratch[:count]
        while data.nbytes:
            if not self._received:
                self._first_byte_s = now_s
            if self._opened is None:
                data = self._head(data, now_s)
            else:
                target = self._opened.buffers[self._next]
                size = min(data.nbytes, target.nbytes - self._filled)
                target[self._filled : self._filled + size] = data[:size]
                self._filled += size
                self._received += size
                data = data[size:]
                self._advance(now_s)

    def _head(self, data: memoryview, now_s: float) -> memoryview:
        """Take what belongs to a prefix or a header; return the rest."""
        size = PREFIX.size if self._wanted is None else self._wanted[0]
        taken = data[: size - len(self._held)]
        data = data[taken.nbytes :]
        self._received += taken.nbytes
        whole: memoryview | bytearray = taken
        if self._held or taken.nbytes < size:
            self._held += taken
            whole = self._held
            if len(whole) < size:
                return data
            self._held = bytearray()
        if self._wanted is None:
            self._wanted = open_prefix(whole, self._limits)
            if not self._wanted[0]:
                raise TransportError("frame refused: it has no header")
        else:
            self._opened = open_header(whole, self._wanted[1], self._limits)
            self._advance(now_s)
        return data

    def _advance(self, now_s: float) -> None:
        """Go on to the next buffer if this one is full; after the last one, the message has arrived."""
        opened = self._opened
        assert opened is not None
        if self._next < len(opened.buffers):
            if self._filled < opened.buffers[self._next].nbytes:
                return
            self._next += 1
            self._filled = 0
        if self._next < len(opened.buffers):
            return
        arrival = Arrival(opened.message, self._received, self._first_byte_s, now_s)
        self._wanted = self._opened = None
        self._next = self._filled = self._received = 0
        self._arrived(arrival)


def decode(data: bytes | bytearray | memoryview, limits: Limits = DEFAULT) -> list[Message]:
    """Return the messages of a byte string that holds whole frames.

    Raises:
        TransportError: it does not.
    """
    messages: list[Message] = []
    assembler = Assembler(lambda arrival: messages.append(arrival.message), limits)
    view = memoryview(data)
    while view.nbytes:
        target = assembler.buffer()
        size = min(target.nbytes, view.nbytes)
        target[:size] = view[:size]
        assembler.filled(size, 0.0)
        view = view[size:]
    if assembler.middle:
        raise TransportError(f"frame refused: it ends after {assembler.received_bytes:,} bytes, in the middle")
    return messages

"""What a receiver answers: 32 bytes and, if something is wrong, a sentence.

The first one on a connection says that the receiver is ready, and who it is; then there is one per message.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from harness.errors import TransportError

READY, ARRIVED, REFUSED, BROKEN = 0, 1, 2, 3
"""Ready to receive (text: its name); here; not wanted any more (the node is done); no frame (text: why; it closes)."""

_PACKED = struct.Struct("!4sBxHqdd")
_MAGIC = b"AMAK"
_MOST_TEXT_BYTES = 400
MOST_BYTES = _PACKED.size + _MOST_TEXT_BYTES


@dataclass(frozen=True)
class Acknowledgement:
    """An answer to message `serial`; times on the receiver's clock, in seconds."""

    status: int
    serial: int = -1
    first_byte_s: float = 0.0
    last_byte_s: float = 0.0
    text: str = ""

    def packed(self) -> bytes:
        """Return it as bytes; a long text is cut."""
        text = self.text.encode("utf-8", "replace")[:_MOST_TEXT_BYTES]
        return _PACKED.pack(_MAGIC, self.status, len(text), self.serial, self.first_byte_s, self.last_byte_s) + text


class Reader:
    """Takes reads, gives acknowledgements."""

    def __init__(self) -> None:
        self._buffer = memoryview(bytearray(2 * MOST_BYTES))
        self._held = 0

    def buffer(self) -> memoryview:
        """Return where the next bytes go: never empty."""
        return self._buffer[self._held :]

    def filled(self, count: int) -> list[Acknowledgement]:
        """Take `count` bytes; return what is complete.

        Raises:
            TransportError: the peer speaks another protocol.
        """
        self._held += count
        found: list[Acknowledgement] = []
        start = 0
        while self._held - start >= _PACKED.size:
            magic, status, length, serial, first_s, last_s = _PACKED.unpack_from(self._buffer, start)
            if magic != _MAGIC or status > BROKEN or length > _MOST_TEXT_BYTES:
                raise TransportError("acknowledgement refused: the peer speaks another protocol")
            end = start + _PACKED.size + length
            if end > self._held:
                break
            text = bytes(self._buffer[start + _PACKED.size : end]).decode("utf-8", "replace")
            found.append(Acknowledgement(status, serial, first_s, last_s, text))
            start = end
        self._buffer[: self._held - start] = bytes(self._buffer[start : self._held])
        self._held -= start
        return found

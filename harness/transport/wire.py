"""How many bytes a message puts on the link: a model of the framing that the real transport uses.

TLS 1.3 cuts the stream in records of at most 16,384 bytes and adds 22 to each (5 header, 1 type, 16 tag);
TCP over IPv4 with timestamps puts 1,448 bytes in a packet and adds 52 to each. Acknowledgements in the other
direction are not modelled. [RFC 8446 section 5.2; RFC 791, RFC 9293, RFC 7323]
"""

from __future__ import annotations

from typing import Literal

Framing = Literal["tls", "tcp", "none"]

_RECORD_BYTES, _RECORD_EXTRA_BYTES = 16_384, 22
_SEGMENT_BYTES, _SEGMENT_EXTRA_BYTES = 1_448, 52


def wire_bytes(payload_bytes: int, framing: Framing) -> int:
    """Return the bytes that cross the link for a message of `payload_bytes` (its header included)."""
    total = payload_bytes
    if framing == "tls":
        total += -(-total // _RECORD_BYTES) * _RECORD_EXTRA_BYTES
    if framing != "none":
        total += -(-total // _SEGMENT_BYTES) * _SEGMENT_EXTRA_BYTES
    return total

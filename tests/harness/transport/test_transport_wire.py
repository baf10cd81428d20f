"""harness/transport/wire.py: bytes of framing, by the formula and by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.transport.wire import wire_bytes


@pytest.mark.parametrize(
    ("payload_bytes", "framing", "wanted"),
    [
        (64, "none", 64),
        (10**9, "none", 10**9),
        (1, "tcp", 1 + 52),
        (1448, "tcp", 1448 + 52),
        (1449, "tcp", 1449 + 2 * 52),
        (14_480, "tcp", 14_480 + 10 * 52),
        (64, "tls", 64 + 22 + 52),
        (1426, "tls", 1448 + 52),  # with the record's 22 bytes it fills one segment
        (1427, "tls", 1449 + 2 * 52),
        (16_384, "tls", 16_384 + 22 + 12 * 52),  # 16,406 bytes in 12 segments
        (16_385, "tls", 16_385 + 2 * 22 + 12 * 52),
        (1_000_000, "tls", 1_000_000 + 62 * 22 + 692 * 52),  # 62 records; 1,001,364 bytes in 692 segments
    ],
)
def test_by_hand(payload_bytes: int, framing: str, wanted: int):
    assert wire_bytes(payload_bytes, framing) == wanted


@given(st.integers(64, 10**9))
def test_framing_adds_and_grows_with_the_payload(payload_bytes: int):
    none, tcp, tls = (wire_bytes(payload_bytes, framing) for framing in ("none", "tcp", "tls"))
    assert payload_bytes == none < tcp < tls
    assert wire_bytes(payload_bytes + 1, "tls") > tls
    assert tcp - payload_bytes >= 52 * payload_bytes / 1448
    assert tls <= payload_bytes * (1 + 22 / 16_384) * (1 + 52 / 1448) + 22 * 2 + 52 * 2

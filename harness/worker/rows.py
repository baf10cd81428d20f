"""What one node has recorded and not yet sent home, and the arrivals that only the receiver saw.

A message has a row of its sender's (harness.record, table `transfer`), which knows when it was posted and started, and
an arrival of its receiver's: if the sender dies before it has sent its rows home, the arrival is what is left.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from harness.record import Recorder

ARRIVAL = np.dtype(
    [
        ("serial", "i8"),
        ("src", "i4"),
        ("dst", "i4"),
        ("tag", "i4"),
        ("connection", "i4"),
        ("round", "i4"),
        ("payload_bytes", "i8"),
        ("wire_bytes", "i8"),
        ("first_byte_s", "f8"),
        ("arrived_s", "f8"),
    ]
)
"""Names are numbers of the receiver's recorder, as in its other rows."""

ARRIVALS = "arrivals"


def _no_row(*values: Any) -> bytes:  # noqa: ARG001 - the shape of struct.Struct.pack
    return b""


def _keep_nothing(row: bytes) -> None:
    """Stands for list.append."""


class _Nowhere(list[bytes]):
    """A list that stays empty."""

    def append(self, row: bytes) -> None:
        """Keep nothing."""


class Rows:
    """The tables of one node.

    Attributes:
        recorder: the tables; names of nodes and tags are numbers, see harness.record.
    """

    def __init__(self) -> None:
        self.recorder = Recorder()
        self.id = self.recorder.id
        self._arrivals: list[bytes] = []
        self._pack_arrival = struct.Struct("=qiiiiiqqdd").pack
        self._names_sent = 0

    def record_nothing(self) -> None:
        """From now on rows are neither packed nor kept: to measure what that costs."""
        for table in self.recorder.tables:
            table.pack, table.append = _no_row, _keep_nothing
        self._pack_arrival = _no_row
        self._arrivals = _Nowhere()

    def arrival(self, *values: Any) -> None:
        """Add an arrival; the values in the order of ARRIVAL."""
        self._arrivals.append(self._pack_arrival(*values))

    def take(self) -> tuple[list[str], dict[str, bytes]]:
        """Return the names and rows since the last call, and forget the rows."""
        names = self.recorder.names[self._names_sent :]
        self._names_sent += len(names)
        found = {}
        for table in self.recorder.tables:
            if table.rows:
                found[table.name] = b"".join(table.rows)
                table.rows.clear()
        if self._arrivals:
            found[ARRIVALS] = b"".join(self._arrivals)
            self._arrivals.clear()
        return names, found

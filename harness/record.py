"""Rows of what happened: intervals, transfers, barriers, marks and metrics.

A testbed's driver writes rows while a run goes on; nothing else does. A row is packed into bytes by a
`struct.Struct` and appended to its table (two C calls, no Python frame), and spilled to an append-only file
every few ten thousand rows, so that a run of any length needs bounded memory and what happened before a crash
is on disk. Names (nodes, tags, functions) are written as small integers; `Recorder.names` maps them back.

Units: every time is in seconds on the testbed's clock, every size in bytes.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import numpy as np

from harness.errors import StoreError

# What a lane waited for (column `kind` of the wait table).
COMPUTE, RECV, GATHER, SEND, SLEEP, JOIN, CHANNEL = range(7)
WAIT_KINDS = ("compute", "recv", "gather", "send", "sleep", "join", "channel")

# How a message ended (column `status` of the transfer table).
DELIVERED, UNDELIVERED, IN_FLIGHT = range(3)
STATUSES = ("delivered", "undelivered", "in flight")

# What the length of a computation rests on (column `tier` of the compute table): a clock, or a price (profiles.price).
TIERS = ("clocked", "measured", "roofline", "scalar")

# What a mark says (column `kind` of the mark table).
ROUND_START, ROUND_END, SAMPLED, PHASE, ROLE_START, ROLE_END, LANE, LOST, RETURNED, PEAK_MEMORY = range(10)
MARK_KINDS = (
    "round_start",
    "round_end",
    "sampled",
    "phase",
    "role_start",
    "role_end",
    "lane",
    "lost",
    "returned",
    "peak_memory",
)

# Columns that hold interned names, and the struct code of each column's type.
NAMED = {"node", "src", "dst", "tag", "what", "name"}
TABLES: dict[str, dict[str, str]] = {
    # one compute on one node's processor; `flops` = floating-point operations traced (2 per multiply-add),
    # `samples` = training samples in the mini-batches it was given
    "compute": {
        "node": "i",
        "lane": "i",
        "what": "i",
        "samples": "i",
        "start_s": "d",
        "end_s": "d",
        "flops": "d",
        "tier": "i",
    },
    # one wait of one activity; `cause` = serial of the message that ended it (recv, gather, send) or the lane
    # that did (join, channel), -1 if none
    "wait": {
        "node": "i",
        "lane": "i",
        "kind": "i",
        "tag": "i",
        "start_s": "d",
        "end_s": "d",
        "cause": "q",
    },
    # one message; `lane` = the activity that posted it, `connection` = 0 data, 1 control; arrived_s is -1 unless
    # delivered
    "transfer": {
        "serial": "q",
        "src": "i",
        "dst": "i",
        "tag": "i",
        "lane": "i",
        "connection": "i",
        "status": "i",
        "round": "i",
        "payload_bytes": "q",
        "wire_bytes": "q",
        "posted_s": "d",
        "started_s": "d",
        "arrived_s": "d",
    },
    # one message that fed one gather: the straggler of `barrier` arrived at `last_s`
    "barrier": {
        "barrier": "q",
        "node": "i",
        "src": "i",
        "round": "i",
        "serial": "q",
        "arrived_s": "d",
        "last_s": "d",
    },
    # what happened at one time; `number` = the round (round marks, sampled) or bytes (peak_memory)
    "mark": {"node": "i", "lane": "i", "kind": "i", "name": "i", "number": "q", "at_s": "d"},
    # one figure of quality, computed off the clock from the weights of time `at_s`
    "metric": {"node": "i", "name": "i", "round": "i", "at_s": "d", "value": "d"},
}

_NUMPY = {"i": "i4", "q": "i8", "d": "f8"}


def dtype(table: str) -> np.dtype[np.void]:
    """Return the packed numpy dtype of a table's rows."""
    return np.dtype([(column, _NUMPY[code]) for column, code in TABLES[table].items()])


NAMES = "names.json"
"""Beside the rows of a recorder that was closed: what its integers stand for, in order."""


def read(folder: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return the tables and the names of a recorder that was closed with its rows in this folder: of a run that failed.

    Raises:
        StoreError: there are none.
    """
    try:
        names: list[str] = json.loads((folder / NAMES).read_text())
    except (OSError, ValueError) as error:
        raise StoreError(f"{folder / NAMES}: cannot be read ({error}); the rows of its run mean nothing") from None
    arrays = {}
    for table in TABLES:
        path, kind = folder / f"{table}.rows", dtype(table)
        arrays[table] = np.fromfile(path, dtype=kind) if path.exists() else np.empty(0, dtype=kind)
    return arrays, names


class Table:
    """One table being written: `append(pack(...))` adds a row."""

    __slots__ = ("_file", "_path", "append", "name", "pack", "rows", "written")

    def __init__(self, name: str, folder: Path | None) -> None:
        self.name = name
        self.pack: Callable[..., bytes] = struct.Struct("=" + "".join(TABLES[name].values())).pack
        self.rows: list[bytes] = []
        self.append = self.rows.append
        self.written = 0
        self._path = None if folder is None else folder / f"{name}.rows"
        self._file: BinaryIO | None = None

    def spill(self) -> None:
        """Append the rows in memory to the file, if there is one."""
        if self._path is None or not self.rows:
            return
        if self._file is None:
            self._file = self._path.open("ab" if self.written else "wb")
        self._file.write(b"".join(self.rows))
        self.written += len(self.rows)
        self.rows.clear()

    def close(self) -> None:
        """Spill what is left and close the file."""
        try:
            self.spill()
        finally:
            self._shut()

    def discard(self) -> None:
        """Forget all rows and delete the file."""
        self._shut()
        self.rows.clear()
        self.written = 0
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _shut(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            file.close()

    def array(self) -> np.ndarray:
        """Return all rows, those on disk first, as a structured array that cannot be written to.

        Rows on disk are mapped, not read: what looks at a few columns of a long run holds those and no more.
        """
        if self._path is None or not self.written:
            return np.frombuffer(b"".join(self.rows), dtype=dtype(self.name))
        self.spill()
        if self._file is not None:
            self._file.flush()
        return np.asarray(np.memmap(self._path, dtype=dtype(self.name), mode="r"))


class Recorder:
    """The tables of one run.

    Args:
        folder: where rows are spilled while the run goes on; None keeps everything in memory.
    """

    SPILL_ROWS = 50_000

    def __init__(self, folder: Path | None = None) -> None:
        self.names: list[str] = []
        self._ids: dict[str, int] = {}
        self._folder = folder
        self.compute = Table("compute", folder)
        self.wait = Table("wait", folder)
        self.transfer = Table("transfer", folder)
        self.barrier = Table("barrier", folder)
        self.mark = Table("mark", folder)
        self.metric = Table("metric", folder)

    @property
    def tables(self) -> tuple[Table, ...]:
        return (self.compute, self.wait, self.transfer, self.barrier, self.mark, self.metric)

    def id(self, name: str) -> int:
        """Return the integer that stands for `name`, a new one the first time."""
        try:
            return self._ids[name]
        except KeyError:
            number = self._ids[name] = len(self.names)
            self.names.append(name)
            return number

    def spill(self) -> None:
        """Write tables that have grown to disk; a driver calls it now and then."""
        for table in self.tables:
            if len(table.rows) >= self.SPILL_ROWS:
                table.spill()

    def close(self) -> None:
        """Write everything that is left, and the names beside it: see `read`."""
        with ExitStack() as stack:
            for table in self.tables:
                stack.callback(table.close)
            if self._folder is not None and any(table.written or table.rows for table in self.tables):
                (self._folder / NAMES).write_text(json.dumps(self.names))

    def discard(self) -> None:
        """Forget all rows, also those on disk: they are kept in another form."""
        for table in self.tables:
            table.discard()
        if self._folder is not None:
            (self._folder / NAMES).unlink(missing_ok=True)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return every table as a structured array that cannot be written to."""
        return {table.name: table.array() for table in self.tables}

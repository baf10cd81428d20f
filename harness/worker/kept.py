"""States that wait to be scored when the run is over: in memory, and beyond a limit in a file.

Kept in memory, a state shares its blocks with what the role goes on with, until somebody writes to one; the weights of
hundreds of rounds would fill a device that is only just large enough.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections import deque
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch
from torch.utils._pytree import tree_iter, tree_map_only

MEMORY_BYTES = 2**28


@dataclass
class Evaluation:
    """States to score, of one time of the run.

    Attributes:
        states: copies, whose memory is shared until somebody writes.
    """

    label: str
    scorer: Any
    states: tuple[Any, ...]
    round: int
    at_s: float


@dataclass(frozen=True)
class _Filed:
    """A tensor in the file."""

    offset: int
    shape: torch.Size
    dtype: torch.dtype


class Kept:
    """What a node wants scored, in order.

    Args:
        memory_bytes: so much is kept in memory; the rest is written to a file by another thread while the run goes on.
    """

    def __init__(self, memory_bytes: int = MEMORY_BYTES) -> None:
        self.in_memory_bytes = 0
        self._most_bytes = memory_bytes
        self._waiting: deque[Evaluation] = deque()
        self._writing: asyncio.Task[None] | None = None
        self._to_file: deque[tuple[Evaluation, int]] = deque()
        self._file: BinaryIO | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, evaluation: Evaluation) -> None:
        """Keep one."""
        self._waiting.append(evaluation)
        size = sum(leaf.nbytes for leaf in tree_iter(evaluation.states) if isinstance(leaf, torch.Tensor))
        if self.in_memory_bytes + size <= self._most_bytes:
            self.in_memory_bytes += size
            return
        self._to_file.append((evaluation, size))
        self.in_memory_bytes += size
        if self._writing is None:
            self._writing = asyncio.get_running_loop().create_task(self._write())

    async def settle(self) -> None:
        """Wait until nothing is being written any more."""
        if self._writing is not None:
            await self._writing

    def take(self) -> Evaluation | None:
        """Return the oldest one with its states in memory, and keep it no longer; None if there is none."""
        if not self._waiting:
            return None
        found = self._waiting.popleft()
        found.states = tree_map_only(_Filed, self._read, found.states)
        if not self._waiting and self._file is not None:
            self._file.close()
            self._file = None
        return found

    async def _write(self) -> None:
        while self._to_file:
            evaluation, size = self._to_file.popleft()
            try:
                await asyncio.get_running_loop().run_in_executor(None, self._move, evaluation)
            except OSError:  # no room there: it stays in memory
                continue
            self.in_memory_bytes -= size
        self._writing = None

    def _move(self, evaluation: Evaluation) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="ammeter-kept-")  # noqa: SIM115 - has no name, ends with us
        evaluation.states = tree_map_only(torch.Tensor, self._put, evaluation.states)

    def _put(self, tensor: torch.Tensor) -> _Filed:
        assert self._file is not None
        filed = _Filed(self._file.seek(0, 2), tensor.shape, tensor.dtype)
        self._file.write(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        self._file.flush()
        return filed

    def _read(self, filed: _Filed) -> torch.Tensor:
        assert self._file is not None
        found = torch.empty(filed.shape, dtype=filed.dtype)
        self._file.seek(filed.offset)
        self._file.readinto(found.view(-1).view(torch.uint8).numpy().data)  # type: ignore[attr-defined]
        return found

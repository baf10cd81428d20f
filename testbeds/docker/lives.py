"""The processes of a standing container: its first one, which forks a worker for each run, and that worker.

The first one sleeps (SIGSTOP) but for the moment in which it forks: a worker that ends is then not waited for, so that
how it ended can be read here, and none comes in its place before it is wanted. Between runs no worker is there.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from harness.errors import TestbedError
from testbeds.docker.cgroup import Cgroup

_PROC = Path("/proc")
_PATIENCE_S = 30.0
_LOOK_S = 0.002
_ENDED = "ZX"
_STATE, _PARENT, _BORN, _EXIT_CODE = 0, 1, 19, 49  # fields of /proc/PID/stat after the name; proc(5)


@dataclass(frozen=True)
class Life:
    """A worker's process.

    Attributes:
        host_pid: its number on this machine.  pid: in its container.
        born: when it began, clock ticks since the machine's start.
    """

    host_pid: int
    pid: int
    born: int


def _stat(pid: int) -> list[str] | None:
    try:
        said = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return said.rpartition(")")[2].split()


def _lives(pid: int) -> bool:
    stat = _stat(pid)
    return stat is not None and stat[_STATE] not in _ENDED


class Keeper:
    """Wakes the first process of one container, and puts it to rest.

    Args:
        name: the node's.
        pid: the first process, as this machine numbers it.
        group: the container's.
    """

    def __init__(self, name: str, pid: int, group: Cgroup) -> None:
        self.name = name
        self.pid = pid
        self._group = group

    @property
    def runs(self) -> bool:
        """Whether the container's first process is there, asleep or not."""
        return _lives(self.pid)

    def rest(self) -> None:
        """Put the first process to sleep and end all others of the container, whatever state they are in.

        Raises:
            TestbedError: one does not end, or this user may not end it.
        """
        if not self.runs:
            return
        self._signal(self.pid, signal.SIGSTOP)
        self._until(lambda: not self.runs or self._asleep(), "does not go to sleep")

        def ended() -> bool:
            others = self._others()
            for pid in others:
                self._signal(pid, signal.SIGKILL)
            return not others

        self._until(ended, "has processes that do not end")

    def resume(self) -> None:
        """Have a new worker forked; `rest` has ended the last one, so it is told from it."""
        self._signal(self.pid, signal.SIGCONT)

    def hold(self) -> Life:
        """Put the first process to sleep, so that no worker follows the one that is there; return that one.

        Raises:
            TestbedError: there is none any more.
        """
        self._signal(self.pid, signal.SIGSTOP)
        self._until(lambda: not self.runs or self._asleep(), "does not go to sleep")
        life = self.worker()
        if life is None:
            raise TestbedError(f"{self.name}: its worker has ended as soon as it was forked; is its memory enough?")
        return life

    def worker(self) -> Life | None:
        """Return the worker that lives; None: there is none."""
        for pid in self._others():
            stat = _stat(pid)
            if stat is not None and stat[_STATE] not in _ENDED and int(stat[_PARENT]) == self.pid:
                with contextlib.suppress(OSError):
                    return Life(pid, self._inside(pid), int(stat[_BORN]))
        return None

    def ended(self, life: Life) -> int | None:
        """Return how a worker has ended, as a wait status; None: it lives, stopped or not."""
        stat = _stat(life.host_pid)
        if stat is None or int(stat[_BORN]) != life.born:
            return signal.SIGKILL  # gone without a trace: with its container
        return int(stat[_EXIT_CODE]) if stat[_STATE] in _ENDED else None

    def _inside(self, pid: int) -> int:
        for line in (_PROC / str(pid) / "status").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("NSpid:"):
                return int(line.split()[-1])
        return pid

    def _asleep(self) -> bool:
        stat = _stat(self.pid)
        return stat is not None and stat[_STATE] in "Tt"

    def _others(self) -> list[int]:
        try:
            pids = (self._group.cpu / "cgroup.procs").read_text(encoding="ascii").split()
        except OSError:
            return []  # the group is gone with its container
        return [pid for pid in map(int, pids) if pid != self.pid and _lives(pid)]

    def _signal(self, pid: int, number: int) -> None:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass
        except PermissionError:
            raise TestbedError(
                f"{self.name}: its standing container belongs to another user, who must use it or take it down"
            ) from None

    def _until(self, true: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while not true():
            if time.monotonic() > deadline:
                raise TestbedError(f"{self.name}: its standing container {what} within {_PATIENCE_S:g} s")
            time.sleep(_LOOK_S)

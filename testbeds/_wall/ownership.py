"""Whose a thing is: a mark that tells what a live run has made from what a killed one has left."""

from __future__ import annotations

import os
from pathlib import Path

FOLDER_PREFIX = "ammeter-run-"
FOLDERS = f"{FOLDER_PREFIX}*"
"""Temporary folders of runs (in `tempfile.gettempdir()`); each holds a file `CONTROLLER_FILE` with the maker's mark."""

CONTROLLER_FILE = "controller"
_ENDED = ("Z", "X")  # a process that was killed and that nobody has waited for has ended all the same


def _state_and_start(pid: int) -> tuple[str, str] | None:
    """Return a process's state letter and its start, clock ticks since boot; None: no such process is to be seen."""
    try:
        said = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = said.rpartition(")")[2].split()  # what stands before may hold blanks and brackets: the program's name
    return fields[0], fields[19]


def mark(pid: int | None = None) -> str:
    """Return "PID START" of a live process (None: this one): process numbers are used again, the pair is not.

    Raises:
        ProcessLookupError: there is no such process.
    """
    pid = os.getpid() if pid is None else pid
    found = _state_and_start(pid)
    if found is None:
        raise ProcessLookupError(f"there is no process {pid}")
    return f"{pid} {found[1]}"


def alive(said: str) -> bool:
    """Return whether the process of a mark still runs; what is no mark is nobody's."""
    pid, _, start = said.strip().partition(" ")
    if not (pid.isdecimal() and start.isdecimal()):
        return False
    found = _state_and_start(int(pid))
    if found is not None:
        return found[1] == start and found[0] not in _ENDED
    try:
        os.kill(int(pid), 0)
    except PermissionError:
        return True  # somebody else's, on a machine that hides it: the careful answer
    except (ProcessLookupError, OverflowError):
        return False
    return True


def claim(folder: Path) -> None:
    """Write this process's mark into a temporary folder, so that it is a leftover once the process is gone."""
    (folder / CONTROLLER_FILE).write_text(f"{mark()}\n", encoding="utf-8")

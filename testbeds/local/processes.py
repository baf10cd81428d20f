"""The workers' processes: forked from one that has imported what they need, so that starting one is cheap."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1
_PRELOAD = (
    "torch",
    "torch.optim",
    "harness.worker.__main__",
    "harness.task.data",
    "harness.task.models",
)


def context() -> BaseContext:
    """Return what starts workers: a server that forks, where there is one; it ends with this process."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(list(_PRELOAD))
    return found


class Processes:
    """The processes of one run.

    Args:
        logs: folder for what they print.
    """

    def __init__(self, logs: Path) -> None:
        self._context: Any = context()
        self._logs = logs
        self._processes: dict[str, Any] = {}
        self._ended: set[str] = set()

    def start(self, name: str, arguments: list[str]) -> None:
        """Start the worker of a node; an earlier one must have ended."""
        process = self._context.Process(target=_work, args=(arguments, str(self._log(name))), name=name)
        process.daemon = True
        process.start()
        self._processes[name] = process
        self._ended.discard(name)

    def _log(self, name: str) -> Path:
        return self._logs / f"{name}.log"

    def pid(self, name: str) -> int:
        """Return the process id of a node's worker."""
        pid: int = self._processes[name].pid
        return pid

    def kill(self, name: str) -> None:
        """End a worker at once, stopped or not, and wait for its end."""
        process = self._processes.get(name)
        if process is not None:
            process.kill()
            process.join()
            self._ended.add(name)

    def gone(self) -> dict[str, str]:
        """Return the workers that have ended by themselves, and how."""
        found = {}
        for name, process in self._processes.items():
            if name not in self._ended and process.exitcode is not None:
                found[name] = self._how(name, process.exitcode)
        return found

    def _how(self, name: str, code: int) -> str:
        if code < 0:
            return f"was killed by {signal.Signals(-code).name}"
        last = self._last_words(name)
        return f"has exited with status {code}" + (f" ({last})" if last else "")

    def _last_words(self, name: str) -> str:
        try:
            lines = self._log(name).read_text(errors="replace").strip().splitlines()
        except OSError:
            return ""
        return lines[-1] if lines else ""

    def close(self) -> None:
        """End all of them."""
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.join()
            process.close()
        self._processes.clear()


def _work(arguments: list[str], log: str) -> None:
    """Be a worker: what is printed goes to the log; an interrupt at the terminal is for the controller."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # of the server that forks: it ends with us all
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    from harness.worker.__main__ import main

    os._exit(main(arguments))

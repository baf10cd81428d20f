"""The workers' processes: forked from one that has imported what they need, so that starting one is cheap."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1
_PRELOAD = (
    "torch",
    "torch._dynamo",  # models are initialised through it where there is no memory for them
    "harness.worker.__main__",
    "harness.task.data",
    "harness.task.models",
    __package__,
)
"""What every worker imports; each would need seconds for it."""
_PRELOAD_IF_USED = ("sklearn.datasets", "transformers")
"""What reading some data sets and models imports."""


def context() -> BaseContext:
    """Return what starts workers: a server that forks, where there is one; it ends with this process.

    The server is started with the first worker; by then this process has read the run's data itself.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload([*_PRELOAD, *(name for name in _PRELOAD_IF_USED if name in sys.modules)])
    return found


class Processes:
    """The processes of one run; `start`, `kill` and `close` may be called from any thread.

    Args:
        logs: folder for what they print.
    """

    def __init__(self, logs: Path) -> None:
        self._context: Any = context()
        self._logs = logs
        self._processes: dict[str, Any] = {}
        self._ended: set[str] = set()
        self._lock = threading.Lock()
        self._closed = False

    def start(self, name: str, arguments: list[str]) -> None:
        """Start the worker of a node; an earlier one must have ended. Without effect once all have been ended."""
        with self._lock, _uninterrupted():
            if self._closed:
                return
            process = self._context.Process(target=_work, args=(arguments, str(self._log(name))), name=name)
            process.daemon = True
            process.start()
            earlier = self._processes.get(name)
            self._processes[name] = process
            self._ended.discard(name)
            if earlier is not None:
                earlier.close()

    def _log(self, name: str) -> Path:
        return self._logs / f"{name}.log"

    def pid(self, name: str) -> int:
        """Return the process id of a node's worker."""
        pid: int = self._processes[name].pid
        return pid

    def kill(self, name: str) -> None:
        """End a worker at once, stopped or not, and wait for its end."""
        with self._lock:
            process = self._processes.get(name)
            if process is not None:
                self._ended.add(name)
                process.kill()
                process.join()

    def gone(self) -> dict[str, str]:
        """Return the workers that have ended by themselves, and how."""
        found = {}
        for name, process in list(self._processes.items()):
            if name not in self._ended and process.exitcode is not None:
                found[name] = self._how(name, process.exitcode)
        return found

    def _how(self, name: str, code: int) -> str:
        if code < 0:
            known = {number.value: number.name for number in signal.Signals}
            return f"was killed by {known.get(-code, f'signal {-code}')}"
        last = self._last_words(name)
        return f"has exited with status {code}" + (f" ({last})" if last else "")

    def _last_words(self, name: str) -> str:
        try:
            lines = self._log(name).read_text(errors="replace").strip().splitlines()
        except OSError:
            return ""
        return lines[-1] if lines else ""

    def close(self) -> None:
        """End all of them, for good."""
        with self._lock:
            self._closed = True
            processes, self._processes = self._processes, {}
            for process in processes.values():
                process.kill()
            for process in processes.values():
                process.join()
                process.close()


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """What is started here inherits that an interrupt at the terminal is not for it: from its first instant."""
    resource_tracker.ensure_running()  # it would let interrupts through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


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

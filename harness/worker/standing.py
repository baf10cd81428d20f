"""A worker that stands: it has imported what every run needs, and forks a process for each.

The parent has neither threads nor an event loop and does nothing but fork, wait and fork again. A child waits for a
controller, takes part in one run under whatever incarnation it is dealt, and ends; so nothing of a run is in the next.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NoReturn

PRELOAD = ("torch", "torch._dynamo", "harness.worker.session", "harness.task.data", "harness.task.models")
"""What every worker imports; torch._dynamo: models are initialised through it where there is no memory for them."""
PRELOAD_IF_USED = ("sklearn.datasets", "transformers")
"""What reading some data sets and models imports: worth it where a run of the kind has imported it."""

AT_ONCE_S = 2.0
PAUSE_S = 1.0
_PR_SET_PDEATHSIG = 1


def stand(live: Callable[[], int], imports: Iterable[str] = PRELOAD) -> NoReturn:
    """Fork a process for one run after another, until the end of this one (SIGTERM).

    Args:
        live: one worker's life; returns its exit status.
        imports: modules to import first.

    Raises:
        ImportError: one is not there.
    """
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # the first process of a container has no default for it
    for name in imports:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # a collection in a child would write to, and so copy, every page of what is shared
    while True:
        began_s = time.monotonic()
        child = os.fork()
        if child == 0:
            _be_child(live)
        status = _wait(child)
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) and time.monotonic() - began_s < AT_ONCE_S:
            time.sleep(PAUSE_S)  # it gave up at once, and so may the next one


def _be_child(live: Callable[[], int]) -> NoReturn:
    status = 70  # EX_SOFTWARE
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            with contextlib.suppress(OSError):  # where memory is short this one goes, not what forks the next
                Path("/proc/self/oom_score_adj").write_text("1000")
        status = live()
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # what the parent has registered for its own exit is the parent's


def _wait(child: int) -> int:
    """Return how the child has ended; orphans of earlier ones are a first process's to wait for, too."""
    while True:
        pid, status = os.wait()
        if pid == child:
            return status


def born() -> int:
    """Return when this process began, in clock ticks since the machine's start; 0 where that cannot be known.

    With the process number it tells this process from all others, in a container and seen from its host.
    """
    try:
        said = Path("/proc/self/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    return int(said.rpartition(")")[2].split()[19])

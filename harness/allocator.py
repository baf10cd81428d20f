"""Keep freed memory in the process: a training step frees and takes the same large blocks again and again.

glibc gives blocks above a threshold back to the kernel as soon as they are freed and trims its heap, so every step
pays for page faults; tests/harness/test_allocator.py counts them with and without.
"""

from __future__ import annotations

import ctypes
import gc
import platform

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -2, -3, -8
_KEPT_BYTES = 2**30
_GROWN_BYTES = 2**26


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed blocks of up to 1 GiB; return whether that was possible (elsewhere nothing is done)."""
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    settings = (
        (_M_MMAP_THRESHOLD, _KEPT_BYTES),
        (_M_TRIM_THRESHOLD, _KEPT_BYTES),
        (_M_TOP_PAD, _GROWN_BYTES),
        (_M_ARENA_MAX, 1),  # threads that compute beside each other share what is kept; arenas of their own are small
    )
    done = [libc.mallopt(option, value) == 1 for option, value in settings]  # all of them, whatever each says
    return all(done)


def give_back_freed_memory() -> None:
    """Return what is freed to the kernel now: what was kept for training steps is of no use any more."""
    if platform.libc_ver()[0] == "glibc":
        gc.collect()  # a run's nodes and activities refer to each other
        ctypes.CDLL(None).malloc_trim(0)

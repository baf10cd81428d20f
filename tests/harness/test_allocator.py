"""harness/allocator.py: freed memory stays in the process where the C library is glibc."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys

import pytest

from harness.allocator import keep_freed_memory

PROGRAM = """
import resource, sys
import torch
if sys.argv[1] == "keep":
    from harness.allocator import keep_freed_memory
    keep_freed_memory()
def touch():
    for _ in range(30):
        torch.ones(16_000_000)
touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
def test_blocks_that_are_taken_again_cost_no_page_faults() -> None:
    """64 MB taken 30 times is 15,625 pages each time, unless the block is still there."""
    faults = {
        how: int(subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, check=True).stdout)
        for how in ("keep", "default")
    }
    if platform.libc_ver()[0] == "glibc":
        assert faults["keep"] < 2_000
    assert faults["default"] >= faults["keep"]


def test_it_says_whether_it_could() -> None:
    assert keep_freed_memory() is (platform.libc_ver()[0] == "glibc")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt > 0


@pytest.mark.slow
def test_kept_memory_is_given_back_when_asked() -> None:
    program = """
import torch
from harness.allocator import give_back_freed_memory, keep_freed_memory
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
kept = keep_freed_memory()
torch.ones(50_000_000)
before = resident()
give_back_freed_memory()
print(int(kept), before - resident())
"""
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    if said[0] == "1":
        assert int(said[1]) > 150_000_000

"""Whether the host has the processor time that its emulated devices need."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from statistics import median

from harness.controller.emulator import Measure
from harness.errors import TestbedError

MOST_LOAD = 0.9
"""Of the host's cores: the rest is for the kernel, the transport and the controller."""


_SHOWN = 8
_STEPS = 5


class Room:
    """Times the step of an experiment on the unthrottled host, and refuses what does not fit.

    Args:
        target_s: how long each node's step is to take, in real seconds.
        threads: of each node.

    Attributes:
        step_s: how long a step takes on the host, by the number of its threads (real seconds).
    """

    def __init__(self, target_s: Mapping[str, float], threads: Mapping[str, int], dilation: float) -> None:
        self.step_s: dict[int, float] = {}
        self._target_s = target_s
        self._threads = threads
        self._dilation = dilation
        self._measuring = asyncio.Lock()

    async def look(self, name: str, measure: Measure) -> None:
        """Time a step as node `name` makes it, unless one with as many threads has been timed.

        Raises:
            TestbedError: the host is too small or too slow, see `check_room`.
        """
        async with self._measuring:  # beside others the host would look slower than it is
            threads = self._threads[name]
            if threads not in self.step_s:
                self.step_s[threads] = median(await measure(_STEPS))
            if set(self.step_s) >= set(self._threads.values()):
                check_room(self.shares(), self._threads, host_cores(), self._dilation)

    def share(self, name: str) -> float:
        """Return the processors' worth of time that a node needs."""
        threads = self._threads[name]
        return self.step_s[threads] * threads / self._target_s[name]

    def shares(self) -> dict[str, float]:
        """Return that of all nodes."""
        return {name: self.share(name) for name in self._target_s}


def host_cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_room(needed: Mapping[str, float], threads: Mapping[str, int], cores: int, dilation: float) -> None:
    """Refuse what the host cannot give, with the arithmetic.

    Args:
        needed: processors' worth of time per node.

    Raises:
        TestbedError: a device is faster than this host, or all together need more than it has.
    """
    slow = {name: share / threads[name] for name, share in needed.items() if share > threads[name]}
    if slow:
        worst = max(slow, key=lambda name: slow[name])
        raise TestbedError(
            f"{worst} is {slow[worst]:.3g} times as fast as this host: it cannot be emulated here; set "
            f"testbed.dilation to {_above(slow[worst] * dilation)} or more"
        )
    total = sum(needed.values())
    if total > MOST_LOAD * cores:
        parts = " + ".join(f"{share:.2f}" for share in list(needed.values())[:_SHOWN])
        parts += " + ..." if len(needed) > _SHOWN else ""
        raise TestbedError(
            f"the nodes need {parts} = {total:.2f} processors and this host has {MOST_LOAD:.0%} of {cores} for them; "
            f"set testbed.dilation to {_above(total / (MOST_LOAD * cores) * dilation)} or more, or use fewer devices"
        )


def _above(value: float) -> str:
    """Return two digits, rounded up."""
    return f"{value * 1.05:.2g}" if value < 10 else f"{value * 1.05:.0f}"

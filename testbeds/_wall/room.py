"""Whether the host has the processor time that its emulated devices need."""

from __future__ import annotations

import os
from collections.abc import Mapping

from harness.errors import TestbedError

MOST_LOAD = 0.9
"""Of the host's cores: the rest is for the kernel, the transport and the controller."""


def host_cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def shares(step_s: Mapping[str, float], target_s: Mapping[str, float], threads: Mapping[str, int]) -> dict[str, float]:
    """Return the processors' worth of time that each node needs.

    Args:
        step_s: how long its step takes on the unthrottled host, with its threads (real seconds).
        target_s: how long it is to take (real seconds).
    """
    return {name: step_s[name] * threads[name] / target_s[name] for name in target_s}


def check_room(needed: Mapping[str, float], threads: Mapping[str, int], cores: int, dilation: float) -> None:
    """Refuse what the host cannot give, with the arithmetic.

    Args:
        needed: processors' worth of time per node, see `shares`.

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
        parts = " + ".join(f"{share:.2f}" for share in list(needed.values())[:8]) + (
            " + ..." if len(needed) > 8 else ""
        )
        raise TestbedError(
            f"the nodes need {parts} = {total:.2f} processors and this host has {MOST_LOAD:.0%} of {cores} for them; set "
            f"testbed.dilation to {_above(total / (MOST_LOAD * cores) * dilation)} or more, or use fewer devices"
        )


def _above(value: float) -> str:
    """Return two digits, rounded up."""
    return f"{value * 1.05:.2g}" if value < 10 else f"{value * 1.05:.0f}"

"""How fast and how big a container may be: arithmetic of quotas, and applying them while it runs.

The kernel grants a group QUOTA seconds of processor time per PERIOD, to all its threads together: full speed, then
stopped until the next period. Averages hold over several periods, so the period must be short beside a step.
Source of the kernel's bounds: Linux Documentation/scheduler/sched-bwc.rst.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from docker.errors import APIError
from docker.models.containers import Container

from harness.errors import DeviceOutOfMemory, TestbedError
from testbeds.docker import ownership

DEFAULT_PERIOD_S = 0.1
SHORTEST_PERIOD_S = 0.005  # below it, switching costs and the scheduler's tick (1 to 4 ms) blur what is granted
LONGEST_PERIOD_S = 1.0  # the kernel's bound
LEAST_QUOTA_S = 0.001  # the kernel's bound
PERIODS_PER_STEP = 5
LEAST_MEMORY_BYTES = 6 * 2**20  # the engine's bound
_NO_QUOTA = -1
_NO_MEMORY_LIMIT = 2**62  # the engine cannot lift a limit, only raise it
_HELD = "unable to set memory limit"  # what runc says of a limit below what is held
_ONLINE = Path("/sys/devices/system/cpu/online")


@dataclass(frozen=True)
class Limits:
    """What a container may use; the default is everything.

    Attributes:
        cpus: processors' worth of time (0.25 = a quarter of one); None = no quota.
        cores: the emulated device's cores: as many threads as it may run at once.
        period_s: the quota's period, seconds; `period_s` below chooses one.
        memory_bytes: RAM, no swap beside it; None = no limit.
        cpuset: the host's cores it is kept on, such as "0-1,4"; None = all.
    """

    cpus: float | None = None
    cores: int = 1
    period_s: float = DEFAULT_PERIOD_S
    memory_bytes: int | None = None
    cpuset: str | None = None

    def __post_init__(self) -> None:
        if self.cores < 1:
            raise TestbedError(f"cores: {self.cores} is none; a device has at least one")
        if not 0.001 <= self.period_s <= LONGEST_PERIOD_S:
            raise TestbedError(f"quota period: {self.period_s:g} s is not within 0.001 and {LONGEST_PERIOD_S:g} s")
        if self.cpus is not None:
            if not 0 < self.cpus <= self.cores:
                raise TestbedError(f"cpus: {self.cpus:g} is not above 0 and at most the device's cores ({self.cores})")
            if round(self.cpus * self.period_s, 9) < LEAST_QUOTA_S:
                raise TestbedError(
                    f"cpus: {self.cpus:g} of a period of {self.period_s:g} s is less than the kernel's least quota, "
                    f"{LEAST_QUOTA_S:g} s; take a longer period"
                )
        if self.memory_bytes is not None and self.memory_bytes < LEAST_MEMORY_BYTES:
            raise TestbedError(
                f"memory: {self.memory_bytes} bytes is less than the engine's least, {LEAST_MEMORY_BYTES} bytes"
            )


def period_s(cpus: float, step_s: float | None = None) -> float:
    """Return the quota period, seconds, for steps that take `step_s`: a step spans five where that is sensible.

    More would make it even, but every stop costs the caches. At most the default of 100 ms, at least 5 ms, and long
    enough for the kernel's least quota of 1 ms.

    Args:
        cpus: processors' worth of time granted.
        step_s: how long a step takes under the quota, seconds; None = unknown.

    Raises:
        TestbedError: so small a share cannot be granted with a period of a second.
    """
    if cpus * LONGEST_PERIOD_S < LEAST_QUOTA_S:
        raise TestbedError(
            f"cpus: {cpus:g} is less than the kernel can grant ({LEAST_QUOTA_S / LONGEST_PERIOD_S:g}); set a dilation"
        )
    wanted = DEFAULT_PERIOD_S if step_s is None else min(step_s / PERIODS_PER_STEP, DEFAULT_PERIOD_S)
    return max(wanted, SHORTEST_PERIOD_S, LEAST_QUOTA_S / cpus)


def cpusets(cores_of: Mapping[str, int], host_cores: int) -> dict[str, str | None]:
    """Give each node host cores of its own where there are enough for all; else nobody gets any (None).

    Pinning only some would let the others run on their cores, and slow them unseen.

    Args:
        cores_of: the cores of each node.
        host_cores: the host's cores that nodes may have, numbered from 0.
    """
    if sum(cores_of.values()) > host_cores:
        return dict.fromkeys(cores_of)
    sets: dict[str, str | None] = {}
    first = 0
    for name, cores in cores_of.items():
        sets[name] = str(first) if cores == 1 else f"{first}-{first + cores - 1}"
        first += cores
    return sets


def resources(limits: Limits) -> dict[str, Any]:
    """Return the engine's words for limits; those of `Limits()` lift whatever there was."""
    period_us = round(limits.period_s * 1e6)
    memory = limits.memory_bytes or _NO_MEMORY_LIMIT
    return {
        "cpu_period": period_us,
        "cpu_quota": _NO_QUOTA if limits.cpus is None else max(round(limits.cpus * period_us), 1000),
        "cpuset_cpus": limits.cpuset or _ONLINE.read_text(encoding="ascii").strip(),
        "mem_limit": memory,
        "memswap_limit": memory,  # memory and swap together: no swap
    }


def apply(container: Container, limits: Limits) -> None:
    """Put a running container under limits, in place of those it had; what is None in them is lifted.

    Raises:
        DeviceOutOfMemory: it holds more memory already than it may have (an engine with cgroup v1 says so here; with
            v2 the kernel kills what is too big, which its state tells).
        TestbedError: the engine refuses.
    """
    try:
        container.update(**resources(limits))
    except APIError as error:
        reason = str(error.explanation or error).strip()
        name = container.labels.get(ownership.NODE, container.name)
        if limits.memory_bytes is not None and _HELD in reason:
            raise DeviceOutOfMemory(
                f"{name} holds more memory already than {limits.memory_bytes} bytes; the work does not fit"
            ) from None
        raise TestbedError(f"{name}: the engine does not apply its limits ({reason})") from None

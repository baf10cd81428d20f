"""A container's own counters, read from the kernel's control groups (version 1 and 2) without asking the engine.

Sources: Linux Documentation/admin-guide/cgroup-v1/memory.rst, cpuacct.rst, cgroup-v2.rst; scheduler/sched-bwc.rst.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from harness.errors import TestbedError

PROC = Path("/proc")


@dataclass(frozen=True)
class CpuStat:
    """What a group has used, and how often its quota stopped it, since it exists.

    Attributes:
        periods: quota periods in which it wanted to run.
        throttled: of these, those in which it was stopped.
        throttled_s: how long it was stopped, seconds (added over processors).
        usage_s: processor time it got, seconds.
    """

    periods: int
    throttled: int
    throttled_s: float
    usage_s: float


@dataclass(frozen=True)
class Cgroup:
    """The folders of one control group: version 2 has one for everything, version 1 one per controller."""

    version: int
    cpu: Path
    cpuacct: Path
    memory: Path


def _mounts(proc: Path) -> list[tuple[str, Path, str, frozenset[str]]]:
    """Return (root within the hierarchy, where it is mounted, type, options) of all mounts."""
    found = []
    for line in (proc / "self" / "mountinfo").read_text(encoding="utf-8").splitlines():
        before, _, after = line.partition(" - ")
        _, _, _, root, point, *_ = before.split(" ")
        kind, _, options = after.split(" ")[:3]
        found.append((root, Path(point), kind, frozenset(options.split(","))))
    return found


def of(pid: int, proc: Path = PROC) -> Cgroup:
    """Return the control group that a process is in.

    Args:
        proc: where the kernel's process files are.

    Raises:
        TestbedError: the process is gone, or the group's files cannot be seen from here.
    """
    try:
        lines = (proc / str(pid) / "cgroup").read_text(encoding="utf-8").splitlines()
        mounts = _mounts(proc)
    except OSError as error:
        raise TestbedError(f"process {pid}: its control group cannot be read ({error.strerror})") from None
    paths: dict[str, str] = {}
    for line in lines:
        _, controllers, path = line.split(":", 2)
        paths |= dict.fromkeys(controllers.split(","), path)

    def folder(controller: str) -> Path:
        for root, point, kind, options in mounts:
            if kind == ("cgroup" if controller else "cgroup2") and (not controller or controller in options):
                path = Path(paths[controller])
                inside = path.relative_to(root) if path.is_relative_to(root) else Path(*path.parts[1:])
                if (point / inside).is_dir():
                    return point / inside
        raise TestbedError(
            f"process {pid}: its control group {paths.get(controller)!r} is not mounted here; run on the engine's own "
            "machine, with /sys/fs/cgroup to be seen"
        )

    if "cpu" in paths:
        return Cgroup(1, folder("cpu"), folder("cpuacct"), folder("memory"))
    if "" not in paths:
        raise TestbedError(f"process {pid} is in no control group; start the engine with control groups")
    everything = folder("")
    return Cgroup(2, everything, everything, everything)


def _numbers(file: Path) -> dict[str, int]:
    return {key: int(value) for key, value in map(str.split, file.read_text(encoding="ascii").splitlines())}


def _gone(group: Cgroup, error: OSError) -> TestbedError:
    return TestbedError(f"{group.cpu}: the container's counters cannot be read any more ({error.strerror})")


def cpu_stat(group: Cgroup) -> CpuStat:
    """Read the processor counters of a group.

    Raises:
        TestbedError: the group is gone with its container.
    """
    try:
        said = _numbers(group.cpu / "cpu.stat")
        if group.version == 1:
            usage_s = int((group.cpuacct / "cpuacct.usage").read_text(encoding="ascii")) / 1e9
            throttled_s = said["throttled_time"] / 1e9
        else:
            usage_s = said["usage_usec"] / 1e6
            throttled_s = said.get("throttled_usec", 0) / 1e6
    except OSError as error:
        raise _gone(group, error) from None
    return CpuStat(said.get("nr_periods", 0), said.get("nr_throttled", 0), throttled_s, usage_s)


def memory_peak_bytes(group: Cgroup) -> int | None:
    """Return the most memory the group ever held, file cache included; None: this kernel does not say (before 5.19).

    Raises:
        TestbedError: the group is gone with its container.
    """
    try:
        if group.version == 1:
            return int((group.memory / "memory.max_usage_in_bytes").read_text(encoding="ascii"))
        peak = group.memory / "memory.peak"
        return int(peak.read_text(encoding="ascii")) if peak.exists() else None
    except OSError as error:
        raise _gone(group, error) from None


def oom_kills(group: Cgroup) -> int:
    """Return how many processes of the group the kernel has killed for want of memory.

    Raises:
        TestbedError: the group is gone with its container.
    """
    file = group.memory / ("memory.oom_control" if group.version == 1 else "memory.events")
    try:
        return _numbers(file).get("oom_kill", 0)
    except OSError as error:
        raise _gone(group, error) from None

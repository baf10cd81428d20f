"""Reading counters from control groups laid out as the kernel's two versions do."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import TestbedError
from testbeds.docker import cgroup


def laid_out(top: Path, groups: str, mounts: list[tuple[str, str, str, str]], files: dict[str, str]) -> Path:
    """Write a process's groups, the mounts (root, point, type, options) and the groups' files; return "proc"."""
    proc = top / "proc"
    (proc / "7").mkdir(parents=True)
    (proc / "self").mkdir()
    (proc / "7" / "cgroup").write_text(groups)
    lines = [f"30 20 0:1 {root} {top}{point} rw shared:9 - {kind} {kind} {more}" for root, point, kind, more in mounts]
    (proc / "self" / "mountinfo").write_text("\n".join(["1 0 8:1 / / rw - ext4 /dev/vda rw", *lines]) + "\n")
    for name, said in files.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(said)
    return proc


def test_version_1(tmp_path: Path) -> None:
    proc = laid_out(
        tmp_path,
        "5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n1:name=systemd:/docker/abc\n0::/\n",
        [
            ("/", "/sys/cpu,cpuacct", "cgroup", "rw,cpu,cpuacct"),
            ("/", "/sys/memory", "cgroup", "rw,memory"),
            ("/", "/sys/unified", "cgroup2", "rw"),
        ],
        {
            "sys/cpu,cpuacct/docker/abc/cpu.stat": "nr_periods 12\nnr_throttled 5\nthrottled_time 2500000000\n",
            "sys/cpu,cpuacct/docker/abc/cpuacct.usage": "1500000000\n",
            "sys/memory/docker/abc/memory.max_usage_in_bytes": "4096\n",
            "sys/memory/docker/abc/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
        },
    )
    group = cgroup.of(7, proc)
    assert group.version == 1
    assert cgroup.cpu_stat(group) == cgroup.CpuStat(12, 5, 2.5, 1.5)
    assert cgroup.memory_peak_bytes(group) == 4096
    assert cgroup.oom_kills(group) == 2


def test_version_2_seen_from_within_a_group(tmp_path: Path) -> None:
    """The controller's own mount shows the hierarchy from /outer down."""
    scope = "sys/docker-abc.scope"
    proc = laid_out(
        tmp_path,
        "0::/outer/docker-abc.scope\n",
        [("/outer", "/sys", "cgroup2", "rw")],
        {
            f"{scope}/cpu.stat": "nr_periods 12\nnr_throttled 5\nthrottled_usec 2500000\nusage_usec 1500000\n",
            f"{scope}/memory.peak": "4096\n",
            f"{scope}/memory.events": "low 0\nhigh 0\nmax 9\noom 1\noom_kill 2\n",
        },
    )
    group = cgroup.of(7, proc)
    assert group.version == 2
    assert cgroup.cpu_stat(group) == cgroup.CpuStat(12, 5, 2.5, 1.5)
    assert cgroup.memory_peak_bytes(group) == 4096
    assert cgroup.oom_kills(group) == 2
    (tmp_path / scope / "memory.peak").unlink()  # kernels before 5.19
    assert cgroup.memory_peak_bytes(group) is None


def test_without_a_quota_version_2_counts_no_periods(tmp_path: Path) -> None:
    proc = laid_out(
        tmp_path, "0::/a\n", [("/", "/sys", "cgroup2", "rw")], {"sys/a/cpu.stat": "usage_usec 10\nuser_usec 4\n"}
    )
    assert cgroup.cpu_stat(cgroup.of(7, proc)) == cgroup.CpuStat(0, 0, 0.0, 1e-5)


def test_a_group_that_is_gone_says_so(tmp_path: Path) -> None:
    proc = laid_out(tmp_path, "0::/a\n", [("/", "/sys", "cgroup2", "rw")], {"sys/a/cpu.stat": "usage_usec 10\n"})
    group = cgroup.of(7, proc)
    (tmp_path / "sys/a/cpu.stat").unlink()
    for read in (cgroup.cpu_stat, cgroup.oom_kills):
        with pytest.raises(TestbedError, match="cannot be read any more"):
            read(group)


def test_a_group_that_cannot_be_seen_is_refused(tmp_path: Path) -> None:
    proc = laid_out(tmp_path, "0::/a\n", [("/", "/elsewhere", "cgroup2", "rw")], {})
    with pytest.raises(TestbedError, match="'/a' is not mounted here"):
        cgroup.of(7, proc)
    (proc / "7" / "cgroup").write_text("1:name=systemd:/\n")
    with pytest.raises(TestbedError, match="in no control group"):
        cgroup.of(7, proc)
    with pytest.raises(TestbedError, match="process 8: its control group cannot be read"):
        cgroup.of(8, proc)

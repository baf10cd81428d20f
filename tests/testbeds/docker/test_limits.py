"""Quotas by hand, and what they do to a container that runs."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from docker_host import PATIENCE_S, ended, engine_or_skip, opened, python

from harness.errors import DeviceOutOfMemory, TestbedError
from testbeds.docker import cgroup
from testbeds.docker.engine import Engine
from testbeds.docker.limits import Limits, cpusets, period_s, resources

SPIN = "while True: pass"
MIB = 2**20


@pytest.mark.parametrize(
    ("cpus", "step_s", "period"),
    [
        (0.5, None, 0.1),  # nothing known: the kernel's usual period
        (0.5, 4.0, 0.1),  # a fifth of the step would be 800 ms
        (0.5, 0.2, 0.04),  # five periods a step
        (0.5, 0.01, 0.005),  # the shortest sensible
        (0.05, 0.01, 0.02),  # the least quota of 1 ms
        (0.002, None, 0.5),  # the same, beyond the usual period
        (4.0, 0.4, 0.08),
    ],
)
def test_a_step_spans_five_periods_within_the_kernels_bounds(cpus: float, step_s: float | None, period: float) -> None:
    assert period_s(cpus, step_s) == pytest.approx(period)
    Limits(cpus=cpus, cores=4, period_s=period_s(cpus, step_s))  # and is one that limits accept


def test_less_than_the_kernel_can_grant_is_refused() -> None:
    with pytest.raises(TestbedError, match=r"cpus: 0\.0005 is less than the kernel can grant \(0\.001\)"):
        period_s(0.0005)


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"cpus": 0.0}, "cpus: 0 is not above 0"),
        ({"cpus": 1.5, "cores": 1}, r"cpus: 1\.5 is not above 0 and at most the device's cores \(1\)"),
        ({"cores": 0}, "cores: 0 is none"),
        ({"period_s": 2.0}, "quota period: 2 s"),
        ({"cpus": 0.05, "period_s": 0.01}, r"less than the kernel's least quota, 0\.001 s"),
        ({"memory_bytes": MIB}, "less than the engine's least"),
    ],
)
def test_limits_that_cannot_be_are_refused(wrong: dict[str, float], why: str) -> None:
    with pytest.raises(TestbedError, match=why):
        Limits(**wrong)  # type: ignore[arg-type]


def test_the_engines_words_for_limits() -> None:
    said = resources(Limits(cpus=0.25, cores=2, period_s=0.02, memory_bytes=64 * MIB, cpuset="0-1"))
    assert said == {
        "cpu_period": 20_000,
        "cpu_quota": 5_000,
        "cpuset_cpus": "0-1",
        "mem_limit": 64 * MIB,
        "memswap_limit": 64 * MIB,
    }


def test_no_limits_lift_what_there_was() -> None:
    said = resources(Limits())
    assert said["cpu_quota"] == -1
    assert said["mem_limit"] == said["memswap_limit"] > 2**60
    assert said["cpuset_cpus"] == Path("/sys/devices/system/cpu/online").read_text().strip()


def test_cores_are_dealt_whole_or_not_at_all() -> None:
    assert cpusets({"a": 2, "b": 1, "c": 3}, 6) == {"a": "0-1", "b": "2", "c": "3-5"}
    assert cpusets({"a": 2, "b": 1, "c": 3}, 5) == {"a": None, "b": None, "c": None}
    assert cpusets({}, 0) == {}


async def share(engine: Engine, name: str, over_s: float = 2.0) -> float:
    """The processors' worth of time that a node gets."""
    group = engine.group(name)
    used, since = cgroup.cpu_stat(group).usage_s, time.perf_counter()
    await asyncio.sleep(over_s)
    return (cgroup.cpu_stat(group).usage_s - used) / (time.perf_counter() - since)


def test_a_quota_holds_and_can_be_lifted() -> None:
    """Margins are wide: the host may be busy. Lifted, a busy loop gets clearly more than the quota allowed."""
    engine_or_skip()

    async def main() -> None:
        async with opened() as engine:
            await python(engine, "device-0", SPIN)
            group = engine.group("device-0")
            assert cgroup.cpu_stat(group).throttled == 0
            await engine.limit("device-0", Limits(cpus=0.25, period_s=0.02))
            before = cgroup.cpu_stat(group)
            assert 0.15 < await share(engine, "device-0") < 0.3
            after = cgroup.cpu_stat(group)
            assert after.periods > before.periods
            assert after.throttled - before.throttled > (after.periods - before.periods) / 2
            assert after.throttled_s > before.throttled_s
            await engine.limit("device-0", Limits())
            throttled = cgroup.cpu_stat(group).throttled
            deadline = time.monotonic() + PATIENCE_S
            while await share(engine, "device-0", 0.5) < 0.35:
                assert time.monotonic() < deadline
            assert cgroup.cpu_stat(group).throttled <= throttled + 1

    asyncio.run(main())


def test_a_container_is_kept_on_its_cores() -> None:
    engine_or_skip()
    script = "import os, time\nwhile True: print(sorted(os.sched_getaffinity(0)), flush=True); time.sleep(0.05)"

    async def says(engine: Engine, wanted: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while (await engine.logs("device-0", 1)).strip() != wanted:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)

    async def main() -> None:
        async with opened() as engine:
            await python(engine, "device-0", script, limits=Limits(cpuset="0"))
            await says(engine, "[0]")
            await engine.limit("device-0", Limits())
            online = resources(Limits())["cpuset_cpus"]
            ranges = (part.split("-") for part in online.split(","))
            await says(engine, str([core for part in ranges for core in range(int(part[0]), int(part[-1]) + 1)]))

    asyncio.run(main())


@pytest.mark.parametrize("running", [False, True])
def test_work_that_does_not_fit_is_killed_and_told_from_a_kill(running: bool) -> None:
    """The limit is there from the start, or comes while the container runs."""
    engine_or_skip()
    script = "import sys, time\nsys.stdout.write('ready\\n'); sys.stdout.flush()\n"
    script += "time.sleep(2.0)\nx = bytearray(b'1') * 2**28\nprint('fits')"

    async def main() -> None:
        async with opened() as engine:
            limits = Limits(memory_bytes=64 * MIB)
            await python(engine, "device-0", script, limits=None if running else limits)
            if running:
                await engine.limit("device-0", limits)
            group = engine.group("device-0")
            assert cgroup.oom_kills(group) == 0
            state = await ended(engine, "device-0")
            assert (state.exit_code, state.oom_killed) == (137, True)
            assert "fits" not in await engine.logs("device-0")

    asyncio.run(main())


def test_a_memory_limit_can_be_lifted_and_the_peak_is_known() -> None:
    engine_or_skip()
    script = "import time\nx = bytearray(b'1') * 2**27\nprint('fits', flush=True)\ntime.sleep(600)"

    async def main() -> None:
        async with opened() as engine:
            await python(
                engine, "device-0", "import time; time.sleep(1)\n" + script, limits=Limits(memory_bytes=32 * MIB)
            )
            await engine.limit("device-0", Limits())
            deadline = time.monotonic() + PATIENCE_S
            while "fits" not in await engine.logs("device-0"):
                assert time.monotonic() < deadline
                assert (await engine.state("device-0")).running
                await asyncio.sleep(0.05)
            peak = cgroup.memory_peak_bytes(engine.group("device-0"))
            assert peak is None or 128 * MIB <= peak < 256 * MIB

    asyncio.run(main())


def test_a_limit_below_what_is_held_is_work_that_does_not_fit() -> None:
    """With cgroup v1 the engine refuses; with v2 the kernel kills."""
    engine_or_skip()
    script = "import time\nx = bytearray(b'1') * 2**27\nprint('ready', flush=True)\ntime.sleep(600)"

    async def main() -> None:
        async with opened() as engine:
            await python(engine, "device-0", script)
            deadline = time.monotonic() + PATIENCE_S
            while "ready" not in await engine.logs("device-0"):
                assert time.monotonic() < deadline
                await asyncio.sleep(0.05)
            if engine.group("device-0").version == 1:
                with pytest.raises(DeviceOutOfMemory, match=r"device-0 holds more memory already than 33554432 bytes"):
                    await engine.limit("device-0", Limits(memory_bytes=32 * MIB))
            else:
                await engine.limit("device-0", Limits(memory_bytes=32 * MIB))
                assert (await ended(engine, "device-0")).oom_killed

    asyncio.run(main())


def test_limits_that_the_engine_refuses_are_told_by_node() -> None:
    engine_or_skip()

    async def main() -> None:
        async with opened() as engine:
            await python(engine, "device-0", SPIN)
            with pytest.raises(TestbedError, match="device-0: the engine does not apply its limits"):
                await engine.limit("device-0", Limits(cpuset="9999"))

    asyncio.run(main())

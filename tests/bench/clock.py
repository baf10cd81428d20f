"""The virtual clock beside SimPy: 500 devices x 200 round trips through one server.

A device works 1.0 + 0.001 i s, its message takes 0.1 s, the server works 1 ms, first come first served, the reply
takes 0.1 s. Three programs: SimPy; the kernel alone; the full stack (Node, mailbox, links, prices, records).
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Generator
from math import inf
from typing import Any

import simpy

from harness.cost.work import Operators, Work
from harness.node import Node
from harness.record import Recorder
from harness.topology import SERVER, Topology
from profiles.device import DeviceProfile
from testbeds.virtual.driver import VirtualDriver
from testbeds.virtual.fair import Link
from testbeds.virtual.kernel import Kernel
from testbeds.virtual.settings import Machine, Options

DEVICES, TRIPS, PAIRS = 500, 200, 5
TARGETS = {"kernel alone": 4.0, "full stack": 1.0}
WHY = """Where the full stack's time goes: a round trip is two computations, two messages, two receives and the wake-ups
they cause, 57 Python calls and 50 calls of built-ins (counted by cProfile): post, message, handle, channel, link,
arrival, mailbox and wait are an object or a row each. SimPy's program has five events and neither messages, links,
matching nor records. Fewer calls would need compiled code; that is the way on from here."""


def with_simpy() -> float:
    """Return the finishing time of the scenario in SimPy."""
    env = simpy.Environment()
    server = simpy.Resource(env)

    def device(index: int) -> Generator[Any, Any, None]:
        for _ in range(TRIPS):
            yield env.timeout(1.0 + 0.001 * index)
            yield env.timeout(0.1)
            with server.request() as request:
                yield request
                yield env.timeout(0.001)
            yield env.timeout(0.1)

    for index in range(DEVICES):
        env.process(device(index))
    env.run()
    return float(env.now)


def with_kernel() -> float:
    """Return the same from the kernel alone: processes as generators of the times at which they go on."""
    kernel = Kernel()
    free_at = 0.0

    def device(index: int) -> Generator[float, None, None]:
        nonlocal free_at
        work = 1.0 + 0.001 * index
        for _ in range(TRIPS):
            yield kernel.now + work
            yield kernel.now + 0.1
            free_at = max(kernel.now, free_at) + 0.001
            yield free_at
            yield kernel.now + 0.1

    for index in range(DEVICES):
        kernel.at(0.0, device(index).send)
    kernel.run()
    return kernel.now


class _Worker:
    """Does nothing: its price is one operator."""

    signature = "worker"

    def work(self) -> None:
        """Nothing."""


def _profile(seconds: float) -> DeviceProfile:
    return DeviceProfile(
        id=f"{seconds} s",
        title="",
        processor="cpu",
        cores=1,
        memory_bytes=2**40,
        conv_flops_per_s=1.0,
        matmul_flops_per_s=1.0,
        depthwise_flops_per_s=1.0,
        depthwise_backward_flops_per_s=1.0,
        memory_bytes_per_s=1.0,
        operator_s=seconds,
    )


def with_full_stack() -> float:
    """Return the same from methods' coroutines on the virtual testbed, every interval and transfer recorded."""
    nodes = Topology.numbered(DEVICES)
    message_bytes = 64
    rate = message_bytes / 0.1
    machines = {
        name: Machine(_profile(1.0 + 0.001 * index), Link(f"{name}.up", rate), Link(f"{name}.down", rate))
        for index, name in enumerate(nodes.devices)
    }
    machines[SERVER] = Machine(_profile(0.001), Link("server.up", inf), Link("server.down", inf))
    driver = VirtualDriver(nodes, machines, Recorder(), Options(framing="none"))
    worker = _Worker()
    driver.prices.put(worker.work, (), Work((Operators("memory", "forward", 0.0, 0.0),)))

    async def device(node: Node) -> None:
        for _ in range(TRIPS):
            await node.compute(worker.work)
            node.post(SERVER, "request")
            await node.recv("reply")

    async def server(node: Node) -> None:
        for _ in range(TRIPS * DEVICES):
            message = await node.recv("request")
            await node.compute(worker.work)
            node.post(message.src, "reply")

    for name in nodes.names:
        driver.add(name, server if name == SERVER else device, 0)
    return driver.run("server").end_s


def _timed(program: Callable[[], float]) -> tuple[float, float]:
    gc.collect()
    began = time.perf_counter()
    end_s = program()
    return time.perf_counter() - began, end_s


def report() -> str:
    """Measure and return the section."""
    programs = {"SimPy": with_simpy, "kernel alone": with_kernel, "full stack": with_full_stack}
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    ends: dict[str, float] = {}
    for _ in range(PAIRS):
        for name, program in programs.items():
            took, ends[name] = _timed(program)
            seconds[name].append(took)
    trips = DEVICES * TRIPS
    lines = [
        "## The virtual clock",
        "",
        f"{DEVICES} devices x {TRIPS} round trips through one server (tests/bench/clock.py), {PAIRS} runs each.",
        "",
        "| program | round trips/s | us per round trip | times SimPy's speed | target | ends at (s) |",
        "|---|---|---|---|---|---|",
    ]
    for name in programs:
        took = statistics.median(seconds[name])
        ratio = statistics.median(s / o for s, o in zip(seconds["SimPy"], seconds[name], strict=True))
        target = TARGETS.get(name)
        verdict = "" if target is None else f"{target:.0f} ({'met' if ratio >= target else 'missed'})"
        speed = f"{trips / took:,.0f} | {took / trips * 1e6:.2f} | {ratio:.2f}"
        lines.append(f"| {name} | {speed} | {verdict} | {ends[name]:.9f} |")
    worst = max(abs(end - ends["SimPy"]) for end in ends.values())
    lines += ["", f"Largest difference of the finishing times: {worst:.1e} s.", "", WHY, ""]
    return "\n".join(lines)

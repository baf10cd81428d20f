"""The virtual testbed against SimPy: the same scenario gives the same times to 1e-9 s.

A scenario: devices that compute, send a request, and wait for the answer; servers' lanes that answer, sharing one
processor first come first served. Links have a delay and no limit, which is all that SimPy can say about them.
Durations come from a seeded generator, so that no two events are due at the same time by accident.
"""

from __future__ import annotations

import random
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import pytest
import simpy
from bench_nodes import burn, run
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.node import Node
from harness.topology import SERVER

Log = dict[str, list[float]]


@dataclass(frozen=True)
class Scenario:
    """Per device: seconds of a tick, delay, ticks of each computation, pauses; of the server: tick, ticks, lanes."""

    ticks_s: tuple[float, ...]
    delays_s: tuple[float, ...]
    work: tuple[tuple[int, ...], ...]
    pauses_s: tuple[float, ...]
    server_tick_s: float
    serves: tuple[int, ...]
    lanes: int

    @staticmethod
    def drawn(seed: int, devices: int, steps: int, lanes: int, load: float) -> Scenario:
        """Draw one; `load` = what the server would be asked to do, in units of what it can."""
        draw = random.Random(seed)
        return Scenario(
            tuple(draw.uniform(0.5, 2.0) for _ in range(devices)),
            tuple(draw.choice([0.0, draw.uniform(0.0, 1.0)]) for _ in range(devices)),
            tuple(tuple(draw.randint(1, 4) for _ in range(steps)) for _ in range(devices)),
            tuple(draw.uniform(0.0, 0.5) for _ in range(devices)),
            load * draw.uniform(0.9, 1.1) / devices,
            tuple(draw.randint(1, 3) for _ in range(devices)),
            lanes,
        )

    @property
    def names(self) -> list[str]:
        return [f"device-{i}" for i in range(len(self.ticks_s))]


def by_ammeter(scenario: Scenario) -> tuple[Log, list[tuple[str, float]], float]:
    answered: Log = {name: [] for name in scenario.names}
    served: list[tuple[str, float]] = []

    async def device(node: Node) -> None:
        index = scenario.names.index(node.name)
        for ticks in scenario.work[index]:
            await node.compute(burn, ticks)
            node.post(SERVER, "request")
            await node.recv("answer")
            answered[node.name].append(node.now_s)
            await node.sleep(scenario.pauses_s[index])

    async def lane(node: Node) -> None:
        while True:
            request = await node.recv("request")
            await node.compute(burn, scenario.serves[scenario.names.index(request.src)])
            served.append((request.src, node.now_s))
            node.post(request.src, "answer")

    async def server(node: Node) -> None:
        for _ in range(scenario.lanes):
            node.spawn(lane(node))
        while any(len(times) < len(work) for times, work in zip(answered.values(), scenario.work, strict=True)):
            await node.sleep(0.7)

    machines: dict[str, Any] = {
        name: {"tick_s": tick, "latency_s": delay}
        for name, tick, delay in zip(scenario.names, scenario.ticks_s, scenario.delays_s, strict=True)
    }
    machines[SERVER] = {"tick_s": scenario.server_tick_s}
    bench = run({**dict.fromkeys(scenario.names, device), SERVER: server}, machines)
    busy_s = sum(end - start for start, end in bench.intervals("compute", node=SERVER))
    return answered, served, busy_s


def by_simpy(scenario: Scenario) -> tuple[Log, list[tuple[str, float]], float]:
    answered: Log = {name: [] for name in scenario.names}
    served: list[tuple[str, float]] = []
    busy_s = 0.0
    env = simpy.Environment()
    requests = simpy.Store(env)
    answers = {name: simpy.Store(env) for name in scenario.names}
    processor = simpy.Resource(env, capacity=1)
    delays_s = dict(zip(scenario.names, scenario.delays_s, strict=True))

    def carried(delay_s: float, store: Any, item: Any) -> Generator[Any, Any, None]:
        yield env.timeout(delay_s)
        yield store.put(item)

    def device(index: int, name: str) -> Generator[Any, Any, None]:
        for ticks in scenario.work[index]:
            yield env.timeout(ticks * scenario.ticks_s[index])
            env.process(carried(delays_s[name], requests, name))
            yield answers[name].get()
            answered[name].append(env.now)
            yield env.timeout(scenario.pauses_s[index])

    def lane() -> Generator[Any, Any, None]:
        nonlocal busy_s
        while True:
            name = yield requests.get()
            with processor.request() as turn:
                yield turn
                seconds = scenario.serves[scenario.names.index(name)] * scenario.server_tick_s
                yield env.timeout(seconds)
                busy_s += seconds
            served.append((name, env.now))
            env.process(carried(delays_s[name], answers[name], name))

    for index, name in enumerate(scenario.names):
        env.process(device(index, name))
    for _ in range(scenario.lanes):
        env.process(lane())
    env.run()
    return answered, served, busy_s


def agree(scenario: Scenario) -> None:
    answered, served, busy_s = by_ammeter(scenario)
    wanted_answered, wanted_served, wanted_busy_s = by_simpy(scenario)
    assert [name for name, _ in served] == [name for name, _ in wanted_served]
    assert [time for _, time in served] == pytest.approx([time for _, time in wanted_served], abs=1e-9, rel=0)
    for name, times in answered.items():
        assert len(times) == len(scenario.work[0])
        assert times == pytest.approx(wanted_answered[name], abs=1e-9, rel=0)
    assert busy_s == pytest.approx(wanted_busy_s, abs=1e-9, rel=0)


@given(
    st.integers(0, 2**32),
    st.integers(1, 6),
    st.integers(1, 4),
    st.integers(1, 3),
    st.sampled_from([0.1, 0.5, 1.0, 3.0]),
)
@settings(max_examples=60, deadline=None)
def test_random_scenarios(seed: int, devices: int, steps: int, lanes: int, load: float):
    agree(Scenario.drawn(seed, devices, steps, lanes, load))


@pytest.mark.parametrize("load", [0.3, 2.0], ids=["the server waits", "the devices queue"])
def test_many_devices(load: float):
    """The 500-device scenario, a tenth of it."""
    agree(Scenario.drawn(7, 50, 10, 4, load))

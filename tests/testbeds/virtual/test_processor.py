"""testbeds/virtual/processor.py through the Node: what is run, when, and what jitter does to prices."""

from __future__ import annotations

import dataclasses
import math
import statistics

import pytest
import torch
from bench_nodes import Bench, burn, nothing, profile, run

from harness.node import Node
from testbeds.virtual.fair import Link
from testbeds.virtual.settings import Machine

CALLS: list[int] = []


def called(number: int) -> None:
    CALLS.append(number)


def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return a @ b


def doubled(values: torch.Tensor) -> torch.Tensor:
    return values * 2


def unlimited(name: str, **prices: float) -> Machine:
    return Machine(
        dataclasses.replace(profile(), **prices), Link(f"{name}.up", math.inf), Link(f"{name}.down", math.inf)
    )


@pytest.mark.parametrize(("timing", "runs"), [(True, 1), (False, 5)])
def test_timing_runs_a_function_once_and_learn_always(timing: bool, runs: int):
    CALLS.clear()

    async def server(node: Node) -> None:
        for _ in range(5):
            await node.compute(called, 7)

    bench = run({"server": server}, timing=timing)
    assert [7] * runs == CALLS
    assert len(bench.rows("compute", what="called")) == 5


def test_the_price_is_that_of_the_profile():
    """A product of [2, 4] and [4, 8]: 128 FLOPs in one operator; twice a [2, 8]: 64 + 64 bytes in one."""

    async def server(node: Node) -> None:
        out = await node.compute(product, torch.zeros(2, 4, device="meta"), torch.zeros(4, 8, device="meta"))
        await node.compute(doubled, out)

    machine = unlimited("server", operator_s=0.25, matmul_flops_per_s=64.0, memory_bytes_per_s=32.0)
    bench = run({"server": server}, {"server": machine})
    assert bench.intervals("compute") == [(0.0, 2.25), (2.25, 6.5)]
    assert [row["flops"] for row in bench.rows("compute")] == [128.0, 0.0]


def test_a_queued_computation_of_a_cancelled_activity_is_not_run():
    CALLS.clear()

    async def worker(node: Node, number: int) -> None:
        await node.compute(called, number)

    async def server(node: Node) -> None:
        first = node.compute(burn, 4)
        doomed = node.spawn(worker(node, 1))
        kept = node.spawn(worker(node, 2), daemon=False)
        await node.sleep(1)
        doomed.cancel()
        await first
        await node.join(kept)

    bench = run({"server": server}, timing=False)
    assert CALLS == [2]
    assert len(bench.rows("compute", what="called")) == 1


def test_a_queued_computation_that_another_activity_awaits_is_run_all_the_same():
    """Else whoever is left would wait for ever."""
    CALLS.clear()
    got = []

    async def server(node: Node) -> None:
        shared: list = []

        async def first() -> None:
            shared.append(node.compute(called, 1))
            await shared[0]

        async def second() -> None:
            got.append(await shared[0])

        busy = node.compute(burn, 5)
        doomed = node.spawn(first())
        await node.sleep(0.0)
        survivor = node.spawn(second(), daemon=False)
        await node.sleep(0.0)
        doomed.cancel()
        await busy
        await node.join(survivor)

    run({"server": server}, timing=False)
    assert CALLS == [1]
    assert got == [None]


def test_the_queue_goes_on_after_an_error():
    async def worker(node: Node) -> None:
        await node.compute(burn, 2)

    async def server(node: Node) -> None:
        first = node.compute(burn, 1)
        wrong = node.compute(product, torch.zeros(2, 3), torch.zeros(2, 3))
        worker_ = node.spawn(worker(node), daemon=False)
        await first
        with pytest.raises(RuntimeError, match="shapes"):
            await wrong
        await node.join(worker_)
        assert node.now_s == 3.0

    run({"server": server}, timing=False)


def jittered(jitter: float, seed: int, name: str = "device-0") -> list[float]:
    async def device(node: Node) -> None:
        for _ in range(400):
            await node.compute(burn, 1)

    async def server(node: Node) -> None:
        await node.sleep(10_000)

    bench = run({"device-0": device, "device-1": device, "server": server}, compute_jitter=jitter, seed=seed)
    return [end - start for start, end in bench.intervals("compute", node=name)]


def test_jitter_is_a_seeded_lognormal_factor_of_its_own_per_node():
    durations = jittered(0.25, 1)
    logs = [math.log(duration) for duration in durations]
    assert abs(statistics.fmean(logs)) < 0.05
    assert abs(statistics.stdev(logs) - 0.25) < 0.04
    assert jittered(0.25, 1) == durations
    assert jittered(0.25, 2) != durations
    assert jittered(0.25, 1, "device-1") != durations


def test_no_jitter_is_exactly_the_price():
    assert set(jittered(0.0, 1)) == {1.0}


def test_the_peak_is_recorded_for_every_node():
    async def device(node: Node) -> None:
        await node.compute(doubled, torch.zeros(256, device="meta"))

    bench = Bench({"device-0": device, "device-1": nothing, "server": lambda node: node.sleep(8)}).run()
    assert {row["node"]: row["number"] for row in bench.rows("mark", kind="peak_memory")} == {
        "device-0": 1024,
        "device-1": 0,
        "server": 0,
    }

"""harness/worker/processor.py: first come first served on one thread, paced, counted, and the same random numbers."""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from bench_nodes import Bench
from worker_bench import SEED, Desk, desk, run, until

from harness import record
from harness.cost.work import Work
from harness.errors import ProtocolError
from harness.node import Node

WORK: list[Any] = []
GATE, BEGUN = threading.Event(), threading.Event()


def noted(number: int) -> int:
    WORK.append(number)
    return number


def gated() -> None:
    BEGUN.set()
    GATE.wait(30)


def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return a @ b


def dropped_out(values: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.dropout(values, 0.5)


def fails(number: int) -> None:
    raise ValueError(f"it has failed: {number}")


def exhausted() -> int:
    return next(iter(()))


def leaves() -> None:
    raise SystemExit(4)


def nap() -> None:
    time.sleep(0.03)


def pace_of(seconds: float) -> Callable[[Work, int], float]:
    """Return what makes every computation as long."""
    return lambda *_: seconds


@pytest.fixture(autouse=True)
def _clean() -> None:
    WORK.clear()
    GATE.clear()
    BEGUN.clear()


def played(role: Any, **options: Any) -> Desk:
    """Play a role alone and return its worker."""

    async def scenario() -> Desk:
        async with desk(**options) as bench:
            try:
                await bench.play(role)
            finally:
                GATE.set()
        return bench

    return run(scenario)


def test_computations_are_served_one_at_a_time_in_the_order_they_were_asked_for():
    async def ask(node: Node, number: int) -> None:
        await node.compute(noted, number)

    async def server(node: Node) -> None:
        first = node.compute(gated)
        askers = [node.spawn(ask(node, number), daemon=False) for number in (3, 1, 2)]
        await node.sleep(0.01)
        assert WORK == []
        assert node._driver.processor.computing
        GATE.set()
        await first
        await node.join(*askers)
        assert not node._driver.processor.computing

    rows = played(server).take()["compute"]
    assert WORK == [3, 1, 2]
    assert [row["what"] for row in rows] == ["gated", "noted", "noted", "noted"]
    assert [row["lane"] for row in rows] == [0, 1, 2, 3]
    assert all(one["end_s"] <= other["start_s"] for one, other in pairwise(rows))


def test_a_queued_computation_of_a_cancelled_activity_is_not_run():
    async def ask(node: Node, number: int) -> None:
        await node.compute(noted, number)

    async def server(node: Node) -> None:
        first = node.compute(gated)
        doomed = node.spawn(ask(node, 1))
        kept = node.spawn(ask(node, 2), daemon=False)
        await node.sleep(0.01)
        doomed.cancel()
        GATE.set()  # in the same turn of the loop: it is withdrawn at once
        await first
        await node.join(kept)
        await until(lambda: not node._driver.processor.computing)

    rows = played(server).take()["compute"]
    assert WORK == [2]
    assert [row["what"] for row in rows] == ["gated", "noted"]


def test_the_first_of_each_is_traced_and_the_others_only_made():
    async def server(node: Node) -> None:
        for _ in range(3):
            assert (await node.compute(product, torch.ones(2, 4), torch.ones(4, 8))).shape == (2, 8)

    bench = played(server)
    rows = bench.take()["compute"]
    assert [row["flops"] for row in rows] == [128.0] * 3
    assert {row["tier"] for row in rows} == {record.TIERS.index("clocked")}
    (timing,) = bench.processor.timings()
    assert (timing["name"], timing["count"]) == ("product", 2)
    assert timing["seconds"] == pytest.approx(sum(row["end_s"] - row["start_s"] for row in rows[1:]) / 2)


def test_errors_come_out_of_the_await_and_the_queue_goes_on():
    async def server(node: Node) -> None:
        with pytest.raises(ValueError, match="it has failed: 5"):
            await node.compute(fails, 5)
        with pytest.raises(ProtocolError, match="StopIteration came out of compute"):
            await node.compute(exhausted)
        with pytest.raises(ProtocolError, match="SystemExit came out of compute"):
            await node.compute(leaves)
        with pytest.raises(ProtocolError, match="has no identity"):
            await node.compute(lambda: 1)
        with pytest.raises(ProtocolError, match="has no identity"):
            await node.compute(partial(noted, 1))
        with pytest.raises(ProtocolError, match="no `signature`"):
            await node.compute(noted, object())
        assert await node.compute(noted, 6) == 6

    bench = played(server)
    assert [row["what"] for row in bench.take()["compute"]] == ["noted"]
    assert not bench.processor.computing


def test_a_paced_computation_takes_as_long_as_it_has_to_and_the_mean_is_kept():
    """What a sleep overshoots the next one pays back: no more than one overshoot is ever left."""
    asked: list[tuple[float, int]] = []

    def pace(work: Work, samples: int) -> float:
        asked.append((work.flops, samples))
        return 0.01

    async def server(node: Node) -> None:
        for _ in range(30):
            await node.compute(product, torch.ones(2, 4), torch.ones(4, 8))

    bench = played(server, pace=pace, dilation=0.5)
    lengths = [row["end_s"] - row["start_s"] for row in bench.take()["compute"]]
    assert asked == [(128.0, 2)]
    owed_s = bench.processor._owed_s / 0.5
    unpaid = [length - 0.01 for length in lengths if length > 0.01]
    assert bench.processor.paced == 30
    assert sum(lengths) - bench.processor.late_s == pytest.approx(30 * 0.01 + owed_s, rel=0.05)
    assert len(unpaid) >= 1  # no clock is exact


def test_a_computation_that_takes_longer_than_it_may_is_counted_and_not_slowed():
    async def server(node: Node) -> None:
        await node.compute(nap)
        await node.compute(nap)

    bench = played(server, pace=pace_of(0.001), dilation=2.0)
    lengths = [row["end_s"] - row["start_s"] for row in bench.take()["compute"]]
    processor = bench.processor
    assert (processor.paced, processor.late) == (2, 2)
    assert processor.late_s == pytest.approx(sum(lengths) - 2 * 0.001, rel=0.01)


def test_a_rehearsal_leaves_no_row_no_count_and_no_random_number():
    async def scenario() -> None:
        async with desk(pace=pace_of(0.0)) as bench:
            state = torch.get_rng_state()
            seconds = await bench.processor.rehearse(True, nap)
            assert seconds >= 0.03
            await bench.processor.rehearse(True, dropped_out, torch.ones(64))
            await bench.processor.rehearse(False, dropped_out, torch.ones(64))
            assert torch.equal(torch.get_rng_state(), state)
            assert bench.take()["compute"] == []
            assert bench.processor.timings() == []
            processor = bench.processor
            assert (processor.paced, processor.late, processor.late_s) == (0, 0, 0.0)
            assert not processor.computing

    run(scenario)


def test_a_rehearsal_is_as_slow_as_the_device_unless_told_not_to_be():
    async def scenario() -> None:
        async with desk(pace=pace_of(0.05), dilation=2.0) as bench:
            assert await bench.processor.rehearse(True, noted, 1) >= 0.099
            assert await bench.processor.rehearse(False, noted, 1) < 0.099

    run(scenario)


async def _drawing(node: Node) -> None:
    """Lanes that draw in any order, between computations that draw nothing."""
    found: dict[int, list[torch.Tensor]] = {}

    async def draw(lane: int) -> None:
        for _ in range(3):
            await node.compute(product, torch.ones(2, 2), torch.ones(2, 2))
            found.setdefault(lane, []).append(await node.compute(dropped_out, torch.ones(64)))

    lanes = [node.spawn(draw(lane), daemon=False) for lane in range(3)]
    await draw(99)
    await node.join(*lanes)
    WORK.append({lane: torch.stack(values) for lane, values in found.items()})


def test_random_numbers_are_those_of_the_virtual_clock():
    played(_drawing)
    Bench({"server": _drawing}, seed=SEED, timing=False).run()
    real, virtual = WORK
    assert real.keys() == virtual.keys() == {0, 1, 2, 99}
    for lane, values in real.items():
        assert torch.equal(values, virtual[lane]), lane
    assert len({values.numpy().tobytes() for values in real.values()}) == 4


def test_closing_does_not_wait_for_a_pace_and_charges_it_in_full():
    async def scenario() -> None:
        async with desk(pace=pace_of(3600.0)) as bench:
            activity = asyncio.ensure_future(bench.play(lambda node: node.compute(noted, 1)))
            await until(lambda: WORK)
            activity.cancel()
            await bench.driver.stop(5.0)
            assert await asyncio.to_thread(bench.processor.close, 30.0)
            (row,) = bench.take()["compute"]
            assert row["end_s"] - row["start_s"] == 3600.0  # the run's end cuts it, with its share

    run(scenario)


def test_a_computation_that_never_ends_is_left_alone_in_time():
    async def scenario() -> None:
        async with desk() as bench:
            playing = asyncio.ensure_future(bench.play(lambda node: node.compute(gated)))
            await until(BEGUN.is_set)
            await bench.driver.stop(5.0)
            await playing
            assert not await asyncio.to_thread(bench.processor.close, 0.01)
            GATE.set()

    run(scenario)


def test_what_waits_when_it_is_closed_is_not_begun():
    async def scenario() -> None:
        async with desk() as bench:
            first, second = bench.processor.rehearse(False, gated), bench.processor.rehearse(False, noted, 1)
            closing = asyncio.ensure_future(asyncio.to_thread(bench.processor.close, 30.0))
            await until(bench.processor._halted.is_set)
            GATE.set()
            assert await closing
            await first
            assert await second is None
            assert WORK == []

    run(scenario)


def test_a_finished_computation_holds_its_value_alone():
    """Neither the thread nor the handle that the method has kept holds the arguments."""

    async def server(node: Node) -> None:
        values = torch.ones(4, 4)
        job = node.compute(product, values, values)
        await job
        arguments = weakref.ref(values)
        del values
        await until(lambda: arguments() is None)
        assert torch.equal(await job, torch.full((4, 4), 4.0))

    played(server)

"""harness/worker/futures.py through the Node: what a wait writes, and what a cancellation takes with it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from worker_bench import Desk, desk, run, until

from harness import record
from harness.errors import ProtocolError
from harness.message import HEADER_BYTES, Message
from harness.node import Node

WORK: list[int] = []


def noted(number: int) -> int:
    WORK.append(number)
    return number


def letter(tag: str, serial: int = 5, src: str = "device-0") -> Message:
    message = Message(src, "server", tag, None, {}, "data", HEADER_BYTES)
    message.serial = serial
    return message


async def turns(count: int = 3) -> None:
    """Let the loop go round."""
    for _ in range(count):
        await asyncio.sleep(0)


def waits(bench: Desk, kind: int) -> list[dict[str, Any]]:
    return [row for row in bench.take()["wait"] if row["kind"] == kind]


def test_a_wait_is_written_with_its_times_and_the_message_that_ended_it():
    async def scenario() -> None:
        async with desk() as bench:

            async def server(node: Node) -> None:
                assert (await node.recv("x")).serial == 42

            playing = asyncio.ensure_future(bench.play(server))
            await asyncio.sleep(0.02)
            before_s = bench.clock.now()
            bench.driver.deliver(letter("x", 42))
            after_s = bench.clock.now()
            await playing
            (row,) = waits(bench, record.RECV)
            assert (row["node"], row["lane"], row["tag"], row["cause"]) == ("server", 0, "x", 42)
            assert 0 <= row["start_s"] < before_s <= row["end_s"] <= after_s

    run(scenario)


def test_what_is_there_already_is_no_wait():
    async def scenario() -> None:
        async with desk() as bench:
            bench.driver.deliver(letter("x"))
            await bench.play(lambda node: node.recv("x"))
            assert waits(bench, record.RECV) == []

    run(scenario)


def test_a_wait_ends_when_its_value_is_there_not_when_the_loop_comes_to_it():
    """The loop is held up between the value and the activity: that is overhead, no wait."""

    async def scenario() -> None:
        async with desk() as bench:
            playing = asyncio.ensure_future(bench.play(lambda node: node.recv("x")))
            await until(lambda: bench.node.mailbox.waits())
            bench.driver.deliver(letter("x"))
            there_s = bench.clock.now()
            while bench.clock.now() < there_s + 0.05:
                pass
            await playing
            (row,) = waits(bench, record.RECV)
            assert row["end_s"] <= there_s

    run(scenario)


@pytest.mark.parametrize(
    ("kind", "begin"),
    [
        (record.RECV, lambda node, _: node.recv("x")),
        (record.GATHER, lambda node, _: node.gather("x")),
        (record.SLEEP, lambda node, _: node.sleep(60)),
        (record.CHANNEL, lambda _, channel: channel.get()),
    ],
)
def test_a_cancelled_wait_of_its_own_is_over_and_is_written_without_a_cause(kind: int, begin: Any):
    async def scenario() -> None:
        async with desk() as bench:
            ended = []

            async def listen(node: Node, channel: Any) -> None:
                try:
                    await begin(node, channel)
                finally:
                    ended.append(node.now_s)

            async def server(node: Node) -> None:
                channel = node.channel(1)
                listener = node.spawn(listen(node, channel))
                await node.sleep(0.01)
                listener.cancel()
                assert await listener is None
                channel.put_nowait("kept")
                assert await channel.get() == "kept"  # the dead listener has not taken the wake-up

            await bench.play(server)
            (row,) = [row for row in waits(bench, kind) if row["lane"] == 1]
            assert row["cause"] == -1
            assert row["start_s"] < row["end_s"] <= ended[0]

    run(scenario)


def test_a_cancelled_listener_does_not_swallow_a_message():
    async def scenario() -> None:
        async with desk() as bench:

            async def listen(node: Node) -> None:
                await node.recv("x")
                raise AssertionError("it was cancelled")

            async def server(node: Node) -> None:
                listener = node.spawn(listen(node))
                await node.sleep(0.01)
                listener.cancel()
                message = await node.recv("x", timeout_s=30)
                assert message is not None

            playing = asyncio.ensure_future(bench.play(server))
            await asyncio.sleep(0.05)
            bench.driver.deliver(letter("x"))
            await playing
            assert (bench.node.mailbox.consumed, bench.node.mailbox.num_unread) == (1, 0)

    run(scenario)


def test_a_wait_cancelled_between_its_value_and_its_turn_is_written_with_its_cause():
    """As on the virtual clock: the message has been read, the books are right, and its wait says what ended it."""

    async def scenario() -> None:
        async with desk() as bench:
            seen = []

            async def listen(node: Node) -> None:
                seen.append(await node.recv("x"))

            async def server(node: Node) -> None:
                listener = node.spawn(listen(node))
                await node.sleep(0.005)
                assert bench.driver.deliver(letter("x", 9))
                listener.cancel()
                await listener

            await bench.play(server)
            assert seen == []
            assert (bench.node.mailbox.consumed, bench.node.mailbox.num_unread) == (1, 0)
            (row,) = waits(bench, record.RECV)
            assert row["cause"] == 9

    run(scenario)


def test_what_several_wait_for_outlives_the_cancellation_of_one():
    async def scenario() -> None:
        async with desk() as bench:
            got: list[Any] = []

            async def work(node: Node) -> str:
                await node.sleep(0.05)
                return "done"

            async def wait(thing: Any) -> None:
                got.append(await thing)

            async def server(node: Node) -> None:
                worker = node.spawn(work(node), daemon=False)
                first, second = node.spawn(wait(worker), daemon=False), node.spawn(wait(worker))
                await node.sleep(0.01)
                second.cancel()
                await node.join(first)

            await bench.play(server)
            assert got == ["done"]
            joins = {row["lane"]: row["cause"] for row in waits(bench, record.JOIN)}
            assert joins == {2: 1, 3: -1, 0: 2}  # by the lane that ended it; the cancelled one by nothing

    run(scenario)


def test_a_computation_is_no_wait_and_two_may_await_it():
    async def scenario() -> None:
        async with desk() as bench:
            WORK.clear()
            got: list[int] = []

            async def wait(job: Any) -> None:
                got.append(await job)

            async def server(node: Node) -> None:
                node.compute(pause)
                job = node.compute(noted, 3)
                first, second = node.spawn(wait(job), daemon=False), node.spawn(wait(job))
                await node.sleep(0.005)
                second.cancel()
                await node.join(first)

            await bench.play(server)
            assert (WORK, got) == ([3], [3])
            assert waits(bench, record.COMPUTE) == []

    run(scenario)


def pause() -> None:
    """Take a while."""
    import time

    time.sleep(0.05)


def test_a_cancelled_activity_gives_none_and_an_error_comes_out_of_it():
    async def scenario() -> None:
        async with desk() as bench:

            async def fail(node: Node) -> None:
                await node.sleep(0.001)
                raise ValueError("lost in an activity")

            async def server(node: Node) -> None:
                forever = node.spawn(_forever(node))
                assert forever.cancel()
                assert await forever is None
                assert forever.done()
                with pytest.raises(ValueError, match="lost"):
                    await node.spawn(fail(node))

            with pytest.raises(ValueError, match="lost in an activity"):
                await bench.play(server)
            assert bench.driver.failed.result()[1] == "in activity 2 of server"

    run(scenario)


async def _forever(node: Node) -> None:
    await node.recv("never")


def test_a_second_value_is_ignored_and_an_error_nobody_asks_for_is_no_complaint():
    async def scenario() -> None:
        async with desk() as bench:
            future = bench.driver.future(record.RECV, "x")
            future.set_result(1, 7)
            future.set_result(2, 8)
            future.set_exception(ProtocolError("late"))
            assert (future.result(), future.cause) == (1, 7)
            bench.driver.future(record.RECV, "x").set_exception(ProtocolError("asked for by nobody"))
            cancelled = bench.driver.future(record.RECV, "x")
            cancelled.cancel()
            cancelled.set_result(1)
            assert cancelled.cancelled()

    run(scenario)


def test_the_worker_s_own_tasks_may_await_what_the_role_awaits():
    async def scenario() -> None:
        async with desk() as bench:
            future = bench.driver.future(record.RECV, "x")
            asyncio.get_running_loop().call_later(0.01, future.set_result, "value")
            assert await future == "value"
            assert bench.take()["wait"] == []

    run(scenario)

"""harness/worker/driver.py: the end of a role, what cannot be ended, and who is stuck waiting for what."""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import Any

import pytest
import torch
from worker_bench import Desk, desk, desks, run, until

from harness import record
from harness.errors import PeerLost, ProtocolError
from harness.message import HEADER_BYTES, Message
from harness.node import Node
from harness.topology import SERVER
from harness.worker.network import Peer

GATE = threading.Event()


def gated() -> None:
    GATE.wait(30)


@pytest.fixture(autouse=True)
def _clean() -> None:
    GATE.clear()


def letter(tag: str, src: str = "device-0", **meta: Any) -> Message:
    return Message(src, "server", tag, None, meta, "data", HEADER_BYTES)


def marks(bench: Desk, kind: int) -> list[tuple[int, str, int]]:
    return [(row["lane"], row["name"], row["number"]) for row in bench.take()["mark"] if row["kind"] == kind]


def stuck_at(begin: Any, *deliveries: Message) -> tuple[bool, str]:
    """Return whether a role that has begun is stuck, and what it says that it wants."""

    async def scenario() -> tuple[bool, str]:
        with socket.create_server(("127.0.0.1", 0)) as deaf:  # takes connections and says nothing
            return await waiting(deaf.getsockname()[1])

    async def waiting(port: int) -> tuple[bool, str]:
        async with desk() as bench:
            bench.network.peers["device-0"] = Peer("127.0.0.1", port)
            playing = asyncio.ensure_future(bench.driver.play(begin))
            for message in deliveries:
                bench.driver.deliver(message)
            await asyncio.sleep(0.05)
            found = bench.driver.stuck(), bench.driver.wants()
            GATE.set()
            await bench.driver.stop(5.0)
            await playing
            return found

    result: tuple[bool, str] = run(scenario)
    return result


async def _spawned(node: Node, coroutine: Any, daemon: bool) -> None:
    node.spawn(coroutine, daemon=daemon)
    await node.recv("never")


# ---- who is stuck -----------------------------------------------------------------------------------------------


def test_who_waits_for_a_message_is_stuck_and_says_for_which():
    stuck, wants = stuck_at(lambda node: node.gather("update", round=2), letter("update", round=2))
    assert stuck
    assert wants == "server waits for 'update' with {'round': 2} from device-1"


def test_who_waits_for_a_channel_is_stuck():
    async def server(node: Node) -> None:
        await node.channel(1).get()

    assert stuck_at(server) == (True, "server waits for channel 'get'")


def test_who_computes_sleeps_sends_or_has_a_deadline_is_not_stuck():
    async def listening(node: Node) -> None:
        await _spawned(node, _compute(node), True)

    for begin in (
        lambda node: node.compute(gated),
        listening,
        lambda node: node.sleep(60),
        lambda node: node.recv("x", timeout_s=60),
        lambda node: node.gather("x", at_least=1, deadline_s=60),
        lambda node: node.send("device-0", "x"),
        lambda node: _spawned(node, _nap(node), False),
        lambda node: _spawned(node, _nap(node), True),  # it may do what the others wait for
    ):
        assert not stuck_at(begin)[0]
        GATE.clear()


async def _compute(node: Node) -> None:
    await node.compute(gated)


async def _nap(node: Node) -> None:
    await node.sleep(60)


def test_a_daemon_that_listens_does_not_keep_a_node_from_being_stuck():
    async def listen(node: Node) -> None:
        async for _ in node.stream("status"):
            pass

    stuck, wants = stuck_at(lambda node: _spawned(node, listen(node), True))
    assert stuck
    assert wants == "server waits for 'never'; 'status'"


def test_a_role_that_is_over_is_stuck_and_wants_nothing():
    assert stuck_at(lambda node: node.sleep(0)) == (True, "")


def test_whatever_goes_on_is_a_move():
    async def scenario() -> None:
        async with desk() as bench:

            async def server(node: Node) -> None:
                await node.recv("x")
                await node.sleep(0)
                await node.recv("y")

            playing = asyncio.ensure_future(bench.play(server))
            await asyncio.sleep(0.01)
            before = bench.driver.moved
            bench.driver.deliver(letter("x"))
            await asyncio.sleep(0.01)
            after = bench.driver.moved
            assert after > before
            await asyncio.sleep(0.01)
            assert bench.driver.moved == after
            playing.cancel()

    run(scenario)


# ---- the end of a role ------------------------------------------------------------------------------------------


def test_a_role_ends_after_its_activities_and_its_daemons_are_cancelled():
    async def scenario() -> None:
        async with desk() as bench:
            ended = []

            async def listen(node: Node) -> None:
                try:
                    await node.recv("never")
                finally:
                    ended.append("listener")

            async def work(node: Node) -> None:
                await node.sleep(0.02)
                ended.append("worker")

            async def server(node: Node) -> None:
                node.spawn(listen(node))
                node.spawn(work(node), daemon=False)

            await bench.play(server)
            await asyncio.sleep(0)
            assert ended == ["worker", "listener"]
            assert bench.driver.over
            assert not bench.driver.deliver(letter("late"))
            rows = bench.take()["mark"]
            assert [(row["kind"], row["lane"], row["name"]) for row in rows] == [
                (record.ROLE_START, 0, "server"),
                (record.LANE, 1, "listen"),
                (record.LANE, 2, "work"),
                (record.ROLE_END, 0, "server"),
            ]

    run(scenario)


def test_a_role_that_fails_has_no_end():
    async def scenario() -> None:
        async with desk() as bench:

            async def server(node: Node) -> None:
                await node.sleep(0)
                raise ValueError("broken")

            with pytest.raises(ValueError, match="broken"):
                await bench.play(server)
            assert not bench.driver.over
            assert bench.driver.failed.result()[1] == "in activity 0 of server"
            bench.driver.fail(ProtocolError("a later one"))
            assert str(bench.driver.failed.result()[0]) == "broken"
            assert marks(bench, record.ROLE_END) == []

    run(scenario)


def test_stopping_cancels_what_runs_and_what_has_just_been_spawned():
    async def scenario() -> None:
        async with desk() as bench:

            async def server(node: Node) -> None:
                node.spawn(_nap(node))
                node.spawn(_nap(node), daemon=False)
                await node.recv("never")

            playing = asyncio.ensure_future(bench.play(server))
            await until(lambda: len(bench.driver._activities) == 3)
            bench.node.spawn(_nap(bench.node))
            assert await bench.driver.stop(5.0) == []
            await playing
            assert await bench.driver.stop(5.0) == []

    run(scenario)


def test_an_activity_that_swallows_its_cancellation_is_cancelled_again():
    async def scenario() -> None:
        async with desk() as bench:
            swallowed = []

            async def stubborn(node: Node) -> None:
                for _ in range(2):
                    try:
                        await node.recv("never")
                    except asyncio.CancelledError:
                        swallowed.append(1)
                await node.recv("never")

            playing = asyncio.ensure_future(bench.play(stubborn))
            await asyncio.sleep(0.01)
            assert await bench.driver.stop(30.0) == []
            assert len(swallowed) == 2
            await playing

    run(scenario)


def test_an_activity_that_never_ends_is_named_in_time():
    async def scenario() -> None:
        async with desk() as bench:
            going_on = True

            async def stubborn(node: Node) -> None:
                while going_on:
                    try:
                        await node.sleep(0.01)
                    except BaseException:
                        continue

            async def server(node: Node) -> None:
                node.spawn(stubborn(node))
                await node.recv("never")

            playing = asyncio.ensure_future(bench.play(server))
            await asyncio.sleep(0.02)
            assert await bench.driver.stop(0.3) == ["activity 1 of server"]
            going_on = False
            await playing

    run(scenario)


# ---- peers ------------------------------------------------------------------------------------------------------


def test_a_lost_peer_is_missing_from_a_gather_and_absent_until_it_is_heard_of():
    async def scenario() -> None:
        async with desk() as bench:
            got: list[Any] = []

            async def server(node: Node) -> None:
                got.append(await node.gather("update", round=1))
                with pytest.raises(PeerLost, match="device-1"):
                    await node.recv("x", from_="device-1")
                await node.recv("x", from_="device-0")

            playing = asyncio.ensure_future(bench.play(server))
            bench.driver.deliver(letter("update", round=1))
            await asyncio.sleep(0.01)
            bench.driver.lose("device-1")
            await until(lambda: got)
            assert got[0].missing == ["device-1"]
            assert bench.driver.lost() == {"device-1"}
            bench.driver.deliver(letter("x"))
            await playing
            bench.driver.over = False
            bench.driver.deliver(letter("x", src="device-1"))
            assert bench.node.absent == set()

    run(scenario)


def test_barriers_have_numbers_of_their_own_on_every_node():
    async def scenario() -> None:
        async with desks("device-0", "device-1", "server") as made:
            numbers = []
            for bench in made:
                for serial in range(2):
                    message = letter("x", round=4)
                    message.serial, message.arrived_s = serial, 0.5 + serial
                    bench.driver.barrier(bench.node, [message], 4)
                rows = bench.take()["barrier"]
                assert [(row["serial"], row["arrived_s"], row["last_s"]) for row in rows] == [
                    (0, 0.5, 0.5),
                    (1, 1.5, 1.5),
                ]
                numbers += [row["barrier"] for row in rows]
            assert sorted(numbers) == [0, 1, 2, 3, 4, 5]

    run(scenario)


# ---- quality ----------------------------------------------------------------------------------------------------


def test_what_is_evaluated_is_a_copy_of_that_moment():
    async def scenario() -> None:
        async with desk() as bench:
            weights = torch.zeros(8)
            bench.node.evaluate("scorer", {"block": weights}, label="global", round=3)
            weights.add_(1.0)
            found = bench.driver.evaluations.take()
            assert found is not None
            assert (found.label, found.round, found.scorer) == ("global", 3, "scorer")
            assert torch.equal(found.states[0]["block"], torch.zeros(8))
            assert 0 <= found.at_s <= bench.clock.now()

    run(scenario)


def test_a_sleep_is_as_much_longer_as_the_run_is_dilated():
    async def scenario() -> None:
        async with desk(dilation=4.0) as bench:
            loop = asyncio.get_running_loop()
            began_s = loop.time()
            await bench.play(lambda node: node.sleep(0.02))
            assert loop.time() - began_s >= 0.079
            (row,) = bench.take()["wait"]
            assert 0.0199 <= row["end_s"] - row["start_s"] <= (loop.time() - began_s) / 4

    run(scenario)


def test_the_server_is_a_peer_like_any_other():
    async def scenario() -> None:
        async with desks("device-0", "server") as (device, server):
            await asyncio.gather(
                device.play(lambda node: node.send(SERVER, "x")), server.play(lambda node: node.recv("x"))
            )
            assert device.driver.over
            assert server.driver.over

    run(scenario)

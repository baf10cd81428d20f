"""Seconds by cause, each example worked out on paper.

On the bench `burn(n)` takes n x tick_s (1 s unless a node says otherwise), links have no limit, and the latency of
a path is the sum of its ends'. A zero is left out of the expectations.
"""

from __future__ import annotations

import itertools

import pandas as pd
import pytest
from bench_nodes import Bench, burn, letter, run
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import rows, seconds, tables

from harness import experiment, record
from harness.errors import PeerLost
from harness.node import Node
from harness.record import Recorder
from harness.run import execute
from results import checks, idle

# ---- the methods of these examples ------------------------------------------------------------------------------


async def train(node: Node) -> None:
    """FedAvg's device: 4 ticks whenever weights come."""
    while True:
        message = await node.recv("weights")
        if message.meta.get("last"):
            return
        await node.compute(burn, 4)
        await node.send("server", "update", letter(100), round=message.round)


def average(rounds: int, fraction: float = 1.0, aggregation: int = 2):
    """FedAvg's server: aggregates for so many ticks; returns it and the list of who was chosen."""
    chosen: list[list[str]] = []

    async def server(node: Node) -> None:
        for index in node.rounds(rounds):
            names = node.sample(fraction, index)
            chosen.append(names)
            node.broadcast("weights", letter(100), to=names, round=index)
            await node.gather("update", from_=names, round=index)
            await node.compute(burn, aggregation)
        node.broadcast("weights", last=True)

    return server, chosen


# ---- one lane per node ------------------------------------------------------------------------------------------


def test_dependency_transfer_and_straggler_of_one_federated_round() -> None:
    """Latency 0.5 s, device-1 half as fast as device-0.

    0     server posts weights, which are there at 0.5
    0.5   device-0 computes to 4.5, its update is there at 5.0; device-1 computes to 8.5, its update at 9.0
    9     the server computes to 11, posts the end, which is there at 11.5: end of the run

    device-0: [0, .5] transfer, [.5, 4.5] compute, [4.5, 5] transfer, [5, 9] straggler (its own arrival to the last),
              [9, 11] dependency (the server computes), [11, 11.5] transfer.
    device-1: the same, but it is the straggler: [.5, 8.5] compute, [8.5, 9] transfer, [9, 11] dependency.
    server:   [0, .5] its own posts on their way: transfer, [.5, 8.5] dependency (device-1 had not posted), [8.5, 9]
              transfer, compute, [11, 11.5] its own posts.
    """
    server, _ = average(1)
    bench = run(
        {"device-0": train, "device-1": train, "server": server},
        {"device-0": {"latency_s": 0.5}, "device-1": {"latency_s": 0.5, "tick_s": 2.0}},
    )
    assert bench.outcome.end_s == 11.5
    assert seconds(bench) == {
        "device-0": {"compute": 4.0, "transfer": 1.5, "straggler": 4.0, "dependency": 2.0},
        "device-1": {"compute": 8.0, "transfer": 1.5, "dependency": 2.0},
        "server": {"compute": 2.0, "dependency": 8.0, "transfer": 1.5},
    }


def test_a_straggler_wait_ends_when_the_last_update_arrives_not_when_it_is_sent() -> None:
    """Three devices, no latency but device-2's 1 s; ticks 1, 2, 1.

    Weights are at devices 0 and 1 at 0, at device-2 at 1. Updates arrive at 4, 8 and 1 + 4 + 1 = 6.
    Straggler: 8 - 4 = 4, 0 and 8 - 6 = 2; then all wait [8, 10] for the aggregation. device-2 gets the end at 11,
    the run ends then (the server's post is flushed); devices 0 and 1 have returned at 10: done 1.
    The server's own posts to device-2 are on their way [0, 1] and [10, 11]: transfer; [1, 8] it depends.
    """
    server, _ = average(1)
    bench = run(
        {"device-0": train, "device-1": train, "device-2": train, "server": server},
        {"device-1": {"tick_s": 2.0}, "device-2": {"latency_s": 1.0}},
    )
    assert bench.outcome.end_s == 11.0
    assert seconds(bench) == {
        "device-0": {"compute": 4.0, "straggler": 4.0, "dependency": 2.0, "done": 1.0},
        "device-1": {"compute": 8.0, "dependency": 2.0, "done": 1.0},
        "device-2": {"compute": 4.0, "transfer": 3.0, "straggler": 2.0, "dependency": 2.0},
        "server": {"compute": 2.0, "dependency": 7.0, "transfer": 2.0},
    }


def test_with_a_quorum_nobody_waits_for_a_message_that_was_not_waited_for() -> None:
    """Three updates at 1, 2 and 9, two are enough: the barrier's last is 2, so device-0 waits 1 s for a straggler.

    The server computes [2, 4], then ends; device-1 fed the barrier last; device-2 computes to the end.
    """

    def device(ticks: int):
        async def role(node: Node) -> None:
            await node.compute(burn, ticks)
            await node.send("server", "update", letter(100), round=1)
            await node.recv("never")

        return role

    async def server(node: Node) -> None:
        await node.gather("update", at_least=2, round=1)
        await node.compute(burn, 2)

    bench = run({"device-0": device(1), "device-1": device(2), "device-2": device(9), "server": server})
    assert seconds(bench) == {
        "device-0": {"compute": 1.0, "straggler": 1.0, "dependency": 2.0},
        "device-1": {"compute": 2.0, "dependency": 2.0},
        "device-2": {"compute": 4.0},
        "server": {"compute": 2.0, "dependency": 2.0},
    }


def test_after_its_role_has_returned_a_node_is_done_and_not_idle() -> None:
    """The device computes 3 s and returns; the server sleeps 10 s, which is a dependency on nobody's hardware."""

    async def device(node: Node) -> None:
        await node.compute(burn, 3)

    async def server(node: Node) -> None:
        await node.sleep(10)

    assert seconds(run({"device-0": device, "server": server})) == {
        "device-0": {"compute": 3.0, "done": 7.0},
        "server": {"dependency": 10.0},
    }


def test_a_role_ends_when_its_posts_have_arrived() -> None:
    """device-0 posts at 2 and returns; its message takes 1 s, which is its own sending; done from 3 on."""

    async def device(node: Node) -> None:
        await node.compute(burn, 2)
        node.post("server", "news", letter(100))

    async def server(node: Node) -> None:
        await node.recv("news")
        await node.compute(burn, 5)

    assert seconds(run({"device-0": device, "server": server}, {"device-0": {"latency_s": 1.0}})) == {
        "device-0": {"compute": 2.0, "transfer": 1.0, "done": 5.0},
        "server": {"dependency": 2.0, "transfer": 1.0, "compute": 5.0},
    }


def test_a_message_that_was_on_its_way_before_the_wait_began_is_all_transfer() -> None:
    """Posted at 0, there at 4; the server computes [0, 3] and waits [3, 4]: nothing of that is a dependency."""

    async def device(node: Node) -> None:
        await node.send("server", "news", letter(100))

    async def server(node: Node) -> None:
        await node.compute(burn, 3)
        await node.recv("news")
        await node.compute(burn, 1)

    assert seconds(run({"device-0": device, "server": server}, {"device-0": {"latency_s": 4.0}})) == {
        "device-0": {"transfer": 4.0, "done": 1.0},
        "server": {"compute": 4.0, "transfer": 1.0},
    }


def test_posting_and_sending_have_the_same_causes() -> None:
    """Latency 2 s; a device that asks and waits for the answer, whether or not it awaits its own message's arrival.

    1     the device has computed and asks; the question is there at 3
    3     the server computes to 6 and answers; the answer is there at 8: end of the run

    device: [1, 3] its own message, [6, 8] the answer: 4 s transfer; [3, 6] the server computes: 3 s dependency.
    server: [0, 1] dependency, [1, 3] the question, compute, [6, 8] its own answer.
    """

    async def send(node: Node) -> None:
        await node.compute(burn, 1)
        await node.send("server", "question", letter(100))
        await node.recv("answer")

    async def post(node: Node) -> None:
        await node.compute(burn, 1)
        node.post("server", "question", letter(100))
        await node.recv("answer")

    async def server(node: Node) -> None:
        await node.recv("question")
        await node.compute(burn, 3)
        node.post("device-0", "answer", letter(100))

    expected = {
        "device-0": {"compute": 1.0, "transfer": 4.0, "dependency": 3.0},
        "server": {"compute": 3.0, "transfer": 4.0, "dependency": 1.0},
    }
    for device in (send, post):
        assert seconds(run({"device-0": device, "server": server}, {"device-0": {"latency_s": 2.0}})) == expected


def test_a_timeout_is_a_dependency() -> None:
    """The server gives up after 3 s; the peer never posted."""

    async def device(node: Node) -> None:
        await node.compute(burn, 9)

    async def server(node: Node) -> None:
        assert await node.recv("news", timeout_s=3.0) is None
        await node.compute(burn, 1)

    assert seconds(run({"device-0": device, "server": server}))["server"] == {"dependency": 3.0, "compute": 1.0}


# ---- sampling ---------------------------------------------------------------------------------------------------


def test_who_is_not_sampled_is_unselected_for_the_whole_round() -> None:
    """No latency: a round is 4 s of training and 2 s of aggregation. One of two devices is chosen, six times.

    Per round the chosen one computes 4 and depends 2; the other is unselected 6 s: not waiting for a straggler.
    """
    server, chosen = average(6, fraction=0.5)
    bench = run({"device-0": train, "device-1": train, "server": server}, seed=3)
    turns = [sum(names == [f"device-{k}"] for names in chosen) for k in (0, 1)]
    assert sum(turns) == 6
    assert min(turns) >= 1, "take another seed: one device is never chosen"
    found = seconds(bench)
    for k in (0, 1):
        assert found[f"device-{k}"] == {
            "compute": 4.0 * turns[k],
            "dependency": 2.0 * turns[k],
            "unselected": 6.0 * (6 - turns[k]),
        }
    assert found["server"] == {"compute": 12.0, "dependency": 24.0}


def test_a_sample_of_everybody_leaves_nobody_unselected() -> None:
    server, _ = average(2, fraction=1.0)
    found = seconds(run({"device-0": train, "device-1": train, "server": server}, {"device-1": {"tick_s": 2.0}}))
    assert found["device-0"] == {"compute": 8.0, "straggler": 8.0, "dependency": 4.0}


def test_rounds_that_a_device_counts_itself_do_not_move_the_servers() -> None:
    """The server's rounds are [0, 6] and [6, 12]; an activity of each device counts local ones, [0, 10] and [10, 20].

    Who was not sampled is unselected for 6 s per round of who sampled: a device's own marks do not change that.
    """
    server, chosen = average(2, fraction=0.5)

    async def count(node: Node) -> None:
        for _ in node.rounds(2):
            await node.sleep(10)

    async def counting(node: Node) -> None:
        node.spawn(count(node))
        await train(node)

    found = seconds(run({"device-0": counting, "device-1": counting, "server": server}, seed=3))
    for name in ("device-0", "device-1"):
        absent = sum(name not in names for names in chosen)
        assert found[name].get("unselected", 0.0) == 6.0 * absent


# ---- several lanes ----------------------------------------------------------------------------------------------


def test_a_gap_that_a_serving_lane_ends_is_blamed_on_what_that_lane_waited_for() -> None:
    """SplitFed: the server's role waits for the update while its lane waits for the activation. Latency 0.5 s.

    0     weights posted, there at 0.5; the lane begins to wait for the activation, the role for the update
    0.5   device: forward to 2.5, posts the activation, there at 3: the server's lane computes to 6
    6.5   the gradient is there; backward to 7.5; the update is sent and there at 8
    8     the server aggregates to 10, posts the end, there at 10.5

    server: gap [0, 3] ended by the lane: 2.5 dependency, 0.5 transfer (the weights, [0, 0.5], are the role's post, not
            the lane's). Gap [6, 8] ended by the role: the update was posted at 7.5, so 1.5 dependency (the gradient,
            [6, 6.5], is the lane's post, not the role's) and 0.5 transfer. [10, 10.5] the role's own post.
    device: transfers of 0.5: weights, its activation, gradient, update, end. Dependency: [3, 6] and [8, 10].
    """

    async def device(node: Node) -> None:
        await node.recv("weights")
        await node.compute(burn, 2)
        node.post("server", "activation", letter(100), round=1)
        await node.recv("gradient")
        await node.compute(burn, 1)
        await node.send("server", "update", letter(100), round=1)
        await node.recv("weights")

    async def serve(node: Node) -> None:
        await node.recv("activation")
        await node.compute(burn, 3)
        node.post("device-0", "gradient", letter(100), round=1)

    async def server(node: Node) -> None:
        node.broadcast("weights", letter(100), round=1)
        lane = node.spawn(serve(node), daemon=False)
        await node.gather("update", round=1)
        await node.join(lane)
        await node.compute(burn, 2)
        node.broadcast("weights", last=True)

    bench = run({"device-0": device, "server": server}, {"device-0": {"latency_s": 0.5}})
    assert bench.outcome.end_s == 10.5
    assert seconds(bench) == {
        "device-0": {"compute": 3.0, "transfer": 2.5, "dependency": 5.0},
        "server": {"compute": 5.0, "dependency": 4.0, "transfer": 1.5},
    }


def test_lanes_that_wait_at_the_same_time_are_not_added_up() -> None:
    """The review's P13: the server's lanes record many more seconds of waits than it is idle; the device that is early
    records none of its waiting as a barrier, and is yet a victim of the straggler.

    Two devices, ticks 1 and 3, no latency. Forward 1 tick, the server serves 1 s, backward 1 tick.
    device-0: forward to 1, served [1, 2], backward to 3, update at 3, waits for weights.
    device-1: forward to 3, served [3, 4], backward to 7, update at 7. The server aggregates [7, 8].
    server:   gaps [0, 1], [2, 3], [4, 7]: 5 s dependency. Its waits: activations 1 + 3, updates 7, a join 0: 11 s.
    device-0: [1, 2] dependency, [3, 7] straggler, [7, 8] dependency. device-1: [3, 4] and [7, 8].
    """

    async def device(node: Node) -> None:
        await node.recv("weights")
        await node.compute(burn, 1)
        node.post("server", "activation", letter(100), round=1)
        await node.recv("gradient")
        await node.compute(burn, 1)
        await node.send("server", "update", letter(100), round=1)
        await node.recv("weights")

    async def serve(node: Node, name: str) -> None:
        await node.recv("activation", from_=name)
        await node.compute(burn, 1)
        node.post(name, "gradient", letter(100), round=1)

    async def server(node: Node) -> None:
        node.broadcast("weights", letter(100), round=1)
        lanes = [node.spawn(serve(node, name), daemon=False) for name in node.devices]
        await node.gather("update", round=1)
        await node.join(*lanes)
        await node.compute(burn, 1)
        node.broadcast("weights", last=True)

    bench = run({"device-0": device, "device-1": device, "server": server}, {"device-1": {"tick_s": 3.0}})
    assert sum(end - start for start, end in bench.intervals("wait", node="server")) == 11.0
    assert not bench.rows("wait", node="device-0", kind="gather")
    assert seconds(bench) == {
        "device-0": {"compute": 2.0, "dependency": 2.0, "straggler": 4.0},
        "device-1": {"compute": 6.0, "dependency": 2.0},
        "server": {"compute": 3.0, "dependency": 5.0},
    }


def test_what_came_before_a_lane_began_is_blamed_on_the_role() -> None:
    """The role waits [0, 3] for news (posted at 2), then spawns a lane that waits [3, 6] for more (posted at 5).

    The gap [0, 6] is ended by the lane: its own wait gives 2 + 1, the role's before it 2 + 1.
    """

    async def device(node: Node) -> None:
        await node.compute(burn, 2)
        await node.send("server", "news", letter(100))
        await node.compute(burn, 2)
        await node.send("server", "more", letter(100))

    async def late(node: Node) -> None:
        await node.recv("more")
        await node.compute(burn, 1)

    async def server(node: Node) -> None:
        await node.recv("news")
        await node.join(node.spawn(late(node), daemon=False))

    found = seconds(run({"device-0": device, "server": server}, {"device-0": {"latency_s": 1.0}}))
    assert found["server"] == {"dependency": 4.0, "transfer": 2.0, "compute": 1.0}


async def _distractor(node: Node) -> None:
    """A listener: its message is on its way from 0 to 3, which says nothing about what the others wait for."""
    async for _ in node.stream("noise"):
        pass


async def _noise(node: Node) -> None:
    """Posts the distractor's message at once."""
    await node.send("server", "noise", letter(100))


def test_a_join_is_followed_to_what_the_other_activity_waited_for() -> None:
    """The role joins a worker that waits [0, 4.5] for a message posted at 4; then the role computes.

    The gap [0, 4.5] is ended by the role: 4 dependency and 0.5 transfer, as the worker's wait says, although a
    listener's message was on its way during [0, 3].
    """

    async def device(node: Node) -> None:
        await node.compute(burn, 4)
        await node.send("server", "news", letter(100))

    async def worker(node: Node) -> None:
        await node.recv("news")

    async def server(node: Node) -> None:
        node.spawn(_distractor(node))
        await node.join(node.spawn(worker(node), daemon=False))
        await node.compute(burn, 1)

    bench = run(
        {"device-0": device, "device-1": _noise, "server": server},
        {"device-0": {"latency_s": 0.5}, "device-1": {"latency_s": 3.0}},
    )
    assert seconds(bench)["server"] == {"dependency": 4.0, "transfer": 0.5, "compute": 1.0}


@pytest.mark.parametrize("stages", [1, 2, 3])
def test_channels_are_followed_stage_by_stage_to_the_network(stages: int) -> None:
    """A message (posted at 4, there at 4.5) goes through one to three queues before somebody computes on it."""

    async def device(node: Node) -> None:
        await node.compute(burn, 4)
        await node.send("server", "news", letter(100))

    async def first(node: Node, out) -> None:
        await out.put((await node.recv("news")).serial)

    async def between(queue, out) -> None:
        await out.put(await queue.get())

    async def last(node: Node, queue) -> None:
        await queue.get()
        await node.compute(burn, 1)

    async def server(node: Node) -> None:
        node.spawn(_distractor(node))
        queues = [node.channel(1) for _ in range(stages)]
        node.spawn(first(node, queues[0]), daemon=False)
        for queue, out in itertools.pairwise(queues):
            node.spawn(between(queue, out), daemon=False)
        await node.join(node.spawn(last(node, queues[-1]), daemon=False))

    bench = run(
        {"device-0": device, "device-1": _noise, "server": server},
        {"device-0": {"latency_s": 0.5}, "device-1": {"latency_s": 3.0}},
    )
    assert seconds(bench)["server"] == {"dependency": 4.0, "transfer": 0.5, "compute": 1.0}


def test_two_joins_in_one_gap_are_followed_each_to_its_own_activity() -> None:
    """The role joins a (waits [0, 4] for a message posted at 4 without latency), then b.

    b read a message that was on its way during [1, 3], then waits [3, 9] for one posted at 8, there at 9.
    [0, 4] is a's: 4 dependency, although b's message was on its way meanwhile. [4, 9] is b's: 4 dependency, 1
    transfer. Nothing computes in between, so all of it is one gap [0, 9], ended by the role.
    """

    async def near(node: Node) -> None:
        await node.compute(burn, 4)
        await node.send("server", "news", letter(100))

    async def far(node: Node) -> None:
        await node.compute(burn, 1)
        await node.send("server", "one", letter(100), lane="control")  # there at 2
        await node.compute(burn, 6)
        await node.send("server", "two", letter(100))  # posted at 8, there at 9

    async def a(node: Node) -> None:
        await node.recv("news")

    async def b(node: Node) -> None:
        await node.recv("one")
        await node.recv("two")

    async def server(node: Node) -> None:
        lanes = [node.spawn(a(node), daemon=False), node.spawn(b(node), daemon=False)]
        await node.join(*lanes)
        await node.compute(burn, 1)

    bench = run({"device-0": near, "device-1": far, "server": server}, {"device-1": {"latency_s": 1.0}})
    assert bench.outcome.end_s == 10.0
    assert seconds(bench)["server"] == {"dependency": 8.0, "transfer": 1.0, "compute": 1.0}


def test_a_daemon_listener_takes_no_blame_for_a_gap_that_another_lane_ends() -> None:
    """The listener's message is on its way [0, 3]; the role waits [0, 4] for somebody who posts at 4."""

    async def device(node: Node) -> None:
        await node.compute(burn, 4)
        await node.send("server", "news", letter(100))

    async def server(node: Node) -> None:
        node.spawn(_distractor(node))
        await node.recv("news")
        await node.compute(burn, 1)

    bench = run({"device-0": device, "device-1": _noise, "server": server}, {"device-1": {"latency_s": 3.0}})
    assert seconds(bench)["server"] == {"dependency": 4.0, "compute": 1.0}


def test_a_daemons_computation_that_outlasts_its_role_does_not_count_twice() -> None:
    """The device's role returns at 1 while its daemon computes [0, 4]; the server ends at 10.

    Compute and done tile the run whatever the rule is for [1, 4]: together they are 10 s.
    """

    async def daemon(node: Node) -> None:
        await node.compute(burn, 4)

    async def device(node: Node) -> None:
        node.spawn(daemon(node))
        await node.sleep(1)

    async def server(node: Node) -> None:
        await node.sleep(10)

    assert sum(seconds(run({"device-0": device, "server": server}))["device-0"].values()) == 10.0


# ---- crash and return -------------------------------------------------------------------------------------------


def test_a_crash_is_charged_up_to_its_time_and_what_is_gone_is_not_idle() -> None:
    """device-0 computes [0, 3] of 4 s when it dies, is gone [3, 5], computes [5, 9] anew and sends: no latency.

    The server waits 9 s, then computes 1 s while the device is done: 2 s absent and 1 s after its role.
    """

    async def device(node: Node) -> None:
        await node.compute(burn, 4)
        await node.send("server", "news", letter(100))

    async def server(node: Node) -> None:
        await node.recv("news")
        await node.compute(burn, 1)

    faults = [(3.0, "crash", "device-0"), (5.0, "rejoin", "device-0")]
    assert seconds(run({"device-0": device, "server": server}, faults=faults)) == {
        "device-0": {"compute": 7.0, "done": 3.0},
        "server": {"dependency": 9.0, "compute": 1.0},
    }


def test_a_wait_that_a_crash_cuts_ends_there() -> None:
    """device-0 waits from 0 for what never comes, dies at 3 and stays away; the server learns it at once."""

    async def device(node: Node) -> None:
        await node.recv("never")

    async def server(node: Node) -> None:
        with pytest.raises(PeerLost):
            await node.recv("news", from_="device-0")
        await node.compute(burn, 4)

    assert seconds(run({"device-0": device, "server": server}, faults=[(3.0, "crash", "device-0")])) == {
        "device-0": {"dependency": 3.0, "done": 4.0},
        "server": {"dependency": 3.0, "compute": 4.0},
    }


# ---- handcrafted rows -------------------------------------------------------------------------------------------


def _marks(end: float) -> list[tuple]:
    return [(0, 0, record.ROLE_START, 1, 0, 0.0), (0, 0, record.ROLE_END, 1, 0, end)]


def test_a_gap_that_no_wait_explains_is_overhead() -> None:
    """Wall clocks only: the node waits [0, 2], is ready at 2 and computes from 5 to 6."""
    arrays = tables(
        compute=rows("compute", (0, 0, 2, 0, 5.0, 6.0, 0.0, 0)),
        wait=rows("wait", (0, 0, record.SLEEP, 3, 0.0, 2.0, -1)),
        mark=rows("mark", *_marks(8.0)),
    )
    (row,) = idle.attribute(arrays, ["n", "role", "f", "t"], {"n": "device"}, 9.0).to_dict("records")
    assert row == {
        "node": "n",
        "compute": 1.0,
        "dependency": 2.0,
        "straggler": 0.0,
        "transfer": 0.0,
        "unselected": 0.0,
        "overhead": 5.0,
        "done": 1.0,
    }


@pytest.mark.parametrize(
    ("lane", "status", "moving_s"),
    [
        (0, record.DELIVERED, 3.0),
        (0, record.IN_FLIGHT, 8.0),
        (0, record.UNDELIVERED, 0.0),
        (1, record.DELIVERED, 0.0),
    ],
    ids=["delivered", "in-flight", "undelivered", "another-activitys"],
)
def test_an_activitys_own_message_counts_while_it_is_on_its_way(lane: int, status: int, moving_s: float) -> None:
    """The role sleeps [0, 10]; a message of its node was posted at 2 and, if it was delivered, arrived at 5.

    One that is still in flight moves to the end of the run; one that was refused never moved.
    """
    arrived = 5.0 if status == record.DELIVERED else -1.0
    arrays = tables(
        wait=rows("wait", (0, 0, record.SLEEP, 3, 0.0, 10.0, -1)),
        transfer=rows("transfer", (0, 0, 1, 3, lane, 0, status, 0, 64, 64, 2.0, 3.0, arrived)),
        mark=rows("mark", *_marks(10.0)),
    )
    (row,) = idle.attribute(arrays, ["n", "server", "f", "t"], {"n": "device"}, 10.0).to_dict("records")
    assert (row["transfer"], row["dependency"]) == (moving_s, 10.0 - moving_s)


@pytest.mark.parametrize(
    ("role", "unselected", "straggler", "dependency"), [("device", 3.0, 2.0, 1.0), ("edge", 0.0, 3.0, 3.0)]
)
def test_sending_counts_before_waiting_and_absence_before_lateness(
    role: str, unselected: float, straggler: float, dependency: float
) -> None:
    """One gap [0, 10] of the role that a receive [0, 10] explains, its message posted at 6.

    [6, 10] transfer, whatever else holds. The round [0, 3] it was not sampled for: unselected. A barrier its message
    fed waited [2, 5]: straggler from 3 on, 2 s. The rest, [5, 6]: dependency.
    Only devices are sampled. An edge is late [2, 5] and depends [0, 2] and [5, 6].
    """
    server = 1
    arrays = tables(
        wait=rows("wait", (0, 0, record.RECV, 3, 0.0, 10.0, 5)),
        transfer=rows("transfer", (5, server, 0, 3, 0, 0, record.DELIVERED, 1, 64, 64, 6.0, 6.0, 10.0)),
        barrier=rows("barrier", (0, server, 0, 1, 4, 2.0, 5.0)),
        mark=rows(
            "mark",
            *_marks(10.0),
            (server, 0, record.ROUND_START, 4, 1, 0.0),
            (server, 0, record.SAMPLED, 5, 1, 0.0),
            (server, 0, record.ROUND_END, 4, 1, 3.0),
        ),
    )
    (row,) = idle.attribute(arrays, ["n", "server", "f", "t", "round", "other"], {"n": role}, 10.0).to_dict("records")
    found = {cause: row[cause] for cause in idle.COLUMNS}
    assert found == {
        "compute": 0.0,
        "dependency": dependency,
        "straggler": straggler,
        "transfer": 4.0,
        "unselected": unselected,
        "overhead": 0.0,
        "done": 0.0,
    }


def test_a_node_without_rows_was_done_all_the_time() -> None:
    (row,) = idle.attribute(tables(), [], {"ghost": "device"}, 4.0).to_dict("records")
    assert row["done"] == 4.0
    assert sum(row[column] for column in idle.COLUMNS) == 4.0


# ---- tiling -----------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    ticks=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    latencies=st.lists(st.integers(0, 3), min_size=4, max_size=4),
    rounds=st.integers(1, 3),
    aggregation=st.integers(1, 3),
)
def test_straggler_and_dependency_follow_from_arrivals_alone(
    ticks: list[int], latencies: list[int], rounds: int, aggregation: int
) -> None:
    """FedAvg in closed form: device k's update arrives 4 t_k + 2 l_k after the round began, the last after T.

    So per round: compute 4 t_k, straggler T - (4 t_k + 2 l_k), transfer 2 l_k, dependency = the aggregation; after
    the last round l_k for the end's transfer, and max(l) - l_k done.
    """
    names = [f"device-{k}" for k in range(len(ticks))]
    server, _ = average(rounds, aggregation=aggregation)
    machines = {
        name: {"tick_s": float(t), "latency_s": float(wait)}
        for name, t, wait in zip(names, ticks, latencies, strict=False)
    }
    bench = Bench({**dict.fromkeys(names, train), "server": server}, machines).run()
    used = latencies[: len(ticks)]
    last = max(4 * t + 2 * wait for t, wait in zip(ticks, used, strict=True))
    for name, t, wait in zip(names, ticks, used, strict=True):
        expected = {
            "compute": 4.0 * t * rounds,
            "straggler": float(last - 4 * t - 2 * wait) * rounds,
            "transfer": (2.0 * rounds + 1) * wait,
            "dependency": float(aggregation) * rounds,
            "done": float(max(used) - wait),
        }
        assert seconds(bench)[name] == {cause: value for cause, value in expected.items() if value}
    assert bench.outcome.end_s == (last + aggregation) * rounds + max(used)


@pytest.mark.parametrize("position", range(5), ids=["fedavg", "sl", "splitfed_v1", "splitfed_v2", "ampere"])
def test_on_the_virtual_clock_every_second_of_every_node_has_one_cause(position: int) -> None:
    """quickstart, priced: compute + five causes + done = the makespan; nobody is ready without running."""
    overrides = ["mode=timing", "seeds=[1]", "training.rounds=5"]
    spec = experiment.runs(experiment.read("quickstart", overrides))[position]
    recorder = Recorder()
    outcome = execute(spec, recorder)
    arrays = recorder.arrays()
    table = idle.attribute(arrays, recorder.names, {node.name: node.role for node in outcome.nodes}, outcome.end_s)
    assert len(table) == 9
    total = table[list(idle.COLUMNS)].sum(axis=1)
    assert (total - outcome.end_s).abs().max() <= 1e-9 * outcome.end_s
    assert table["overhead"].abs().max() <= 1e-9 * outcome.end_s
    busy = table.set_index("node")["compute"]
    for name in busy.index:
        own = arrays["compute"][arrays["compute"]["node"] == recorder.names.index(name)]
        assert busy[name] == pytest.approx(float((own["end_s"] - own["start_s"]).sum()), abs=1e-12)
    assert checks.violations(arrays, table, outcome, 0.0) == []


@pytest.mark.parametrize("intervals", [1, 7, 100])
@pytest.mark.parametrize("position", range(5), ids=["fedavg", "sl", "splitfed_v1", "splitfed_v2", "ampere"])
def test_a_run_that_is_swept_in_windows_has_the_same_causes(
    position: int, intervals: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However narrow the windows: a gap, a wait or a transfer that crosses an edge counts on both sides of it."""
    spec = experiment.runs(experiment.read("quickstart", ["mode=timing", "seeds=[1]", "training.rounds=2"]))[position]
    recorder = Recorder()
    outcome = execute(spec, recorder)
    roles = {node.name: node.role for node in outcome.nodes}

    def attributed() -> pd.DataFrame:
        return idle.attribute(recorder.arrays(), recorder.names, roles, outcome.end_s)

    whole = attributed()
    assert (whole[["dependency", "straggler", "transfer"]].sum() > 0).sum() >= 2
    monkeypatch.setattr(idle, "SWEEP_INTERVALS", intervals)
    pd.testing.assert_frame_equal(attributed(), whole, rtol=1e-9, atol=1e-9 * outcome.end_s)


def test_straggler_and_absence_hold_across_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sampled FedAvg with unequal devices has every cause but overhead; in windows of one interval it has them, too."""
    ticks = {"device-0": {"tick_s": 3.0, "latency_s": 1.0}, "device-1": {"tick_s": 2.0}, "device-2": {"latency_s": 2.0}}
    server, chosen = average(6, fraction=0.67)
    bench = run({**dict.fromkeys(("device-0", "device-1", "device-2"), train), "server": server}, ticks)
    assert {len(names) for names in chosen} == {2}
    whole = seconds(bench)
    causes = {cause for row in whole.values() for cause in row}
    assert causes == {"compute", "dependency", "straggler", "transfer", "unselected", "done"}
    monkeypatch.setattr(idle, "SWEEP_INTERVALS", 1)
    cut = seconds(bench)
    assert cut.keys() == whole.keys()
    for name, row in whole.items():
        assert cut[name] == pytest.approx(row, abs=1e-9)


@settings(max_examples=50, deadline=None)
@given(numbers=st.lists(st.integers(0, 6), max_size=30))
def test_a_nodes_rows_are_found_in_their_order(numbers: list[int]) -> None:
    """By the compute table of computations that take a second each, on whatever nodes: the busy time of each."""
    computed = rows("compute", *((number, 0, 0, 0, float(at), at + 1.0, 0.0, 0) for at, number in enumerate(numbers)))
    names = [f"n{number}" for number in range(8)]
    end_s = float(len(numbers) + 1)
    marks = rows("mark", *((number, 0, record.ROLE_START, 0, 0, 0.0) for number in range(8)))
    table = idle.attribute(tables(compute=computed, mark=marks), names, dict.fromkeys(names, "device"), end_s)
    assert table["compute"].tolist() == [float(numbers.count(number)) for number in range(8)]
    assert (table["compute"] + table["overhead"]).tolist() == [end_s] * 8

"""testbeds/virtual/playback.py, and rates that change in fair.py and network.py.

The reference moves from event to event in exact fractions: the starts, the ends and every step of every trace.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from math import inf
from typing import Any

import pytest
from bench_nodes import Bench, letter, machine, run
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from test_fair import filled

from harness.errors import DeadlockError
from harness.node import Node
from harness.topology import SERVER
from profiles.trace import RateTrace
from testbeds._fleet.schedule import Schedule
from testbeds.virtual import driver, kernel
from testbeds.virtual.fair import Flow, Link
from testbeds.virtual.kernel import Kernel
from testbeds.virtual.network import Network
from testbeds.virtual.settings import Machine

Steps = list[tuple[int, int]]
"""(bytes per second, seconds), one after the other, looped."""


def played(name: str, steps: Steps, offset_s: float = 0.0, degree: int = 1) -> Link:
    """Return a link that plays these steps."""
    times = [float(sum(seconds for _, seconds in steps[:i])) for i in range(len(steps))]
    trace = RateTrace(name, times, [rate * 8.0 for rate, _ in steps], float(sum(seconds for _, seconds in steps)))
    link = Link(name, trace.mean_bps / 8, degree)
    link.schedule = Schedule(trace, offset_s)
    return link


def ends_of(
    starts: list[tuple[float, float, tuple[Link, ...]]], stops: dict[int, float] | None = None, general: bool = False
) -> tuple[list[float | None], Network, list[Flow]]:
    """When each flow (start, bytes, path) has its last byte; None if it was stopped before."""
    clock = Kernel()
    network = Network(clock)
    ends: list[float | None] = [None] * len(starts)
    flows = []
    if general:
        network.start(Flow(tuple(Link(f"breaker-{i}", 1e9) for i in range(3)), 1e-9, lambda _: None))

    def end(index: int) -> Callable[[Any], None]:
        def over(_: Any) -> None:
            assert ends[index] is None
            ends[index] = clock.now

        return over

    for index, (at, size, path) in enumerate(starts):
        flow = Flow(path, size, end(index))
        flows.append(flow)
        clock.at(at, network.starter(path), flow)
        if stops and index in stops:
            clock.at(stops[index], network.stop, flow)
    clock.run()
    return ends, network, flows


def rate_at(steps: Steps, time: Fraction) -> tuple[Fraction, Fraction]:
    """The rate of looped steps at a time, and until when it holds."""
    period = sum(seconds for _, seconds in steps)
    at = time // period * period
    while True:
        for rate, seconds in steps:
            at += seconds
            if at > time:
                return Fraction(rate), at


def finishing_times(
    capacity: dict[Any, tuple[Steps, Fraction]], flows: list[tuple[Fraction, Fraction, tuple[Any, ...]]]
) -> list[Fraction]:
    """When each flow has its last byte; links as (steps, offset)."""
    left = [size for _, size, _ in flows]
    ends: list[Fraction | None] = [None] * len(flows)
    now = Fraction(0)
    while None in ends:
        active = [i for i, (start, _, _) in enumerate(flows) if start <= now and ends[i] is None]
        rates_now = {link: rate_at(steps, now + offset) for link, (steps, offset) in capacity.items()}
        rates = filled({link: rate for link, (rate, _) in rates_now.items()}, [flows[i][2] for i in active])
        nexts = [start for start, _, _ in flows if start > now]
        nexts += [until - capacity[link][1] for link, (_, until) in rates_now.items()]
        nexts += [now + left[i] / rate for i, rate in zip(active, rates, strict=True) if rate]
        then = min(nexts)
        for i, rate in zip(active, rates, strict=True):
            left[i] -= rate * (then - now)
            if left[i] == 0:
                ends[i] = then
        now = then
    return [end for end in ends if end is not None]


# ---- by hand ------------------------------------------------------------------------------------------------------


def test_a_flow_alone_goes_at_the_rate_of_the_time():
    """4 B/s for 2 s, 1 B/s for 2 s: 10 bytes at 4 s; then 8 more by 6 s."""
    link = played("a", [(4, 2), (1, 2)])
    assert ends_of([(0.0, 10.0, (link,))])[0] == [4.0]
    assert ends_of([(0.0, 18.0, (played("a", [(4, 2), (1, 2)]),))])[0] == [6.0]
    assert ends_of([(1.0, 5.0, (played("a", [(4, 2), (1, 2)]),))])[0] == [3.0]


def test_an_offset_begins_elsewhere_in_the_trace():
    assert ends_of([(0.0, 9.0, (played("a", [(4, 2), (1, 2)], offset_s=3.0),))])[0] == [3.0]
    assert ends_of([(0.0, 9.0, (played("a", [(4, 2), (1, 2)], offset_s=43.0),))])[0] == [3.0]


@pytest.mark.parametrize("general", [False, True])
@pytest.mark.parametrize("where", ["hub", "leaf"])
def test_an_outage_moves_nothing_and_flows_go_on_after_it(where: str, general: bool):
    """8 B/s, none from 2 s to 12 s: of 24 bytes 16 are there before, the last at 13 s."""
    steps = [(8, 2), (0, 10)]
    hub = played("hub", steps, degree=4) if where == "hub" else Link("hub", 8.0, 4)
    leaf = played("leaf", steps) if where == "leaf" else Link("leaf", 8.0)
    ends, network, flows = ends_of([(0.0, 24.0, (leaf, hub)), (0.0, 24.0, (leaf, hub))], {1: 11.0}, general)
    assert ends == [pytest.approx(14.0), None]  # halves by 2 s; 16 left at 12 s
    assert flows[1].remaining == pytest.approx(16.0)
    assert network.general is general


@pytest.mark.parametrize("general", [False, True])
@pytest.mark.parametrize("others", [0, 1, 3])
def test_what_begins_in_an_outage_waits_for_its_end(others: int, general: bool):
    """1, 2 or 4 flows of 8 bytes at 5 s; 8 B/s again from 10 s on."""
    link = played("hub", [(8, 4), (0, 6)], degree=4)
    ends, _, _ = ends_of([(5.0, 8.0, (link,))] * (1 + others), general=general)
    assert ends == [pytest.approx(10.0 + 1 + others)] * (1 + others)


def test_a_leaf_without_a_rate_leaves_the_hub_to_the_others():
    """8 shared by two until 2 s; then the one with a working leaf has all."""
    hub, leaf, other = Link("hub", 8.0, 4), played("leaf", [(8, 2), (0, 6)]), Link("other", 8.0)
    ends, network, _ = ends_of([(0.0, 16.0, (leaf, hub)), (0.0, 24.0, (other, hub))])
    assert ends == [pytest.approx(9.0), pytest.approx(4.0)]
    assert not network.general


@pytest.mark.parametrize("general", [False, True])
@pytest.mark.parametrize("together", [1, 2])
def test_a_flow_that_ends_when_an_outage_begins_has_ended(together: int, general: bool):
    """0.3 B/s for 3 s, in floats: 0.9 bytes are there at 3 s, not at the end of the outage."""
    trace = RateTrace("a", [0.0, 0.1, 3.0], [2.4, 2.4000001, 0.0], 60.0)
    size = trace.bytes_between(0.0, 3.0) / together
    link = Link("a", 1.0, 4)
    link.schedule = Schedule(trace)
    assert ends_of([(0.0, size, (link,))] * together, general=general)[0] == [pytest.approx(3.0, abs=1e-6)] * together


@pytest.mark.parametrize("general", [False, True])
def test_a_stopped_flow_leaves_the_schedule(general: bool):
    link = played("a", [(4, 2), (1, 2)], degree=4)
    ends, network, flows = ends_of([(0.0, 1e6, (link,))], {0: 5.0}, general)
    assert ends == [None]
    assert flows[0].remaining == pytest.approx(1e6 - 14)
    # changes at 0, 2 and 4 s, two of them with a new end of the flow; the general solver also reckons anew at 0 s
    assert network.playback_events == 5 + general


def test_a_link_without_flows_costs_nothing():
    """A thousand seconds without a flow: the change that was due is the last, the next flow catches up."""
    link = played("a", [(4, 1), (1, 1)])
    ends, network, _ = ends_of([(0.0, 2.0, (link,)), (1000.5, 2.5, (link,))])
    assert ends == [0.5, pytest.approx(1001.5)]  # 2 by 1001 s, 0.5 more
    assert network.playback_events == 4  # changes at 0, 1000.5 and 1001 s, the last with a new end


def test_the_rate_of_a_link_is_set_by_hand():
    clock = Kernel()
    network = Network(clock)
    hub, leaf = Link("hub", 8.0, 4), Link("leaf", 4.0)
    ends: list[float] = []
    network.start(Flow((leaf, hub), 32.0, lambda _: ends.append(clock.now)))
    clock.at(2.0, lambda _: network.set_rate(leaf, 16.0))  # 8 sent; now the hub's 8
    clock.at(3.0, lambda _: network.set_rate(hub, 0.0))  # 16 sent
    clock.at(4.0, lambda _: network.set_rate(hub, 4.0))
    clock.run()
    assert ends == [8.0]
    for wrong in (-1.0, float("nan"), inf):
        with pytest.raises(ValueError, match="neither positive nor 0"):
            network.set_rate(hub, wrong)


# ---- against exact fractions ----------------------------------------------------------------------------------------

SIZES = st.integers(1, 48)
STARTS = st.integers(0, 16)


def steps(least: int) -> st.SearchStrategy[Steps]:
    one = st.tuples(st.sampled_from([0, 1, 2, 3, 4, 8, 8, 16]).filter(lambda r: r >= least), st.integers(1, 4))
    return st.lists(one, min_size=1, max_size=4).filter(lambda found: any(rate for rate, _ in found))


@st.composite
def traffic(draw: st.DrawFn) -> tuple[dict[str, tuple[Steps, Fraction]], list[tuple[int, int, tuple[str, ...]]]]:
    """A star of which the hub or the leaves may have outages (both at once might never work together)."""
    hub_fails = draw(st.booleans())
    offset = st.integers(0, 8).map(lambda n: Fraction(n, 4))
    links = {"hub": (draw(steps(0 if hub_fails else 1)), draw(offset))}
    for name in ("a", "b", "c"):
        links[name] = (draw(steps(1 if hub_fails else 0)), draw(offset))
    paths = st.sampled_from([("a", "hub"), ("b", "hub"), ("c", "hub"), ("hub",), ("a", "hub")])
    return links, draw(st.lists(st.tuples(STARTS, SIZES, paths), min_size=1, max_size=7))


@given(traffic(), st.booleans())
@settings(max_examples=200, deadline=None)
def test_star_and_general_agree_with_exact_pieces(given_traffic: Any, general: bool):
    links, flows = given_traffic
    real = {
        name: played(name, found, float(offset), 9 if name == "hub" else 1) for name, (found, offset) in links.items()
    }
    starts = [(at / 2, float(size), tuple(real[name] for name in path)) for at, size, path in flows]
    ends, network, _ = ends_of(starts, general=general)
    assert network.general is general
    wanted = finishing_times(links, [(Fraction(at, 2), Fraction(size), path) for at, size, path in flows])
    assert ends == [pytest.approx(float(end), rel=1e-9, abs=1e-7) for end in wanted]


@st.composite
def mesh(draw: st.DrawFn) -> tuple[dict[str, tuple[Steps, Fraction]], list[tuple[int, int, tuple[str, ...]]]]:
    """Any paths of up to three links, of which one link may have outages."""
    names = ("a", "b", "c", "d")
    weak = draw(st.sampled_from(names))
    links = {name: (draw(steps(0 if name == weak else 1)), Fraction(0)) for name in names}
    paths = st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True).map(tuple)
    return links, draw(st.lists(st.tuples(STARTS, SIZES, paths), min_size=1, max_size=6))


@given(mesh())
@settings(max_examples=120, deadline=None)
def test_any_paths_agree_with_exact_pieces(given_traffic: Any):
    links, flows = given_traffic
    real = {name: played(name, found, float(offset), 2) for name, (found, offset) in links.items()}
    starts = [(at / 2, float(size), tuple(real[name] for name in path)) for at, size, path in flows]
    ends, _, _ = ends_of(starts)
    wanted = finishing_times(links, [(Fraction(at, 2), Fraction(size), path) for at, size, path in flows])
    assert ends == [pytest.approx(float(end), rel=1e-9, abs=1e-7) for end in wanted]


TRACES = st.lists(st.tuples(st.floats(0.01, 50), st.one_of(st.just(0.0), st.floats(1, 1e7))), min_size=1, max_size=9)


@given(TRACES, st.floats(0, 1000), st.floats(0, 500), st.floats(1, 1e6), st.integers(1, 4))
@example([(1.0, 8.0), (1.0, 0.0)], 0.0, 0.0, 1.0, 1)
@settings(max_examples=200, deadline=None)
def test_the_rate_over_a_flows_lifetime_gives_its_bytes(
    found: list[tuple[float, float]], offset_s: float, start_s: float, size: float, together: int
):
    """Alone or with equals, whatever the floats: all bytes pass between start and end, but for a clock's rounding."""
    assume(any(rate for _, rate in found))
    times = [sum(seconds for seconds, _ in found[:i]) for i in range(len(found))]
    trace = RateTrace("a", times, [rate for _, rate in found], sum(seconds for seconds, _ in found))
    assume(size * together / (trace.mean_bps / 8) < 2000 * trace.period_s)
    link = Link("a", trace.mean_bps / 8, 9)
    link.schedule = Schedule(trace, offset_s)
    ends, _, _ = ends_of([(start_s, size, (link,))] * together)
    for end in ends:
        assert end is not None
        passed = trace.bytes_between(start_s + offset_s, end + offset_s)
        slack = 2e-9 * size * together + trace.max_bps / 8 * 1e-9 * max(1.0, end + offset_s) * 1e-3
        assert passed == pytest.approx(size * together, abs=slack)


# ---- in a run -----------------------------------------------------------------------------------------------------


def weak(name: str, found: Steps, **settings: Any) -> Machine:
    """A machine whose uplink plays these steps."""
    own = machine(name, **settings)
    return Machine(own.profile, played(f"{name}.up", found), own.down, own.latency_s)


def test_messages_stand_still_in_an_outage_and_arrive_after_it():
    """64 bytes at 16 B/s, none from 2 s to 7 s."""
    bench = run(
        {"device-0": lambda node: node.send(SERVER, "x", letter(64)), SERVER: lambda node: node.recv("x")},
        {"device-0": weak("device-0", [(16, 2), (0, 5)])},
    )
    assert bench.arrivals() == [9.0]
    assert bench.balanced


def test_nodes_that_wait_for_each_other_are_found_whatever_their_links_play():
    """A message was on the link, none is: the schedule does not go on for ever."""

    async def device(node: Node) -> None:
        await node.send(SERVER, "x", letter(64))
        await node.recv("never")

    async def server(node: Node) -> None:
        await node.recv("x")
        await node.recv("never", from_="device-0")

    with pytest.raises(DeadlockError, match=r"nobody can move at 9 s"):
        run({"device-0": device, SERVER: server}, {"device-0": weak("device-0", [(16, 2), (0, 5)])})


def test_a_crash_takes_the_flow_off_the_link():
    async def server(node: Node) -> None:
        await node.sleep(30)

    bench = Bench(
        {"device-0": lambda node: node.send(SERVER, "x", letter(640)), SERVER: server},
        {"device-0": weak("device-0", [(16, 2), (0, 5)])},
        faults=[(3.0, "crash", "device-0")],
    ).run()
    assert bench.rows("transfer")[0]["status"] == "undelivered"
    assert bench.driver._network.playback_events == 2  # at 0 and 2 s; at 7 s nothing is on the link


def few_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the driver look for stuck nodes every 20 events."""
    monkeypatch.setattr(kernel, "REST_EVENTS", 20)
    monkeypatch.setattr(driver, "REST_EVENTS", 20)


def test_a_long_transfer_over_a_restless_link_is_no_deadlock(monkeypatch: pytest.MonkeyPatch):
    """4,000 changes in which no node moves, far beyond the driver's patience."""
    few_rests(monkeypatch)

    async def device(node: Node) -> None:
        node.post(SERVER, "x", letter(5000))
        await node.recv("thanks")

    async def server(node: Node) -> None:
        await node.recv("x")
        await node.send("device-0", "thanks")

    bench = run({"device-0": device, SERVER: server}, {"device-0": weak("device-0", [(2, 1), (1, 1), (0, 1)])})
    assert bench.outcome.end_s == pytest.approx(5000.0, abs=3)


def test_who_polls_over_a_restless_link_while_all_are_stuck_is_found(monkeypatch: pytest.MonkeyPatch):
    few_rests(monkeypatch)

    async def poll(node: Node) -> None:
        while True:
            await node.send(SERVER, "alive", letter(64))

    async def device(node: Node) -> None:
        node.spawn(poll(node))
        await node.recv("never")

    with pytest.raises(DeadlockError, match="nobody can move"):
        run(
            {"device-0": device, SERVER: lambda node: node.recv("never")},
            {"device-0": weak("device-0", [(16, 2), (8, 1)])},
        )


def test_a_traced_link_among_constant_ones_changes_nothing_for_the_others():
    """The log of a node on another link is the same, byte for byte."""

    def arrivals(second: Any) -> list[float]:
        async def server(node: Node) -> None:
            for _ in range(4):
                await node.recv("x")

        async def device(node: Node) -> None:
            await node.send(SERVER, "x", letter(100))
            await node.send(SERVER, "x", letter(100))

        roles = {"device-0": device, "device-1": device, SERVER: server}
        return run(roles, {"device-0": {"up": 32.0}, "device-1": second}).arrivals(src="device-0")

    assert arrivals(weak("device-1", [(7, 1), (0, 2)])) == arrivals({"up": 3.0}) == [3.125, 6.25]

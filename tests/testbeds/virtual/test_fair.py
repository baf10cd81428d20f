"""testbeds/virtual/fair.py against a water-filling of its own: rates, finishing times, bytes.

The reference knows nothing of hubs and classes: it raises all rates together until a link or a cap is full,
freezes who is full, and goes on; and it moves from event to event in exact fractions.
"""

from __future__ import annotations

from fractions import Fraction
from math import inf
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbeds.virtual.fair import Flow, Hub, Link, water_fill
from testbeds.virtual.kernel import Kernel

RATES = st.sampled_from([1, 2, 3, 5, 8, 8, 8, 10, 16, 100])


def filled(capacity: dict[Any, Fraction], paths: list[tuple[Any, ...]]) -> list[Fraction]:
    """Max-min fair rates by raising all rates together: the definition, word for word."""
    rates = [Fraction(0)] * len(paths)
    rising = set(range(len(paths)))
    while rising:
        room = {}
        for link, limit in capacity.items():
            users = [i for i in rising if link in paths[i]]
            if users:
                used = sum(rates[i] for i in range(len(paths)) if link in paths[i])
                room[link] = (limit - used) / len(users)
        step = min(room.values())
        for i in rising:
            rates[i] += step
        full = {link for link, left in room.items() if left == step}
        rising = {i for i in rising if not full & set(paths[i])}
    return rates


def finishing_times(
    capacity: dict[Any, Fraction], flows: list[tuple[Fraction, Fraction, tuple[Any, ...]]]
) -> list[Fraction]:
    """When each flow (start, bytes, path) has its last byte, by stepping from event to event."""
    left = [size for _, size, _ in flows]
    ends: list[Fraction | None] = [None] * len(flows)
    now = Fraction(0)
    while None in ends:
        active = [i for i, (start, _, _) in enumerate(flows) if start <= now and ends[i] is None]
        rates = filled(capacity, [flows[i][2] for i in active])
        nexts = [start for start, _, _ in flows if start > now]
        nexts += [now + left[i] / rate for i, rate in zip(active, rates, strict=True)]
        then = min(nexts)
        for i, rate in zip(active, rates, strict=True):
            left[i] -= rate * (then - now)
            if left[i] == 0:
                ends[i] = then
        now = then
    return [end for end in ends if end is not None]


def served_by_hub(rate: float, flows: list[tuple[float, float, float]]) -> list[float]:
    """When each flow (start, bytes, cap) has its last byte, served by a Hub."""
    kernel = Kernel()
    ends: dict[int, float] = {}
    hub = Hub(kernel, rate, over)
    for index, (start, size, cap) in enumerate(flows):

        def done(_: Any, index: int = index) -> None:
            assert index not in ends
            ends[index] = kernel.now

        def begin(flow: Flow, cap: float = cap) -> None:
            hub.start(flow, cap)

        kernel.at(start, begin, Flow((), size, done))
    kernel.run()
    assert len(hub) == 0
    return [ends[index] for index in range(len(flows))]


def over(flow: Flow) -> None:
    """What a hub calls at the end of a flow."""
    flow.done(flow)


def close(got: list[float], wanted: list[Fraction]) -> None:
    assert len(got) == len(wanted)
    for a, b in zip(got, wanted, strict=True):
        assert a == pytest.approx(float(b), rel=1e-9, abs=1e-9)


# ---- the hub ----------------------------------------------------------------------------------------------------


def test_one_flow_alone_has_the_smaller_of_cap_and_hub():
    assert served_by_hub(8.0, [(0.0, 64.0, 4.0)]) == [16.0]
    assert served_by_hub(8.0, [(0.0, 64.0, 16.0)]) == [8.0]
    assert served_by_hub(8.0, [(0.0, 64.0, inf)]) == [8.0]


def test_two_flows_without_a_cap_of_their_own_share_evenly():
    assert served_by_hub(8.0, [(0.0, 32.0, inf), (0.0, 64.0, inf)]) == [8.0, 12.0]


def test_a_capped_flow_leaves_the_rest_to_the_others():
    """Caps 2 and 16 on 8: rates 2 and 6; after 8 s the second is over, the first keeps its 2."""
    assert served_by_hub(8.0, [(0.0, 32.0, 2.0), (0.0, 48.0, 16.0)]) == [16.0, 8.0]


def test_a_flow_that_comes_later_lowers_the_level_and_its_end_raises_it():
    """Alone 4 s at 8 (32 of 64); then halves: 16 bytes each by 8 s; then alone again, 16 left at 8: 10 s."""
    assert served_by_hub(8.0, [(0.0, 64.0, 8.0), (4.0, 16.0, 8.0)]) == [10.0, 8.0]


def test_caps_that_equal_the_level_exactly():
    """Four caps of 2 on 8: every cap is the level, and neither is full before the other."""
    assert served_by_hub(8.0, [(0.0, 16.0 * (i + 1), 2.0) for i in range(4)]) == [8.0, 16.0, 24.0, 32.0]


def test_many_flows_with_equal_caps_of_which_some_are_late():
    flows = [(float(i % 3), 30.0, 1.0) for i in range(30)]
    wanted = finishing_times(
        {"hub": Fraction(12), **{i: Fraction(1) for i in range(30)}},
        [(Fraction(i % 3), Fraction(30), ("hub", i)) for i in range(30)],
    )
    close(served_by_hub(12.0, flows), wanted)


FLOWS = st.lists(
    st.tuples(st.integers(0, 12).map(lambda n: Fraction(n, 2)), st.integers(1, 64).map(Fraction), RATES.map(Fraction)),
    min_size=1,
    max_size=9,
)


@given(RATES.map(Fraction), FLOWS)
@settings(max_examples=150, deadline=None)
def test_the_hub_finishes_when_water_filling_does(rate: Fraction, flows: list[tuple[Fraction, Fraction, Fraction]]):
    capacity = {"hub": rate, **{i: cap for i, (_, _, cap) in enumerate(flows)}}
    wanted = finishing_times(capacity, [(start, size, ("hub", i)) for i, (start, size, _) in enumerate(flows)])
    close(served_by_hub(float(rate), [(float(a), float(b), float(c)) for a, b, c in flows]), wanted)


@given(RATES.map(Fraction), st.lists(st.one_of(RATES.map(float), st.just(inf)), min_size=1, max_size=9))
@settings(max_examples=100, deadline=None)
def test_the_hubs_rates_are_fair_and_promise_no_more_than_it_has(rate: Fraction, caps: list[float]):
    kernel = Kernel()
    hub = Hub(kernel, float(rate), over)
    flows = [Flow((), 1e9, lambda _: None) for _ in caps]
    for flow, cap in zip(flows, caps, strict=True):
        hub.start(flow, cap)
    got = [hub.rate_of(flow) for flow in flows]
    capacity = {"hub": rate, **{i: Fraction(cap) for i, cap in enumerate(caps) if cap != inf}}
    wanted = filled(capacity, [("hub", i) for i in range(len(caps))])
    close(got, wanted)
    assert sum(got) <= float(rate) * (1 + 1e-9)


CHANGES = st.lists(
    st.tuples(st.integers(1, 8).map(lambda n: n / 4), st.integers(0, 5), st.one_of(st.none(), RATES.map(float))),
    max_size=10,
)


@given(RATES.map(float), st.lists(RATES.map(float), min_size=6, max_size=6), CHANGES)
@settings(max_examples=100, deadline=None)
def test_no_byte_is_lost_when_caps_change_and_flows_are_stopped(
    rate: float, caps: list[float], changes: list[tuple[float, int, float | None]]
):
    """Integrate the rates between the changes: that many bytes have been served, of each flow."""
    kernel = Kernel()
    done: list[Flow] = []
    hub = Hub(kernel, rate, over)
    size = 1000.0
    flows = [Flow((), size, done.append) for _ in caps]
    served = dict.fromkeys(flows, 0.0)
    active = list(flows)
    for flow, cap in zip(flows, caps, strict=True):
        hub.start(flow, cap)
    now = 0.0
    for wait, which, cap in changes:
        before = {flow: hub.rate_of(flow) for flow in active}
        now += wait
        kernel.at(now, lambda _: kernel.stop())
        kernel.stopped = False
        kernel.run()
        for flow in active:
            served[flow] += before[flow] * wait
        flow = flows[which]
        if flow not in active:
            continue
        if cap is None:
            hub.remove(flow)
            active.remove(flow)
            assert flow.remaining == pytest.approx(size - served[flow], rel=1e-9, abs=1e-6)
        else:
            hub.move(flow, cap)
    assert done == []
    assert set(hub.drain()) == set(active)
    for flow in active:
        assert flow.remaining == pytest.approx(size - served[flow], rel=1e-9, abs=1e-6)
    assert len(hub) == 0


@pytest.mark.parametrize("rate", [0.1, 0.3, 1 / 3, 1e9 / 7])
def test_caps_that_equal_the_level_up_to_rounding(rate: float):
    """rate / n is rarely a float: n caps of it add up to a little more or less than the rate."""
    for number in (3, 7, 49, 100):
        cap = rate / number
        ends = served_by_hub(rate, [(0.0, cap * 10, cap)] * number)
        assert max(ends) == pytest.approx(10.0, rel=1e-9)
        assert min(ends) == pytest.approx(10.0, rel=1e-9)


def test_a_long_run_does_not_drift():
    """20,000 back-to-back flows beside one that never ends: each takes exactly its share."""
    kernel = Kernel()
    ends: list[float] = []

    def finished(_: Any) -> None:
        ends.append(kernel.now)
        if len(ends) < 20_000:
            hub.start(Flow((), 0.3, finished), inf)
        else:
            kernel.stop()

    hub = Hub(kernel, 0.7, over)
    hub.start(Flow((), 1e12, lambda _: None), inf)
    hub.start(Flow((), 0.3, finished), inf)
    kernel.run()
    assert ends[-1] == pytest.approx(20_000 * 0.3 / 0.35, rel=1e-9)


# ---- any paths --------------------------------------------------------------------------------------------------


@given(st.lists(RATES, min_size=1, max_size=5), st.data())
@settings(max_examples=150, deadline=None)
def test_water_fill_of_any_paths(rates: list[int], data: st.DataObject):
    links = [Link(str(i), float(rate)) for i, rate in enumerate(rates)]
    choice = st.lists(st.sampled_from(links), min_size=1, max_size=3, unique=True).map(tuple)
    paths = data.draw(st.lists(choice, min_size=1, max_size=8))
    capacity = {link: Fraction(link.rate) for link in links}
    close(water_fill(paths), filled(capacity, paths))


def test_a_path_without_a_limited_link_has_no_limit():
    link = Link("a", 8.0)
    assert water_fill([(), (link,), ()]) == [inf, 8.0, inf]
    assert water_fill([]) == []


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan")])
def test_a_link_needs_a_rate(rate: float):
    with pytest.raises(ValueError, match="not positive"):
        Link("a", rate)

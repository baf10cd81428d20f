"""testbeds/virtual/fair.py against a water-filling of its own: rates, finishing times, bytes.

The reference knows nothing of hubs and classes: it raises all rates together until a link or a cap is full,
freezes who is full, and goes on; and it moves from event to event in exact fractions.
"""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from math import inf
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbeds.virtual.fair import Flow, Link, water_fill
from testbeds.virtual.kernel import Kernel
from testbeds.virtual.network import Network

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


def served(rate: float, flows: list[tuple[float, float, float]]) -> list[float]:
    """When each flow (start, bytes, cap) has its last byte: through a leaf of its own (inf: none), all on one hub."""
    kernel = Kernel()
    network = Network(kernel)
    hub = Link("hub", rate, len(flows) + 1)
    ends: dict[int, float] = {}
    for index, (start, size, cap) in enumerate(flows):

        def done(_: Any, index: int = index) -> None:
            assert index not in ends
            ends[index] = kernel.now

        path = (hub,) if cap == inf else (Link(str(index), cap), hub)
        kernel.at(start, network.start, Flow(path, size, done))
    kernel.run()
    assert not network.general
    return [ends[index] for index in range(len(flows))]


def close(got: list[float], wanted: list[Fraction]) -> None:
    assert len(got) == len(wanted)
    for a, b in zip(got, wanted, strict=True):
        assert a == pytest.approx(float(b), rel=1e-9, abs=1e-9)


# ---- the hub ------------------------------------------------------------------------------------------------------


def test_one_flow_alone_has_the_smaller_of_cap_and_hub():
    assert served(8.0, [(0.0, 64.0, 4.0)]) == [16.0]
    assert served(8.0, [(0.0, 64.0, 16.0)]) == [8.0]
    assert served(8.0, [(0.0, 64.0, inf)]) == [8.0]


def test_two_flows_without_a_cap_of_their_own_share_evenly():
    assert served(8.0, [(0.0, 32.0, inf), (0.0, 64.0, inf)]) == [8.0, 12.0]


def test_a_flow_without_a_cap_takes_what_the_others_leave():
    """3 of 8 are promised to the first; 5 are left, and 8 after 16 s."""
    assert served(8.0, [(0.0, 48.0, 3.0), (0.0, 96.0, inf)]) == [16.0, 18.0]


def test_a_capped_flow_leaves_the_rest_to_the_others():
    """Caps 2 and 16 on 8: rates 2 and 6; after 8 s the second is over, the first keeps its 2."""
    assert served(8.0, [(0.0, 32.0, 2.0), (0.0, 48.0, 16.0)]) == [16.0, 8.0]


def test_a_flow_that_comes_later_lowers_the_level_and_its_end_raises_it():
    """Alone 4 s at 8 (32 of 64); then halves: 16 bytes each by 8 s; then alone again, 16 left at 8: 10 s."""
    assert served(8.0, [(0.0, 64.0, 8.0), (4.0, 16.0, 8.0)]) == [10.0, 8.0]


def test_caps_that_equal_the_level_exactly():
    """Four caps of 2 on 8: every cap is the level, and neither is full before the other."""
    assert served(8.0, [(0.0, 16.0 * (i + 1), 2.0) for i in range(4)]) == [8.0, 16.0, 24.0, 32.0]


def test_many_flows_with_equal_caps_of_which_some_are_late():
    wanted = finishing_times(
        {"hub": Fraction(12), **{i: Fraction(1) for i in range(30)}},
        [(Fraction(i % 3), Fraction(30), ("hub", i)) for i in range(30)],
    )
    close(served(12.0, [(float(i % 3), 30.0, 1.0) for i in range(30)]), wanted)


FLOWS = st.lists(
    st.tuples(
        st.integers(0, 12).map(lambda n: Fraction(n, 2)),
        st.integers(1, 64).map(Fraction),
        st.one_of(RATES.map(Fraction), st.none()),
    ),
    min_size=1,
    max_size=9,
)


@given(RATES.map(Fraction), FLOWS)
@settings(max_examples=150, deadline=None)
def test_a_hub_finishes_when_water_filling_does(
    rate: Fraction, flows: list[tuple[Fraction, Fraction, Fraction | None]]
):
    capacity = {"hub": rate, **{i: cap for i, (_, _, cap) in enumerate(flows) if cap is not None}}
    paths = [("hub",) if cap is None else ("hub", i) for i, (_, _, cap) in enumerate(flows)]
    wanted = finishing_times(capacity, [(at, size, path) for (at, size, _), path in zip(flows, paths, strict=True)])
    close(served(float(rate), [(float(a), float(b), inf if c is None else float(c)) for a, b, c in flows]), wanted)


STOPS = st.lists(st.tuples(st.integers(0, 7), st.integers(1, 20).map(lambda n: n / 4)), max_size=6)


@given(RATES, st.lists(RATES, min_size=3, max_size=3), STOPS, st.booleans())
@settings(max_examples=100, deadline=None)
def test_no_byte_is_lost_when_flows_are_stopped(
    rate: int, leaves: list[int], stops: list[tuple[int, float]], general: bool
):
    """Eight endless flows over three leaves, some stopped on the way: what was served is what the rates add up to."""
    kernel = Kernel()
    network = Network(kernel)
    hub = Link("hub", float(rate), 8)
    ends = [Link(str(i), float(leaf)) for i, leaf in enumerate(leaves)]
    if general:
        network.start(Flow(tuple(Link(f"breaker-{i}", 1e9) for i in range(3)), 1e-9, lambda _: None))
    size = 1000.0
    paths = [(ends[i % 3], hub) for i in range(8)]
    flows = [Flow(path, size, lambda _: None) for path in paths]
    for flow in flows:
        kernel.at(0.0, network.start, flow)
    when = dict(stops)
    for which, at in when.items():
        kernel.at(at, network.stop, flows[which])
    kernel.at(6.0, lambda _: kernel.stop())
    kernel.run()

    capacity = {link: Fraction(link.rate) for link in (hub, *ends)}
    sent = [Fraction(0)] * 8
    times = sorted({Fraction(0), *map(Fraction, when.values()), Fraction(6)})
    for begin, end in pairwise(times):
        active = [i for i in range(8) if Fraction(when.get(i, 99.0)) > begin]
        for i, got in zip(active, filled(capacity, [paths[i] for i in active]), strict=True):
            sent[i] += got * (end - begin)
    for which in when:
        assert flows[which].remaining == pytest.approx(size - float(sent[which]), rel=1e-9, abs=1e-6)


@pytest.mark.parametrize("rate", [0.1, 0.3, 1 / 3, 1e9 / 7])
def test_caps_that_equal_the_level_up_to_rounding(rate: float):
    """rate / n is rarely a float: n caps of it add up to a little more or less than the rate."""
    for number in (3, 7, 49, 100):
        cap = rate / number
        ends = served(rate, [(0.0, cap * 10, cap)] * number)
        assert max(ends) == pytest.approx(10.0, rel=1e-9)
        assert min(ends) == pytest.approx(10.0, rel=1e-9)


@pytest.mark.parametrize("capped", [False, True])
def test_a_long_run_does_not_drift(capped: bool):
    """5,000 back-to-back flows beside one that never ends: each takes exactly its share, 0.3 bytes at 0.35 a second."""
    kernel = Kernel()
    network = Network(kernel)
    hub = Link("hub", 0.7, 9)
    ends: list[float] = []
    path = (Link("leaf", 0.6), hub) if capped else (hub,)

    def done(_: Any) -> None:
        ends.append(kernel.now)
        if len(ends) < 5_000:
            network.start(Flow(path, 0.3, done))
        else:
            kernel.stop()

    network.start(Flow((Link("other", 0.5), hub) if capped else (hub,), 1e12, lambda _: None))
    network.start(Flow(path, 0.3, done))
    kernel.run()
    assert len(ends) == 5_000
    assert ends[-1] == pytest.approx(5_000 * 0.3 / 0.35, rel=1e-9)


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

"""testbeds/virtual/network.py: flows on links, in the star and beyond it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from math import inf
from typing import Any

import pytest
from bench_nodes import letter, machine, run
from hypothesis import given, settings
from hypothesis import strategies as st
from test_fair import finishing_times

from harness.node import Node
from harness.topology import SERVER
from testbeds.virtual.fair import Flow, Link
from testbeds.virtual.kernel import Kernel
from testbeds.virtual.network import Network
from testbeds.virtual.settings import Machine

Start = tuple[float, float, tuple[Link, ...]]


def ends_of(
    starts: list[Start], stops: dict[int, float] | None = None, general: bool = False
) -> tuple[list[float | None], Network]:
    """When each flow (start, bytes, path) has its last byte; None if it was stopped before."""
    kernel = Kernel()
    network = Network(kernel)
    ends: list[float | None] = [None] * len(starts)
    if general:  # break the star at once: one flow over three links of its own
        own = tuple(Link(f"breaker-{i}", 1e9) for i in range(3))
        network.start(Flow(own, 1e-9, lambda _: None))

    def end(index: int) -> Callable[[Any], None]:
        def over(_: Any) -> None:
            ends[index] = kernel.now

        return over

    for index, (at, size, path) in enumerate(starts):
        flow = Flow(path, size, end(index))
        kernel.at(at, network.start, flow)
        if stops and index in stops:
            kernel.at(stops[index], network.stop, flow)
    kernel.run()
    return ends, network


def star(devices: list[int], server: int) -> tuple[list[Link], Link]:
    return [Link(f"device-{i}.up", float(rate)) for i, rate in enumerate(devices)], Link(
        "server.down", float(server), len(devices)
    )


def test_a_path_without_links_takes_no_time():
    ends, network = ends_of([(1.0, 1e9, ())])
    assert (ends, network.general) == ([1.0], False)


def test_a_star_stays_a_star():
    ups, down = star([8, 8, 2], 8)
    ends, network = ends_of([(0.0, 24.0, (ups[0], down)), (0.0, 24.0, (ups[1], down)), (0.0, 16.0, (ups[2], down))])
    assert ends == [8.0, 8.0, 8.0]  # 3 + 3 + 2 on 8
    assert not network.general


def test_two_flows_of_one_device_share_its_own_link():
    """Data and control: 2 + 2 of its 4; the other device has the remaining 4 of the server's 8.

    At 4 s the second is over, the first has 4; at 6 s it is over, too, and the other device has all 8 for its last 8.
    """
    ups, down = star([4, 8], 8)
    ends, network = ends_of([(0.0, 16.0, (ups[0], down)), (0.0, 8.0, (ups[0], down)), (0.0, 32.0, (ups[1], down))])
    assert ends == [6.0, 4.0, 7.0]
    assert not network.general


def test_several_flows_over_one_link_alone():
    """Halves until 4 s (16 and 48 left), thirds until 5.5 s (12 and 44), halves until 8.5 s, then 32 at 8."""
    link = Link("server.up", 8.0, 4)
    ends, _ = ends_of([(0.0, 32.0, (link,)), (0.0, 64.0, (link,)), (4.0, 4.0, (link,))])
    assert ends == pytest.approx([8.5, 12.5, 5.5])


def test_leaving_the_star_after_shares_have_changed():
    """A control message comes and goes beside data (caps move to and fro), then the device also talks elsewhere."""
    up, server, edge = Link("device.up", 8.0, 2), Link("server.down", 16.0, 4), Link("edge.lan", 8.0, 1)
    other = Link("b", 8.0)
    starts = [(0.0, 96.0, (up, server)), (1.0, 8.0, (up, server)), (4.0, 8.0, (up, edge)), (0.0, 64.0, (other, server))]
    ends, network = ends_of(starts)
    assert network.general
    # data: 8 by 1 s, 16 by 3 s, 24 by 4 s, 32 by 6 s, then 8 a second
    assert ends == pytest.approx([14.0, 3.0, 6.0, 8.0])


def test_a_stopped_flow_frees_its_share():
    ups, down = star([8, 8], 8)
    ends, _ = ends_of([(0.0, 64.0, (ups[0], down)), (0.0, 64.0, (ups[1], down))], stops={0: 4.0})
    assert ends == [None, 10.0]  # 16 by 4 s, 48 more at 8


@pytest.mark.parametrize("general", [False, True])
def test_stopping_all_leaves_nothing(general: bool):
    ups, down = star([8, 8], 8)
    ends, _ = ends_of([(0.0, 64.0, (ups[0], down)), (0.0, 64.0, (ups[1], down))], {0: 1.0, 1: 2.0}, general)
    assert ends == [None, None]


def test_stopping_a_flow_that_is_over_changes_nothing():
    ups, down = star([8, 8], 8)
    ends, _ = ends_of([(0.0, 8.0, (ups[0], down)), (0.0, 64.0, (ups[1], down))], stops={0: 6.0})
    assert ends == [2.0, 9.0]


def test_a_device_that_talks_to_edge_and_server_at_once_leaves_the_star():
    """Its 8 are halved. The edge's LAN (3) is narrower: 3 and 5; the server's flow ends at 4 s, the edge's at 8 s."""
    up, lan, wan = Link("device.up", 8.0, 2), Link("edge.lan", 3.0, 1), Link("server.down", 16.0, 2)
    ends, network = ends_of([(0.0, 24.0, (up, lan)), (0.0, 20.0, (up, wan))])
    assert ends == pytest.approx([8.0, 4.0])
    assert network.general


def test_leaving_the_star_keeps_what_was_sent():
    """At 2 s 16 of 64 bytes have left; then 4 + 4 until the second is over at 4 s; then 40 at 8: 9 s."""
    up, one, two = Link("a.up", 8.0), Link("b.down", 8.0), Link("c.down", 8.0)
    ends, network = ends_of([(0.0, 64.0, (up, one)), (2.0, 8.0, (up, two))])
    assert ends == pytest.approx([9.0, 4.0])
    assert network.general


RATES = st.sampled_from([1, 2, 4, 4, 8, 16])


@st.composite
def star_traffic(draw: st.DrawFn) -> list[Start]:
    rates = draw(st.lists(RATES, min_size=1, max_size=5))
    ups, down = star(rates, draw(RATES))
    flows = []
    for _ in range(draw(st.integers(1, 8))):
        at, size = draw(st.integers(0, 16)) / 2, float(draw(st.integers(1, 64)))
        flows.append((at, size, (draw(st.sampled_from(ups)), down)))
    return flows


@given(star_traffic(), st.booleans())
@settings(max_examples=120, deadline=None)
def test_star_and_general_agree_with_water_filling(starts: list[Start], general: bool):
    ends, network = ends_of(starts, general=general)
    assert network.general is general
    capacity = {link: Fraction(link.rate) for _, _, path in starts for link in path}
    wanted = finishing_times(capacity, [(Fraction(at), Fraction(size), path) for at, size, path in starts])
    assert ends == pytest.approx([float(end) for end in wanted], rel=1e-9, abs=1e-8)


@st.composite
def any_traffic(draw: st.DrawFn) -> list[Start]:
    """Both directions of a three-tier system: device - edge - server, and device - server."""
    up = [Link(f"device-{i}.up", float(draw(RATES)), 2) for i in range(3)]
    down = [Link(f"device-{i}.down", float(draw(RATES)), 2) for i in range(3)]
    lan, wan = Link("edge.lan", float(draw(RATES)), 3), Link("edge.wan", float(draw(RATES)), 1)
    server_up, server_down = Link("server.up", float(draw(RATES)), 4), Link("server.down", float(draw(RATES)), 4)
    paths = [(link, lan) for link in up] + [(link, server_down) for link in up] + [(wan, server_down)]
    paths += [(server_up, link) for link in down] + [(up[0], down[1])] + [(server_up,)]
    flows = []
    for _ in range(draw(st.integers(1, 7))):
        flows.append((draw(st.integers(0, 8)) / 2, float(draw(st.integers(1, 64))), draw(st.sampled_from(paths))))
    return flows


@given(any_traffic())
@settings(max_examples=150, deadline=None)
def test_any_traffic_agrees_with_water_filling(starts: list[Start]):
    ends, _ = ends_of(starts)
    capacity = {link: Fraction(link.rate) for _, _, path in starts for link in path}
    wanted = finishing_times(capacity, [(Fraction(at), Fraction(size), path) for at, size, path in starts])
    assert ends == pytest.approx([float(end) for end in wanted], rel=1e-9, abs=1e-7)


# ---- through the Node: which links a path has -------------------------------------------------------------------


def three_tiers() -> dict[str, Any]:
    edge = machine("edge", up=16.0, down=16.0, latency_s=4.0, degree=1)
    return {
        "device-0": {"up": 64.0, "down": 64.0, "latency_s": 0.5, "degree": 2},
        "edge-0": Machine(
            edge.profile,
            edge.up,
            edge.down,
            edge.latency_s,
            lan_up=Link("lan.up", 32.0),
            lan_down=Link("lan.down", 32.0),
            lan_latency_s=0.25,
        ),
        "server": {"down": 128.0, "latency_s": 1.0},
    }


def test_an_edge_has_a_lan_to_its_devices_and_a_wan_to_the_server():
    """64 bytes each way. device -> edge: the LAN's 32 B/s, 0.5 + 0.25. edge -> server: the WAN's 16 B/s, 4 + 1."""
    at = {}

    async def device(node: Node) -> None:
        assert node.edge == "edge-0"
        await node.send(node.edge, "up", letter(64))
        at["device to edge"] = node.now_s
        await node.recv("down")
        at["edge to device"] = node.now_s

    async def edge(node: Node) -> None:
        await node.recv("up")
        await node.send(SERVER, "up", letter(64))
        at["edge to server"] = node.now_s
        await node.recv("down", from_=SERVER)
        at["server to edge"] = node.now_s
        await node.send(node.devices[0], "down", letter(64))

    async def server(node: Node) -> None:
        await node.recv("up")
        await node.send("edge-0", "down", letter(64))
        await node.sleep(100)

    run({"device-0": device, "edge-0": edge, "server": server}, three_tiers(), edge_of={"device-0": "edge-0"})
    assert at == {
        "device to edge": 2.75,
        "edge to server": 2.75 + 4 + 5,
        "server to edge": 11.75 + 4 + 5,
        "edge to device": 20.75 + 2.75,
    }


def test_a_device_sends_to_edge_and_server_at_once():
    """32 + 32 of its 64 B/s: 64 bytes over the LAN at 2 s + 0.75, 64 to the server at 2 s + 1.5."""

    async def device(node: Node) -> None:
        node.post("edge-0", "x", letter(64))
        await node.send(SERVER, "x", letter(64))

    async def edge(node: Node) -> None:
        await node.recv("x")
        assert node.now_s == pytest.approx(2.75)
        await node.sleep(100)

    async def server(node: Node) -> None:
        await node.recv("x")
        assert node.now_s == pytest.approx(3.5)

    bench = run({"device-0": device, "edge-0": edge, "server": server}, three_tiers(), edge_of={"device-0": "edge-0"})
    assert bench.driver.general_sharing
    assert inf not in bench.arrivals()


@pytest.mark.parametrize(("jittery", "late"), [("jitter_s", "server"), ("lan_jitter_s", "device-0")])
def test_the_jitter_of_an_edge_is_that_of_the_network_it_sends_on(jittery: str, late: str):
    """Without jitter 2.75 s to the device over the LAN, 9 s to the server over the WAN."""

    async def edge(node: Node) -> None:
        await node.send("device-0", "x", letter(64))
        await node.send(SERVER, "x", letter(64))

    async def receiver(node: Node) -> None:
        await node.recv("x")

    machines = three_tiers()
    machines["edge-0"] = replace(machines["edge-0"], **{jittery: 0.125})
    bench = run({"device-0": receiver, "edge-0": edge, "server": receiver}, machines, edge_of={"device-0": "edge-0"})
    took = {row["dst"]: row["arrived_s"] - row["posted_s"] for row in bench.rows("transfer")}
    exact = {"device-0": 2.75, "server": 9.0}
    assert {name for name in exact if took[name] != exact[name]} == {late}
    assert took[late] > exact[late]

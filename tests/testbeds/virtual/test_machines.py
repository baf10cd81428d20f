"""testbeds/virtual/machines.py: links of nodes, and the medium that devices on Wi-Fi share."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest
from bench_nodes import letter, profile, run
from hypothesis import given, settings
from hypothesis import strategies as st
from test_network import ends_of

from harness.node import Node
from harness.topology import SERVER
from profiles import library
from testbeds._fleet.links import topology
from testbeds.virtual.config import Config
from testbeds.virtual.fair import Link
from testbeds.virtual.machines import machines
from testbeds.virtual.settings import Machine


def built(devices: list[dict[str, Any]], **section: Any) -> dict[str, Machine]:
    config = Config(devices=devices, **section)  # type: ignore[arg-type]
    return machines(config, topology(config))


def path(a: Machine, b: Machine) -> tuple[Link, ...]:
    """The links that the driver puts between two nodes."""
    return tuple(link for link in (a.up, a.medium, b.medium, b.down) if link is not None and link.rate != inf)


PI = {"profile": "rpi-4-4g", "count": 2}
WIFI = library.network("wifi-ac-pi4").up_bps / 8


def test_devices_on_wifi_share_one_medium_by_default():
    """Its rate is the network's, in each direction and in both together; the wide server link is left off."""
    found = built([PI], network="wifi-ac-pi4", server={"network": "eth-1g"})
    medium = found["device-0"].medium
    assert medium is not None
    assert medium.rate == WIFI
    assert path(found["device-0"], found[SERVER]) == path(found[SERVER], found["device-1"]) == (medium,)


def test_on_other_networks_and_when_told_so_there_is_none():
    for section in ({"network": "lte"}, {"network": "wifi-ac-pi4", "medium": "separate"}):
        found = built([PI], **section)
        up, down = path(found["device-0"], found[SERVER]), path(found[SERVER], found["device-0"])
        assert up == (found["device-0"].up, found[SERVER].down)
        assert down == (found[SERVER].up, found["device-0"].down)


def test_groups_say_more_than_the_testbed():
    groups = [PI, PI | {"medium": "separate"}, PI | {"network": "lte"}, PI | {"network": "lte", "medium": "shared"}]
    found = built(groups, network="wifi-ac-pi4")
    media = [found[f"device-{i}"].medium for i in range(8)]
    assert media[0] is media[1] is not None
    assert media[2:6] == [None] * 4
    assert media[6] is media[7] is not None
    assert media[6].rate == max(library.network("lte").up_bps, library.network("lte").down_bps) / 8


def test_the_same_network_is_the_same_medium_for_every_group():
    found = built([PI, PI | {"network": "wifi-ac-pi4"}, PI | {"network": "wifi-n-24ghz"}], network="wifi-ac-pi4")
    media = [found[f"device-{i}"].medium for i in range(6)]
    assert len({id(medium) for medium in media}) == 2
    assert media[0] is media[3]


def test_figures_of_ones_own_share_if_told_so():
    own = {"up_bps": 8e6, "down_bps": 16e6}
    found = built([PI | {"network": own}, PI], network=own, medium="shared")
    media = [found[f"device-{i}"].medium for i in range(4)]
    assert media[0] is media[1] is not media[2] is media[3]
    assert [medium.rate for medium in media if medium] == [2e6] * 4
    assert path(found["device-0"], found[SERVER]) == (found["device-0"].up, media[0])  # its own 8 Mbit/s bind
    assert path(found[SERVER], found["device-0"]) == (media[0],)


def test_a_server_link_that_may_be_the_bottleneck_stays_on_the_path():
    found = built([PI], network="wifi-ac-pi4", server={"network": {"up_bps": 50e6, "down_bps": 500e6}})
    medium = found["device-0"].medium
    assert path(found["device-0"], found[SERVER]) == (medium,)
    assert path(found[SERVER], found["device-0"]) == (found[SERVER].up, medium)


def test_all_that_may_come_at_once_is_summed_up():
    """A medium of 13.5 MB/s and two at LTE's rates: only what is faster than the sum is left off."""
    groups = [PI | {"network": "wifi-ac-pi4"}, PI | {"network": {"up_bps": 8e6, "down_bps": 8e6}}]
    for rate, left_off in ((13.5e6 + 2e6, True), (13.5e6 + 2e6 - 1, False)):
        found = built(groups, server={"network": {"up_bps": rate * 8, "down_bps": rate * 8}})
        assert (found[SERVER].down.rate == inf) is left_off
        assert (found[SERVER].up.rate == inf) is left_off


def test_every_edge_has_a_cell_of_its_own():
    found = built([PI | {"count": 4}], network="wifi-ac-pi4", edges={"count": 2, "lan": "eth-1g"})
    media = [found[f"device-{i}"].medium for i in range(4)]
    assert media[0] is media[2] is not media[1] is media[3]
    assert found["edge-0"].lan_up is not None
    assert found["edge-0"].lan_up.rate == inf
    assert found["edge-0"].up.rate < inf


# ---- what the medium does -------------------------------------------------------------------------------------------


def on_medium(count: int, rate: float, server: float = inf) -> dict[str, Machine]:
    medium = Link("medium", rate, 9)
    found = {
        f"device-{i}": Machine(profile(), Link(f"{i}.up", inf), Link(f"{i}.down", inf), medium=medium)
        for i in range(count)
    }
    found[SERVER] = Machine(profile(), Link("s.up", server, count), Link("s.down", server, count))
    return found


@pytest.mark.parametrize("server", [inf, 10e6 / 8])
def test_two_devices_up_and_down_share_ten_megabits(server: float):
    """Four transfers of 1.25 MB on 10 Mbit/s: a quarter each, 4 s. With a rate per direction it would be 2 s.

    A server of 10 Mbit/s each way changes nothing: it carries half of it in each direction.
    """

    async def device(node: Node) -> None:
        node.post(SERVER, "up", letter(1_250_000))
        await node.recv("down")

    async def serve(node: Node) -> None:
        for name in node.devices:
            node.post(name, "down", letter(1_250_000))
        for _ in node.devices:
            await node.recv("up")

    bench = run({"device-0": device, "device-1": device, SERVER: serve}, on_medium(2, 10e6 / 8, server))
    assert bench.arrivals() == pytest.approx([4.0] * 4)
    assert not bench.driver.general_sharing


def test_from_device_to_device_the_medium_is_crossed_twice():
    """Through the access point: 64 bytes at half of 16 B/s."""

    async def sender(node: Node) -> None:
        await node.send("device-1", "x", letter(64))

    async def receiver(node: Node) -> None:
        await node.recv("x")

    async def server(node: Node) -> None:
        await node.sleep(20)

    bench = run({"device-0": sender, "device-1": receiver, SERVER: server}, on_medium(2, 16.0))
    assert bench.arrivals() == [8.0]


RATES = st.sampled_from([8, 16, 40, 80, 400])


@given(
    st.lists(st.tuples(RATES, RATES), min_size=1, max_size=3),
    RATES,
    st.lists(
        st.tuples(st.integers(0, 12), st.integers(1, 400), st.integers(0, 5), st.booleans()), min_size=1, max_size=7
    ),
)
@settings(max_examples=100, deadline=None)
def test_what_is_left_off_changes_no_time(
    links: list[tuple[int, int]], server: int, flows: list[tuple[int, int, int, bool]]
):
    """Links left off a path or not: the same ends as with every link on it, which the general solver serves."""
    groups = [
        {"profile": "rpi-4-4g", "network": {"up_bps": up * 8.0, "down_bps": down * 8.0}, "medium": medium}
        for (up, down), medium in zip(links, ("shared", "shared", "separate"), strict=False)
    ]
    bed = {"network": {"up_bps": server * 8.0, "down_bps": server * 8.0}}
    found = built(groups, server=bed)
    alone = built(groups, server=bed, medium="separate")
    full = {}
    plain = built([group | {"medium": "separate"} for group in groups], server=bed)
    for name, machine in found.items():
        full[name] = Machine(profile(), plain[name].up, plain[name].down, medium=machine.medium)
    assert alone.keys() == full.keys()

    def ends(machine_of: dict[str, Machine], general: bool) -> Any:
        starts = []
        for at, size, which, upwards in flows:
            device, host = machine_of[f"device-{which % len(links)}"], machine_of[SERVER]
            between = path(device, host) if upwards else path(host, device)
            starts.append((at / 4, float(size), between))
        return ends_of(starts, general=general)[0]

    wanted = ends(full, True)
    fresh = built(groups, server=bed)
    assert ends(fresh, False) == pytest.approx(wanted, rel=1e-9, abs=1e-7)


@pytest.mark.parametrize("way", ["up", "down"])
@pytest.mark.parametrize("name", ["wifi-ac-pi4", "wifi-ac-pi5", "wifi-n-24ghz"])
def test_a_board_slower_than_the_medium_keeps_its_own_link(name: str, way: str):
    network, wifi = library.network(name), library.device("rpi-4-4g").wifi_bps
    assert wifi is not None
    own = min(wifi, network.up_bps if way == "up" else network.down_bps)
    link = getattr(built([PI], network=name)["device-0"], way)
    assert link.rate == (inf if own >= max(network.up_bps, network.down_bps) else own / 8)

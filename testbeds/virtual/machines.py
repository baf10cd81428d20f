"""Profiles and links of every node, from the testbed's settings."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from math import inf
from pathlib import Path

from harness.topology import SERVER, Topology
from profiles import library
from profiles.device import DeviceProfile
from profiles.network import NetworkProfile
from testbeds.virtual import recorded
from testbeds.virtual.config import Config
from testbeds.virtual.fair import Link
from testbeds.virtual.sections import Link as LinkConfig
from testbeds.virtual.settings import Machine


def topology(config: Config) -> Topology:
    """Return the names of all nodes; devices are numbered through their groups."""
    return Topology.numbered(config.num_devices, config.edges.count if config.edges is not None else 0)


def machines(config: Config, nodes: Topology, seed: int = 0, data_root: Path | None = None) -> dict[str, Machine]:
    """Return what each node runs on.

    Args:
        seed: of what nodes draw: which trace, and where in it they begin.
        data_root: where recorded rates may lie; None = $AMMETER_DATA.

    Raises:
        ProfileError: an unknown profile, a trace that cannot be read.
    """
    builder = _Builder(seed, data_root)
    found: dict[str, Machine] = {}
    peers = len(nodes.devices) + len(nodes.edges)
    names = iter(nodes.devices)
    media: dict[tuple[str, str | None], Link] = {}
    for position, group in enumerate(config.devices):
        profile = library.device(group.profile)
        network = group.network or config.network
        rate = _medium_rate(network, group.medium or config.medium)
        for _ in range(group.count):
            name = next(names)
            machine = builder.machine(name, profile, network, degree=1 + bool(nodes.edges))
            if rate is not None:
                # one cell per network and edge: what is the same network elsewhere is another access point
                own = network if isinstance(network, str) else f"devices[{position}]" if group.network else "network"
                cell = (own, nodes.edge_of.get(name))
                if cell not in media:
                    media[cell] = Link(".".join(filter(None, (*cell, "medium"))), rate, 2 * len(nodes.devices) + 2)
                machine = _on_medium(machine, media[cell])
            found[name] = machine
    if config.edges is not None:
        profile = library.device(config.edges.profile)
        for name in nodes.edges:
            wan = builder.machine(name, profile, config.edges.network, degree=1)
            lan = builder.machine(f"{name}.lan", profile, config.edges.lan, degree=len(nodes.devices_of(name)))
            found[name] = Machine(
                profile, wan.up, wan.down, wan.latency_s, wan.jitter_s, lan.up, lan.down, lan.latency_s
            )
    server = library.device(config.server.profile)
    found[SERVER] = builder.machine(SERVER, server, config.server.network, degree=peers)
    if media:
        _drop_wide_links(found, nodes)
    return found


class _Builder:
    """Nodes on networks, with the traces that they draw from the seed."""

    def __init__(self, seed: int, data_root: Path | None) -> None:
        self._seed = seed
        self._data_root = data_root

    def machine(self, name: str, profile: DeviceProfile, network: str | LinkConfig, degree: int) -> Machine:
        """Return a node on one network; a named network is capped by what the board's own interface carries."""
        if isinstance(network, LinkConfig):
            up, down = (self._link(name, network, way, degree) for way in recorded.WAYS)
            return Machine(profile, up, down, network.latency_s, network.jitter_s)
        known = library.network(network)
        up_bps, down_bps = _capped(known, profile)
        return Machine(
            profile,
            Link(f"{name}.up", up_bps / 8, degree),
            Link(f"{name}.down", down_bps / 8, degree),
            known.latency_s,
            known.jitter_s,
        )

    def _link(self, name: str, network: LinkConfig, way: recorded.Way, degree: int) -> Link:
        schedule = recorded.schedule(network, way, name, self._seed, self._data_root)
        if schedule is None:
            bps = network.up_bps if way == "up" else network.down_bps
            return Link(f"{name}.{way}", (bps or inf) / 8, degree)
        link = Link(f"{name}.{way}", schedule.trace.mean_bps / 8, degree)
        if network.playback == "trace" and not schedule.trace.constant:
            link.schedule = schedule
        return link


def _capped(network: NetworkProfile, profile: DeviceProfile) -> tuple[float, float]:
    """Return bits per second up and down of a board on a named network."""
    caps = (profile.wifi_bps, profile.wifi_bps)
    if network.technology.startswith("Ethernet"):
        caps = (profile.nic_up_bps, profile.nic_down_bps)
    elif not network.technology.startswith("Wi-Fi"):
        caps = (None, None)
    return min(network.up_bps, caps[0] or inf), min(network.down_bps, caps[1] or inf)


# ---- the shared medium -------------------------------------------------------------------------------------------


def _medium_rate(network: str | LinkConfig, medium: str | None) -> float | None:
    """Return the bytes per second that all on a network share, up and down together; None if they share nothing."""
    if isinstance(network, LinkConfig):
        if medium != "shared":
            return None
        return max(network.up_bps or inf, network.down_bps or inf) / 8
    known = library.network(network)
    if medium == "separate" or (medium is None and not known.shared_medium):
        return None
    return max(known.up_bps, known.down_bps) / 8


def _on_medium(machine: Machine, medium: Link) -> Machine:
    """Put a device on a medium; its own link is left off where it carries all that the medium does: it never binds."""
    up, down = (_endless(link) if link.rate >= medium.rate else link for link in (machine.up, machine.down))
    return replace(machine, up=up, down=down, medium=medium)


def _drop_wide_links(found: dict[str, Machine], nodes: Topology) -> None:
    """Leave off what the server (and edges' LANs) can carry if all that may come at once is less: it never binds.

    What is left is a star around the medium, with its fast solver, instead of paths over three links.
    """
    devices = [found[name] for name in nodes.devices]
    edges = [found[name] for name in nodes.edges]
    server = found[SERVER]
    found[SERVER] = replace(
        server,
        up=_unless_wide(server.up, _most(devices, "down") + sum(_fastest(edge.down) for edge in edges)),
        down=_unless_wide(server.down, _most(devices, "up") + sum(_fastest(edge.up) for edge in edges)),
    )
    for name, edge in zip(nodes.edges, edges, strict=True):
        assert edge.lan_up is not None
        assert edge.lan_down is not None
        found[name] = replace(
            edge,
            lan_up=_unless_wide(edge.lan_up, _most(devices, "down")),
            lan_down=_unless_wide(edge.lan_down, _most(devices, "up")),
        )


def _most(devices: Iterable[Machine], way: recorded.Way) -> float:
    """Return the most bytes per second that devices can send (up) or receive (down) at once: a medium counts once."""
    media = {device.medium: device.medium.rate for device in devices if device.medium is not None}
    alone = (device.up if way == "up" else device.down for device in devices if device.medium is None)
    return sum(media.values()) + sum(map(_fastest, alone))


def _unless_wide(link: Link, most: float) -> Link:
    slowest = link.rate if link.schedule is None else min(link.schedule.trace.rates_bps) / 8
    return _endless(link) if slowest >= most else link


def _fastest(link: Link) -> float:
    return link.rate if link.schedule is None else link.schedule.trace.max_bps / 8


def _endless(link: Link) -> Link:
    return Link(link.name, inf, link.degree)

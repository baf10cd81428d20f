"""Profiles and links of every node, from the testbed's settings."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from math import inf
from pathlib import Path

from harness.topology import SERVER, Topology
from profiles import library
from testbeds._fleet.links import Cell, NodeLink, node_links
from testbeds._fleet.recorded import Way
from testbeds.virtual.config import Config
from testbeds.virtual.fair import Link
from testbeds.virtual.settings import Machine


def machines(config: Config, nodes: Topology, seed: int = 0, data_root: Path | None = None) -> dict[str, Machine]:
    """Return what each node runs on.

    Args:
        seed: of what nodes draw: which trace, and where in it they begin.
        data_root: where recorded rates may lie; None = $AMMETER_DATA.

    Raises:
        ProfileError: an unknown profile, a trace that cannot be read.
    """
    links = node_links(config, nodes, seed, data_root)
    found: dict[str, Machine] = {}
    names = iter(nodes.devices)
    media: dict[Cell, Link] = {}
    for group in config.devices:
        profile = library.device(group.profile)
        for _ in range(group.count):
            name = next(names)
            given = links[name]
            found[name] = Machine(profile, *_pair(name, given, 1 + bool(nodes.edges)), given.latency_s, given.jitter_s)
            if given.cell is not None:
                if given.cell not in media:
                    media[given.cell] = Link(given.cell.name, given.cell.bps / 8, 2 * len(nodes.devices) + 2)
                found[name] = _on_medium(found[name], media[given.cell])
    if config.edges is not None:
        profile = library.device(config.edges.profile)
        for name in nodes.edges:
            given = links[name]
            assert given.lan is not None
            found[name] = Machine(
                profile,
                *_pair(name, given, 1),
                given.latency_s,
                given.jitter_s,
                *_pair(f"{name}.lan", given.lan, len(nodes.devices_of(name))),
                given.lan.latency_s,
                given.lan.jitter_s,
            )
    given = links[SERVER]
    ends = _pair(SERVER, given, len(nodes.devices) + len(nodes.edges))
    found[SERVER] = Machine(library.device(config.server.profile), *ends, given.latency_s, given.jitter_s)
    if media:
        _drop_wide_links(found, nodes)
    return found


def _pair(name: str, given: NodeLink, degree: int) -> tuple[Link, Link]:
    """Return the two directions of a node's link, up and down."""
    up = Link(f"{name}.up", _rate(given.up_bps), degree)
    down = Link(f"{name}.down", _rate(given.down_bps), degree)
    up.schedule, down.schedule = given.up, given.down
    return up, down


def _rate(bps: float | None) -> float:
    """Return bytes per second."""
    return inf if bps is None else bps / 8


# ---- the shared medium -------------------------------------------------------------------------------------------


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


def _most(devices: Iterable[Machine], way: Way) -> float:
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

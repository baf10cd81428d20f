"""Profiles and links of every node, from the testbed's settings."""

from __future__ import annotations

from math import inf

from harness.topology import SERVER, Topology
from profiles import library
from profiles.device import DeviceProfile
from testbeds.virtual.config import Config
from testbeds.virtual.config import Link as LinkConfig
from testbeds.virtual.fair import Link
from testbeds.virtual.settings import Machine


def topology(config: Config) -> Topology:
    """Return the names of all nodes; devices are numbered through their groups."""
    return Topology.numbered(config.num_devices, config.edges.count if config.edges is not None else 0)


def machines(config: Config, nodes: Topology) -> dict[str, Machine]:
    """Return what each node runs on."""
    found: dict[str, Machine] = {}
    peers = len(nodes.devices) + len(nodes.edges)
    names = iter(nodes.devices)
    for group in config.devices:
        profile = library.device(group.profile)
        for _ in range(group.count):
            name = next(names)
            found[name] = _machine(name, profile, group.network or config.network, degree=1 + bool(nodes.edges))
    if config.edges is not None:
        profile = library.device(config.edges.profile)
        for name in nodes.edges:
            wan = _machine(name, profile, config.edges.network, degree=1)
            lan = _machine(f"{name}.lan", profile, config.edges.lan, degree=len(nodes.devices_of(name)))
            found[name] = Machine(
                profile, wan.up, wan.down, wan.latency_s, wan.jitter_s, lan.up, lan.down, lan.latency_s
            )
    server = library.device(config.server.profile)
    found[SERVER] = _machine(SERVER, server, config.server.network, degree=peers)
    return found


def _machine(name: str, profile: DeviceProfile, network: str | LinkConfig, degree: int) -> Machine:
    """Return a node on one network; a named network is capped by what the board's own interface carries."""
    if isinstance(network, LinkConfig):
        up_bps, down_bps = network.up_bps or inf, network.down_bps or inf
        latency_s, jitter_s = network.latency_s, network.jitter_s
    else:
        known = library.network(network)
        up_bps, down_bps = known.up_bps, known.down_bps
        latency_s, jitter_s = known.latency_s, known.jitter_s
        caps = (profile.wifi_bps, profile.wifi_bps)
        if known.technology.startswith("Ethernet"):
            caps = (profile.nic_up_bps, profile.nic_down_bps)
        elif not known.technology.startswith("Wi-Fi"):
            caps = (None, None)
        up_bps, down_bps = min(up_bps, caps[0] or inf), min(down_bps, caps[1] or inf)
    return Machine(
        profile,
        Link(f"{name}.up", up_bps / 8, degree),
        Link(f"{name}.down", down_bps / 8, degree),
        latency_s,
        jitter_s,
    )

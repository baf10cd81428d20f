"""Which board every node is."""

from __future__ import annotations

from harness.testbed import NodeInfo
from harness.topology import SERVER, Topology
from profiles import library
from profiles.device import DeviceProfile
from testbeds._fleet.config import Fleet


def boards(fleet: Fleet, nodes: Topology) -> dict[str, DeviceProfile]:
    """Return each node's profile, by name: devices, edges, server.

    Raises:
        ProfileError: an unknown profile.
    """
    kinds = [library.device(group.profile) for group in fleet.devices for _ in range(group.count)]
    found = dict(zip(nodes.devices, kinds, strict=True))
    if fleet.edges is not None:
        found |= dict.fromkeys(nodes.edges, library.device(fleet.edges.profile))
    found[SERVER] = library.device(fleet.server.profile)
    return found


def node_info(fleet: Fleet, nodes: Topology) -> list[NodeInfo]:
    """Return what each node is, for the run's record."""
    return [
        NodeInfo(name, nodes.role(name), board.id, board.memory_bytes, board.power_idle_w, board.power_load_w)
        for name, board in boards(fleet, nodes).items()
    ]

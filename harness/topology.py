"""Who is in a run: the nodes, their roles, and which edge serves which device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

SERVER = "server"
"""The name of the one server node; methods import it to address their messages."""


@dataclass(frozen=True)
class Topology:
    """Names of all nodes in a fixed order, and the edge of each device (none in a two-tier system)."""

    devices: tuple[str, ...]
    edges: tuple[str, ...] = ()
    edge_of: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def names(self) -> tuple[str, ...]:
        return (*self.devices, *self.edges, SERVER)

    @cached_property
    def everyone(self) -> frozenset[str]:
        """All names, to look one up."""
        return frozenset(self.names)

    @cached_property
    def position(self) -> Mapping[str, int]:
        """Where each device stands in the order of the devices."""
        return {name: number for number, name in enumerate(self.devices)}

    @cached_property
    def _served(self) -> Mapping[str, tuple[str, ...]]:
        served: dict[str, list[str]] = {edge: [] for edge in self.edges}
        for device in self.devices:
            if device in self.edge_of:
                served[self.edge_of[device]].append(device)
        return {edge: tuple(devices) for edge, devices in served.items()}

    def role(self, name: str) -> str:
        """Return the role ("device", "edge" or "server") that the node plays."""
        if name == SERVER:
            return "server"
        return "edge" if name in self._served else "device"

    def devices_of(self, name: str) -> tuple[str, ...]:
        """Return the devices a node works with: an edge's own, everybody else all of them (the one tuple)."""
        return self._served.get(name, self.devices)

    @staticmethod
    def numbered(devices: int, edges: int = 0) -> Topology:
        """Return device-0 .. device-(n-1), dealt to edge-0 .. edge-(m-1) in turn."""
        width = len(str(max(devices, 1) - 1))
        names = tuple(f"device-{i:0{width}d}" for i in range(devices))
        edge_names = tuple(f"edge-{i}" for i in range(edges))
        of = {name: edge_names[i % edges] for i, name in enumerate(names)} if edges else {}
        return Topology(names, edge_names, of)

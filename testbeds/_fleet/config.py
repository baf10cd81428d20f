"""The settings that every testbed has: which nodes there are, and how they are connected."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from pydantic import Field

from harness.errors import ConfigError, ProfileError
from profiles import library
from profiles.device import DeviceProfile
from profiles.network import NetworkProfile
from testbeds._fleet import recorded
from testbeds._fleet.sections import EdgeGroup, Group, Link, Medium, Section, ServerGroup


class Fleet(Section):
    """Settings of any testbed; each testbed's Config adds its own.

    Attributes:
        devices: groups of equal devices; their order is the device order.
        network: for groups that name none.
        medium: for groups that say nothing: whether the devices of a network share its one rate, up and down
            together; None = as the network's profile says (Wi-Fi does).
    """

    devices: list[Group] = Field(min_length=1)
    server: ServerGroup = ServerGroup()
    edges: EdgeGroup | None = None
    network: str | Link = "wifi-ac-pi4"
    medium: Medium | None = None

    @property
    def num_devices(self) -> int:
        """Devices of all groups."""
        return sum(group.count for group in self.devices)

    @property
    def roles(self) -> set[str]:
        """The roles that nodes of this testbed play."""
        return {"device", "server"} | ({"edge"} if self.edges is not None else set())

    @property
    def networks(self) -> dict[str, str | Link]:
        """Every network that the section gives, by its key."""
        found = {f"devices[{i}].network": group.network for i, group in enumerate(self.devices) if group.network}
        found |= {"server.network": self.server.network, "network": self.network}
        if self.edges is not None:
            found |= {"edges.network": self.edges.network, "edges.lan": self.edges.lan}
        return found

    def files(self, data_root: Path | None = None) -> dict[str, Path]:
        """Return the files of recorded rates that a run is made with, by their names in the section.

        Raises:
            ProfileError: one is not there.
        """
        traces = [
            trace
            for network in self.networks.values()
            if isinstance(network, Link)
            for trace in (network.up_trace, network.down_trace)
            if trace is not None
        ]
        return {trace.file: recorded.resolved(trace.file, data_root) for trace in traces}

    def profiles(self) -> dict[str, str]:
        """Return a short hash of the values of every profile that nodes are made with, by its id.

        A run is another one when a profile's figures change, not when its title or its sources do.

        Raises:
            ProfileError: one is not there.
        """
        boards = {group.profile for group in self.devices} | {self.server.profile}
        if self.edges is not None:
            boards.add(self.edges.profile)
        used = {id_: _hash(library.device(id_)) for id_ in boards}
        networks = self.networks
        if all(group.network for group in self.devices):
            del networks["network"]
        named = {network for network in networks.values() if isinstance(network, str)}
        return dict(sorted((used | {id_: _hash(library.network(id_)) for id_ in named}).items()))


def check_fleet(config: Fleet, where: str, data_root: Path | None = None) -> None:
    """Look every profile up, read every trace, and check what types cannot say.

    Args:
        data_root: where recorded rates may lie; None = $AMMETER_DATA.

    Raises:
        ProfileError, ConfigError: by key.
    """
    for position, group in enumerate(config.devices):
        _device(group.profile, f"{where}.devices[{position}].profile")
    _device(config.server.profile, f"{where}.server.profile")
    for key, network in config.networks.items():
        _network(network, f"{where}.{key}", data_root)
    _media(config, where)
    if config.edges is None:
        return
    if config.edges.count > config.num_devices:
        raise ConfigError(
            f"{where}.edges.count: {config.edges.count} edges for {config.num_devices} devices leaves some without a "
            "device"
        )
    _device(config.edges.profile, f"{where}.edges.profile")


def _hash(profile: DeviceProfile | NetworkProfile) -> str:
    values = {key: value for key, value in asdict(profile).items() if key not in _DESCRIBE}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


_DESCRIBE = ("id", "title", "licence", "measured")
"""Of a profile's values: those that nothing is computed with."""


def _device(profile: str, where: str) -> None:
    try:
        library.device(profile)
    except ProfileError as error:
        raise ProfileError(f"{where}: {error}") from None


def _network(network: str | Link, where: str, data_root: Path | None) -> None:
    try:
        if isinstance(network, str):
            library.network(network)
            return
        for way in recorded.WAYS:
            where_trace = f"{where}.{way}_trace"
            recorded.traces(network, way, data_root)
    except ProfileError as error:
        place = where if isinstance(network, str) else where_trace
        raise ProfileError(f"{place}: {error}") from None


def _media(config: Fleet, where: str) -> None:
    """A shared medium needs a rate to share."""
    for position, group in enumerate(config.devices):
        network = config.network if group.network is None else group.network
        if (group.medium or config.medium) != "shared" or isinstance(network, str):
            continue
        key = f"{where}.devices[{position}].medium" if group.medium else f"{where}.medium"
        if network.up_trace is not None or network.down_trace is not None:
            raise ConfigError(f"{key}: a shared medium has a constant rate, and the network has a trace")
        if network.up_bps is None or network.down_bps is None:
            raise ConfigError(f"{key}: a shared medium needs the network's up_bps and down_bps; the larger is its rate")

"""The experiment's `testbed` section for the virtual testbed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from pydantic import Field

from harness.errors import ConfigError, ProfileError
from harness.topology import Topology
from profiles import library
from profiles.device import DeviceProfile
from profiles.network import NetworkProfile
from testbeds.virtual import recorded
from testbeds.virtual.sections import Availability, EdgeGroup, Fault, Group, Link, Medium, Section, ServerGroup


class Config(Section):
    """Settings of the virtual testbed.

    Attributes:
        devices: groups of equal devices; their order is the device order.
        network: for groups that name none.
        framing: what wire bytes include: "tls" (TLS 1.3 over TCP/IP), "tcp", or "none" (wire = payload).
        compute_jitter: standard deviation of the logarithm of a seeded factor on every computation; keeps equal
            devices from running in lock step. 0 = exactly the price.
        threads: torch threads for computations in learn mode; results depend on it in the last bits.
        workers: how many computations really run beside each other in learn mode, where they overlap in virtual
            time; results do not depend on it. None = as many as the machine's cores serve.
        backlog_mib: how much may wait on one channel before posting is an error.
        faults: devices that die, and come back.
        availability: when devices are there at all.
        medium: for groups that say nothing: whether the devices of a network share its one rate, up and down
            together; None = as the network's profile says (Wi-Fi does).
    """

    devices: list[Group] = Field(min_length=1)
    server: ServerGroup = ServerGroup()
    edges: EdgeGroup | None = None
    network: str | Link = "wifi-ac-pi4"
    framing: Literal["tls", "tcp", "none"] = "tls"
    compute_jitter: float = Field(default=0.0, ge=0, le=1)
    threads: int = Field(default=1, ge=1)
    workers: int | None = Field(default=None, ge=1)
    backlog_mib: float = Field(default=64.0, gt=0)
    faults: list[Fault] = Field(default_factory=list)
    availability: Availability | None = None
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
        """Return the files of recorded rates and availability that a run is made with, by their names in the section.

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
        names = [trace.file for trace in traces]
        if self.availability is not None and self.availability.file is not None:
            names.append(self.availability.file)
        return {name: recorded.resolved(name, data_root) for name in names}

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


def check(config: Config, where: str, data_root: Path | None = None) -> None:
    """Look every profile up, read every trace, and check what types cannot say.

    Args:
        data_root: where recorded rates and availability may lie; None = $AMMETER_DATA.

    Raises:
        ProfileError, ConfigError: by key.
    """
    for position, group in enumerate(config.devices):
        _device(group.profile, f"{where}.devices[{position}].profile")
    _device(config.server.profile, f"{where}.server.profile")
    for key, network in config.networks.items():
        _network(network, f"{where}.{key}", data_root)
    _media(config, where)
    edges = config.edges.count if config.edges is not None else 0
    if edges > config.num_devices:
        raise ConfigError(
            f"{where}.edges.count: {edges} edges for {config.num_devices} devices leaves some without a device"
        )
    devices = Topology.numbered(config.num_devices).devices
    for position, fault in enumerate(config.faults):
        if fault.node not in devices:
            raise ConfigError(
                f"{where}.faults[{position}].node: {fault.node!r} is no device; devices are "
                f"{devices[0]} .. {devices[-1]}"
            )
    if config.edges is not None:
        _device(config.edges.profile, f"{where}.edges.profile")
    if config.availability is not None:
        _availability(config.availability, config, where, data_root)


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


def _media(config: Config, where: str) -> None:
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


def _availability(found: Availability, config: Config, where: str, data_root: Path | None) -> None:
    known = Topology.numbered(config.num_devices).devices
    for name in found.devices:
        if name not in known:
            raise ConfigError(
                f"{where}.availability.devices: {name!r} is no device; devices are {known[0]} .. {known[-1]}"
            )
    for position, fault in enumerate(config.faults):
        if found.file is not None or fault.node in found.devices:
            raise ConfigError(
                f"{where}.faults[{position}].node: {fault.node} comes and goes as `availability` says; give one of both"
            )
    try:
        recorded.availability(found, 0, known, data_root)
    except ProfileError as error:
        raise ProfileError(f"{where}.availability: {error}") from None

"""The experiment's `testbed` section for the virtual testbed."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from harness.errors import ConfigError, ProfileError
from harness.topology import Topology
from profiles import library


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Link(_Section):
    """A link by its figures instead of by a profile's name; up and down as the node sees them.

    Attributes:
        up_bps, down_bps: bits per second; None = never a bottleneck.
        latency_s: one way.  jitter_s: standard deviation of an extra one-way latency.
    """

    up_bps: float | None = Field(default=None, gt=0)
    down_bps: float | None = Field(default=None, gt=0)
    latency_s: float = Field(default=0.0, ge=0)
    jitter_s: float = Field(default=0.0, ge=0)


class Group(_Section):
    """Some equal nodes.

    Attributes:
        profile: what they are (`ammeter list profiles`), or a path of the user's own .yaml.
        count: how many.
        network: how they are connected; None = the testbed's `network`.
    """

    profile: str
    count: int = Field(default=1, ge=1)
    network: str | Link | None = None


class ServerGroup(_Section):
    """The server; its link is shared by all its peers."""

    profile: str = "server-cpu"
    network: str | Link = "eth-1g"


class EdgeGroup(_Section):
    """Edge nodes, each serving an equal part of the devices over a LAN."""

    profile: str = "server-cpu"
    count: int = Field(default=1, ge=1)
    network: str | Link = "eth-1g"
    lan: str | Link = "eth-1g"


class Fault(_Section):
    """A device that dies at `at_s` and, if `rejoin_s` is given, comes back then (virtual seconds)."""

    node: str
    at_s: float = Field(ge=0)
    rejoin_s: float | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _in_order(self) -> Fault:
        if self.rejoin_s is not None and self.rejoin_s <= self.at_s:
            raise ValueError(f"it comes back at {self.rejoin_s} s but is lost at {self.at_s} s, not before")
        return self


class Config(_Section):
    """Settings of the virtual testbed.

    Attributes:
        devices: groups of equal devices; their order is the device order.
        network: for groups that name none.
        framing: what wire bytes include: "tls" (TLS 1.3 over TCP/IP), "tcp", or "none" (wire = payload).
        compute_jitter: standard deviation of the logarithm of a seeded factor on every computation; keeps equal
            devices from running in lock step. 0 = exactly the price.
        threads: torch threads for computations in learn mode; results depend on it in the last bits.
        backlog_mib: how much may wait on one channel before posting is an error.
        faults: devices that die, and come back.
    """

    devices: list[Group] = Field(min_length=1)
    server: ServerGroup = ServerGroup()
    edges: EdgeGroup | None = None
    network: str | Link = "wifi-ac-pi4"
    framing: Literal["tls", "tcp", "none"] = "tls"
    compute_jitter: float = Field(default=0.0, ge=0, le=1)
    threads: int = Field(default=1, ge=1)
    backlog_mib: float = Field(default=64.0, gt=0)
    faults: list[Fault] = Field(default_factory=list)

    @property
    def num_devices(self) -> int:
        """Devices of all groups."""
        return sum(group.count for group in self.devices)

    @property
    def roles(self) -> set[str]:
        """The roles that nodes of this testbed play."""
        return {"device", "server"} | ({"edge"} if self.edges is not None else set())


def check(config: Config, where: str) -> None:
    """Look every profile up, and check what types cannot say.

    Raises:
        ProfileError, ConfigError: by key.
    """
    for position, group in enumerate(config.devices):
        _device(group.profile, f"{where}.devices[{position}].profile")
        _network(group.network, f"{where}.devices[{position}].network")
    _device(config.server.profile, f"{where}.server.profile")
    _network(config.server.network, f"{where}.server.network")
    _network(config.network, f"{where}.network")
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
        _network(config.edges.network, f"{where}.edges.network")
        _network(config.edges.lan, f"{where}.edges.lan")


def _device(profile: str, where: str) -> None:
    try:
        library.device(profile)
    except ProfileError as error:
        raise ProfileError(f"{where}: {error}") from None


def _network(network: str | Link | None, where: str) -> None:
    if isinstance(network, str):
        try:
            library.network(network)
        except ProfileError as error:
            raise ProfileError(f"{where}: {error}") from None

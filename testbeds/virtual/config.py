"""The experiment's `testbed` section for the virtual testbed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from harness.errors import ConfigError, ProfileError, suggestion
from harness.topology import Topology
from testbeds._fleet import timings
from testbeds._fleet.config import Fleet, check_fleet
from testbeds._fleet.links import topology
from testbeds._fleet.recorded import resolved
from testbeds.virtual import recorded
from testbeds.virtual.sections import Availability, Fault


class Config(Fleet):
    """Settings of the virtual testbed, beside those of every testbed.

    Attributes:
        framing: what wire bytes include: "tls" (TLS 1.3 over TCP/IP), "tcp", or "none" (wire = payload).
        compute_jitter: standard deviation of the logarithm of a seeded factor on every computation; keeps equal
            devices from running in lock step. 0 = exactly the price.
        threads: torch threads for computations in learn mode; results depend on it in the last bits.
        workers: how many computations really run beside each other in learn mode, where they overlap in virtual
            time; results do not depend on it. None = as many as the machine's cores serve.
        backlog_mib: how much may wait on one channel before posting is an error.
        faults: devices that die, and come back.
        availability: when devices are there at all.
        timings: a file of times that a real testbed measured, by node and computation (testbeds._fleet.timings); a
            computation that is in it costs that, others what the node's profile says.
    """

    framing: Literal["tls", "tcp", "none"] = "tls"
    compute_jitter: float = Field(default=0.0, ge=0, le=1)
    threads: int = Field(default=1, ge=1)
    workers: int | None = Field(default=None, ge=1)
    backlog_mib: float = Field(default=64.0, gt=0)
    faults: list[Fault] = Field(default_factory=list)
    availability: Availability | None = None
    timings: str | None = Field(default=None, min_length=1)

    @model_serializer(mode="wrap")
    def _dumped(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave `timings` out where there are none: a run's id does not change because a setting came."""
        found: dict[str, Any] = dump(self)
        if self.timings is None:
            del found["timings"]
        return found

    def files(self, data_root: Path | None = None) -> dict[str, Path]:
        """Return the recorded rates, availability and times that a run is made with, by their names in the section.

        Raises:
            ProfileError: one is not there.
        """
        found = super().files(data_root)
        if self.availability is not None and self.availability.file is not None:
            found[self.availability.file] = resolved(self.availability.file, data_root)
        if self.timings is not None:
            found[self.timings] = resolved(self.timings, data_root)
        return found


def check(config: Config, where: str, data_root: Path | None = None) -> None:
    """Look every profile up, read every file, and check what types cannot say.

    Args:
        data_root: where recorded rates and availability may lie; None = $AMMETER_DATA.

    Raises:
        ProfileError, ConfigError: by key.
    """
    check_fleet(config, where, data_root)
    devices = Topology.numbered(config.num_devices).devices
    for position, fault in enumerate(config.faults):
        if fault.node not in devices:
            raise ConfigError(
                f"{where}.faults[{position}].node: {fault.node!r} is no device; devices are "
                f"{devices[0]} .. {devices[-1]}"
            )
    if config.availability is not None:
        _availability(config.availability, config, where, data_root)
    if config.timings is not None:
        _timings(config.timings, topology(config), f"{where}.timings", data_root)


def _timings(file: str, nodes: Topology, where: str, data_root: Path | None) -> None:
    try:
        path = resolved(file, data_root)
        found = timings.read(path)
    except (ConfigError, ProfileError) as error:
        raise ConfigError(f"{where}: {error}") from None
    for name in found:
        if name not in nodes.everyone:
            raise ConfigError(f"{where}: {path}: nodes: {name!r} is no node here{suggestion(name, nodes.names)}")


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

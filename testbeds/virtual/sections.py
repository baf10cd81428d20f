"""What the virtual testbed's section has beside the fleet: devices that die, come and go."""

from __future__ import annotations

from pydantic import Field, model_validator

from testbeds._fleet.sections import Offset, Section


class Fault(Section):
    """A device that dies at `at_s` and, if `rejoin_s` is given, comes back then (virtual seconds)."""

    node: str
    at_s: float = Field(ge=0)
    rejoin_s: float | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _in_order(self) -> Fault:
        if self.rejoin_s is not None and self.rejoin_s <= self.at_s:
            raise ValueError(f"it comes back at {self.rejoin_s} s but is lost at {self.at_s} s, not before")
        return self


class Availability(Section):
    """When devices are there; one that goes dies, and comes back as after a fault (virtual seconds).

    Attributes:
        file: logs of real devices, looped; one is drawn per device from the run's seed (docs/traces.md).
        name: the same log of the file for every device, instead.
        offset: where in its log a run begins.
        devices: [from, to] of the times at which a device is there, instead of a log of the file.
        period_s: after how long `devices` begin anew; None = never: gone for good.
    """

    file: str | None = Field(default=None, min_length=1)
    name: str | None = None
    offset: Offset = "random"
    devices: dict[str, list[tuple[float, float]]] = Field(default_factory=dict)
    period_s: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _given(self) -> Availability:
        if self.file is None and not self.devices:
            raise ValueError("give a `file` of logs, or `devices` with the times at which each is there")
        if self.name is not None and self.file is None:
            raise ValueError("`name` chooses a log of a `file`")
        return self

"""What a network carries in each direction, and how late; and the file that says so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, StrictBool, StringConstraints

from profiles.device import Identifier
from profiles.figure import Figure, FractionFigure, NonNegativeFigure, PositiveFigure

_Text = Annotated[str, StringConstraints(min_length=1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkProfile:
    """The link between a device and its server, seen from the device.

    Attributes:
        id: as `profiles.library.network` takes it.
        title: for people.
        technology: Ethernet, Wi-Fi, LTE, preset, ...
        up_bps: bits per second of TCP payload from the device to the server.
        down_bps: the same from the server to the device.
        rtt_s: round trip of a small message on an idle link.
        jitter_s: standard deviation of the one-way latency.
        loss_fraction: packets lost, 0 up to 1. The rates are what TCP delivers, so a loss has
            lowered them already; it is for testbeds that shape packets.
        shared_medium: every device on this network, up and down together, shares the one rate (Wi-Fi).
        nic_cap_bps: line rate of the interface, headers included; None where the rates say it all.
        licence: terms of the data the figures come from; "" where none apply.
    """

    id: str
    title: str
    technology: str
    up_bps: float
    down_bps: float
    rtt_s: float
    jitter_s: float
    loss_fraction: float
    shared_medium: bool
    nic_cap_bps: float | None = None
    licence: str = ""

    @property
    def latency_s(self) -> float:
        """One-way latency: half the round trip, the two directions taken as equal."""
        return self.rtt_s / 2


class NetworkFigures(BaseModel):
    """The figures of a network; names and units are NetworkProfile's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    up_bps: PositiveFigure
    down_bps: PositiveFigure
    rtt_s: NonNegativeFigure
    jitter_s: NonNegativeFigure
    loss_fraction: FractionFigure
    nic_cap_bps: PositiveFigure | None = None

    def given(self) -> dict[str, Figure]:
        """Return the figures that the file gives, by name."""
        return {key: figure for key in type(self).model_fields if (figure := getattr(self, key)) is not None}


class NetworkFile(BaseModel):
    """A network's file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Identifier
    title: _Text
    technology: _Text
    shared_medium: StrictBool
    licence: str = ""
    figures: NetworkFigures

    def profile(self) -> NetworkProfile:
        """Return the network's profile."""
        return NetworkProfile(
            id=self.id,
            title=self.title,
            technology=self.technology,
            shared_medium=self.shared_medium,
            licence=self.licence,
            **{key: figure.value for key, figure in self.figures.given().items()},
        )

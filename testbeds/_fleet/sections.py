"""The parts of an experiment's `testbed` section that all testbeds share; the whole is in config.py."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from profiles.traces.library import Format


class Section(BaseModel):
    """A frozen part; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


Offset = Literal["random"] | Annotated[float, Field(ge=0)]
"""Where in a trace a run begins: seconds, or anywhere, drawn per node from the run's seed."""

Medium = Literal["shared", "separate"]


class Trace(Section):
    """A recorded rate (docs/traces.md).

    Attributes:
        file: its path, from here or from the data folder.
        format: which form the file has.
        source, mode: which traces of a csv; `mode` may have a `*`.
        column: which rate of a csv; None = the column of the direction it is for.
        name: which trace of a file that has several; None = one is drawn per node from the run's seed.
        step_s: make its steps this long.
    """

    file: str = Field(min_length=1)
    format: Format
    source: str | None = None
    mode: str | None = None
    column: Literal["down_kbps", "up_kbps"] | None = None
    name: str | None = None
    step_s: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _fits_format(self) -> Trace:
        for key in ("source", "mode", "column"):
            if self.format != "csv" and getattr(self, key) is not None:
                raise ValueError(f"`{key}` is for csv; a {self.format} file has none")
        if self.format in ("mahimahi", "pensieve") and self.name is not None:
            raise ValueError(f"`name` chooses among several traces; a {self.format} file has one")
        return self


class Link(Section):
    """A link by its figures instead of by a profile's name; up and down as the node sees them.

    Attributes:
        up_bps, down_bps: bits per second; None = never a bottleneck.
        up_trace, down_trace: recorded rates instead of constant ones, looped.
        latency_s: one way.  jitter_s: standard deviation of an extra one-way latency.
        offset: where in its traces a run begins.
        playback: "constant" = keep each trace's mean over time instead of playing it.
    """

    up_bps: float | None = Field(default=None, gt=0)
    down_bps: float | None = Field(default=None, gt=0)
    up_trace: Trace | None = None
    down_trace: Trace | None = None
    latency_s: float = Field(default=0.0, ge=0)
    jitter_s: float = Field(default=0.0, ge=0)
    offset: Offset = "random"
    playback: Literal["trace", "constant"] = "trace"

    @model_validator(mode="after")
    def _one_rate_each(self) -> Link:
        for way in ("up", "down"):
            if getattr(self, f"{way}_bps") is not None and getattr(self, f"{way}_trace") is not None:
                raise ValueError(f"give {way}_bps or {way}_trace, not both")
        return self


class Group(Section):
    """Some equal nodes.

    Attributes:
        profile: what they are (`ammeter list profiles`), or a path of the user's own .yaml.
        count: how many.
        network: how they are connected; None = the testbed's `network`.
        medium: whether all on that network, up and down together, share its one rate, as on Wi-Fi; None = the
            testbed's `medium`.
    """

    profile: str
    count: int = Field(default=1, ge=1)
    network: str | Link | None = None
    medium: Medium | None = None


class ServerGroup(Section):
    """The server; its link is shared by all its peers."""

    profile: str = "server-cpu"
    network: str | Link = "eth-1g"


class EdgeGroup(Section):
    """Edge nodes, each serving an equal part of the devices over a LAN."""

    profile: str = "server-cpu"
    count: int = Field(default=1, ge=1)
    network: str | Link = "eth-1g"
    lan: str | Link = "eth-1g"

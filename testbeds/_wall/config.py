"""The settings that every testbed on the wall clock has."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field

from harness.controller.settings import Settings
from harness.errors import ConfigError
from harness.topology import Topology
from testbeds._fleet.boards import boards
from testbeds._fleet.config import Fleet, check_fleet
from testbeds._fleet.sections import Section


class Tolerance(Section):
    """By which share the pre-flight's figures may be off."""

    rate: float = Field(default=0.05, gt=0)
    step: float = Field(default=0.10, gt=0)


class WallFleet(Fleet):
    """Settings of any testbed on the wall clock. Times are of the run: the dilation makes them longer.

    Attributes:
        dilation: every emulated time takes so many times as long; recorded times are divided by it again.
        threads: torch threads of every node; None = as many as its board has cores.
        on_loss: what follows when a node dies, falls silent or loses its link: "fail" = the run ends; "continue" = with
            those left; "rejoin" = it is started anew and takes part from the next round.
        rejoins: how often each node may be started anew.
        silence_s: a node that has said nothing for so long is lost.
        link_s: a link on which nothing moves for so long is lost.
        hang_s: when nothing has moved anywhere for so long the run is over.
        start_s: real seconds that workers may take to get ready.
        preflight: measure links and steps first; no run if one is off by more than the tolerance.
        tls: encrypt the data network.
        backlog_mib: how much may wait on one channel before posting is an error.
        recording: False = rows are not kept, to see what keeping them costs.
    """

    dilation: float = Field(default=1.0, ge=1)
    threads: int | None = Field(default=1, ge=1)
    on_loss: Literal["fail", "continue", "rejoin"] = "fail"
    rejoins: int = Field(default=3, ge=0)
    silence_s: float = Field(default=5.0, gt=0)
    link_s: float = Field(default=20.0, gt=0)
    hang_s: float = Field(default=60.0, gt=0)
    start_s: float = Field(default=120.0, gt=0)
    preflight: bool = True
    tolerance: Tolerance = Tolerance()
    tls: bool = True
    backlog_mib: float = Field(default=64.0, gt=0)
    recording: bool = True

    def threads_of(self, nodes: Topology) -> Mapping[str, int]:
        """Return the torch threads of each node."""
        return {name: self.threads or board.cores for name, board in boards(self, nodes).items()}

    def settings(self, nodes: Topology, paced: bool) -> Settings:
        """Return how a run is conducted."""
        return Settings(
            threads=self.threads_of(nodes),
            dilation=self.dilation,
            paced=paced,
            tls=self.tls,
            backlog_bytes=int(self.backlog_mib * 2**20),
            on_loss=self.on_loss,
            rejoins=self.rejoins,
            silence_s=self.silence_s,
            hang_s=self.hang_s,
            link_s=self.link_s,
            start_s=self.start_s,
            probe=self.preflight,
            rate_tolerance=self.tolerance.rate,
            step_tolerance=self.tolerance.step,
            recording=self.recording,
        )


def check_wall(config: WallFleet, where: str, data_root: Path | None = None) -> None:
    """Check what types cannot say.

    Raises:
        ProfileError, ConfigError: by key.
    """
    check_fleet(config, where, data_root)
    media = {f"devices[{i}].medium": group.medium for i, group in enumerate(config.devices)}
    for key, medium in (media | {"medium": config.medium}).items():
        if medium == "shared":
            raise ConfigError(
                f"{where}.{key}: a real testbed gives each device a link of its own and cannot share one medium among "
                "them; leave `medium` out or say separate (the virtual testbed can)"
            )

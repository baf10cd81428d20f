"""How a run is conducted; what a testbed's section says, without the testbed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

OnLoss = Literal["fail", "continue", "rejoin"]


@dataclass(frozen=True)
class Settings:
    """How a run is conducted. Times are of the run (the dilation makes them longer), but for `start_s`.

    Attributes:
        threads: of torch, per node.
        paced: computations are paced by the workers.
        on_loss: what follows when a node is lost.  rejoins: how often each node may be restarted.
        silence_s: a node that has said nothing for so long is lost.
        hang_s: nothing has moved anywhere for so long: the run is over.
        link_s: a link on which nothing has moved for so long, with a message on it, is lost.
        start_s: real seconds that workers may take to start, to warm up, and to connect.
        probe: measure links and steps before the run, and refuse it if they are not what they are to be.
        rate_tolerance, step_tolerance: by which share they may be off.
        recording: False = keep no rows.
    """

    threads: Mapping[str, int]
    dilation: float = 1.0
    paced: bool = True
    tls: bool = True
    backlog_bytes: int = 2**26
    on_loss: OnLoss = "fail"
    rejoins: int = 3
    silence_s: float = 5.0
    hang_s: float = 60.0
    link_s: float = 20.0
    start_s: float = 120.0
    probe: bool = True
    rate_tolerance: float = 0.05
    step_tolerance: float = 0.10
    recording: bool = True

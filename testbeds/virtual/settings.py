"""What a virtual run is set up from: the machine of each node, and how the run behaves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from harness.transport.wire import Framing
from profiles.device import DeviceProfile
from testbeds._fleet.timings import Timing
from testbeds.virtual.channel import BACKLOG_BYTES
from testbeds.virtual.fair import Link


@dataclass(frozen=True)
class Machine:
    """What a node runs on: a profile, and its links (bytes per second; inf = never a bottleneck).

    `latency_s` is one way; the latency of a path is the sum of its two ends'. Edges have a second pair of
    links towards their devices (`lan_*`), the first pair leads to the server. What is sent from or to a node on a
    shared `medium` (Wi-Fi) crosses that, too, in both directions.
    """

    profile: DeviceProfile
    up: Link
    down: Link
    latency_s: float = 0.0
    jitter_s: float = 0.0
    lan_up: Link | None = None
    lan_down: Link | None = None
    lan_latency_s: float = 0.0
    lan_jitter_s: float = 0.0
    medium: Link | None = None


@dataclass
class Options:
    """How a virtual run behaves; see testbeds.virtual.Config for the user's view of the same."""

    timing: bool = True
    seed: int = 0
    framing: Framing = "tls"
    compute_jitter: float = 0.0
    backlog_bytes: int = BACKLOG_BYTES
    check_payloads: bool = True
    workers: int = 1
    threads: int = 1
    timings: Mapping[str, Mapping[str, Timing]] | None = None

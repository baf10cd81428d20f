"""What the controller deals a worker before the run: checked plain data."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from harness.topology import Topology


class LinkJob(BaseModel):
    """How the transport itself emulates the node's link; real rates and latencies (the dilation is in them).

    Attributes:
        up_bytes_per_s, down_bytes_per_s: None = not limited here.
        up_rates, down_rates: [real seconds since the start, bytes per second]: when the rate changes.
        latency_s, jitter_s: one way, per peer.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    up_bytes_per_s: float | None = None
    down_bytes_per_s: float | None = None
    up_rates: list[tuple[float, float]] = []
    down_rates: list[tuple[float, float]] = []
    latency_s: dict[str, float] = {}
    jitter_s: dict[str, float] = {}


class Job(BaseModel):
    """One run, for one node.

    Attributes:
        spec: the resolved run (RunSpec.resolved).  run_id: what the worker must find it to be.
        data_root: folder of the data sets, as the worker sees it.
        devices, edges, edge_of: see harness.topology.
        dilation: real seconds per second of the run.
        threads: of torch.
        paced: computations take as long as the testbed says they take on the emulated device.
        tls: the data network is encrypted.
        backlog_bytes: what may wait on a channel.
        stall_s: after how many real seconds without progress a peer counts as unreachable.
        link: see LinkJob.
        recording: False = rows are not kept (to measure what keeping them costs).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    spec: dict[str, Any]
    run_id: str
    data_root: str | None
    devices: list[str]
    edges: list[str]
    edge_of: dict[str, str]
    dilation: float
    threads: int
    paced: bool
    tls: bool
    backlog_bytes: int
    stall_s: float
    link: LinkJob = LinkJob()
    recording: bool = True

    @property
    def topology(self) -> Topology:
        return Topology(tuple(self.devices), tuple(self.edges), dict(self.edge_of))

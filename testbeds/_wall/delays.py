"""How late the paths from a node are, and what of that the transport has to add."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from testbeds._fleet.links import NodeLink


def delays(links: Mapping[str, NodeLink], name: str, dilation: float, by_transport: bool) -> dict[str, Any]:
    """Return the latencies of a node's paths as fields of a LinkJob.

    Args:
        by_transport: nobody else delays messages (real seconds); else they are late already.
    """
    mine = links[name]
    late = {peer: other for peer, other in links.items() if peer != name and mine.latency_s + other.latency_s > 0}
    found: dict[str, Any] = {"path_latency_s": {peer: mine.latency_s + other.latency_s for peer, other in late.items()}}
    if by_transport:
        found["latency_s"] = {peer: seconds * dilation for peer, seconds in found["path_latency_s"].items()}
        found["jitter_s"] = {
            peer: (mine.jitter_s**2 + other.jitter_s**2) ** 0.5 * dilation for peer, other in late.items()
        }
    return found

"""Before a run: is every link as fast and every processor as slow as it is to be?

A link's rate is that of one large message between its first and its last byte at the receiver, headers of TLS and
TCP/IP included, after another that has used up what a pause had saved. A round trip is the shortest of a few small
messages with their acknowledgements. A step is the whole model's on one mini-batch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from harness.controller.emulator import Target
from harness.controller.members import Member
from harness.controller.settings import Settings
from harness.errors import TestbedError
from harness.topology import SERVER, Topology
from harness.transport.wire import wire_bytes

STEPS = 3
_PROBE_S = 1.0
_LEAST_BYTES, _MOST_BYTES = 2**16, 2**25
_WARM_SHARE = 0.1
_BESIDE = 4
"""Links probed beside each other: more would measure the host."""


@dataclass(frozen=True)
class Finding:
    """One thing that was measured; seconds and bits per second of the run.

    Attributes:
        target: what it is to be; None = whatever it is.
        tolerance: by which share it may be off; None = it is told and decides nothing.
    """

    node: str
    what: str
    unit: str
    target: float | None
    achieved: float
    tolerance: float | None

    @property
    def error(self) -> float | None:
        return None if not self.target else self.achieved / self.target - 1

    @property
    def met(self) -> bool:
        return self.error is None or self.tolerance is None or abs(self.error) <= self.tolerance

    def row(self) -> dict[str, Any]:
        return {**asdict(self), "error": self.error, "met": self.met}


class Preflight:
    """Measures the nodes of a run that is about to start."""

    def __init__(
        self, members: dict[str, Member], nodes: Topology, target: Callable[[str], Target], settings: Settings
    ) -> None:
        self._members = members
        self._nodes = nodes
        self._target = target
        self._settings = settings

    async def fly(self) -> list[Finding]:
        """Return everything that was measured.

        Raises:
            TestbedError: a probe failed.
        """
        found = await self._links()
        for name in self._nodes.names:
            found += await self._step(name)
        return found

    async def _links(self) -> list[Finding]:
        devices = list(self._nodes.devices) + list(self._nodes.edges)
        found: list[Finding] = []
        for up in (True, False):
            for start in range(0, len(devices), _BESIDE):
                some = devices[start : start + _BESIDE]
                ways = [(name, SERVER) if up else (SERVER, name) for name in some]
                found += [one for ones in await self._ways(ways, up) for one in ones]
        return found

    async def _ways(self, ways: Sequence[tuple[str, str]], up: bool) -> list[list[Finding]]:
        """Probe some links in one direction: the server's end sends to one after the other, the devices at once."""
        if up:
            return list(await asyncio.gather(*(self._way(src, dst) for src, dst in ways)))
        return [await self._way(src, dst) for src, dst in ways]

    async def _way(self, src: str, dst: str) -> list[Finding]:
        dilation = self._settings.dilation
        a, b = self._target(src), self._target(dst)
        rates = [rate for rate in (a.up_bps, b.down_bps) if rate is not None]
        rate = min(rates, default=None)
        size = _MOST_BYTES if rate is None else int(rate / dilation / 8 * _PROBE_S)
        size = min(max(size, _LEAST_BYTES), _MOST_BYTES)
        member = self._members[src]
        probed = member.expect("probed")
        member.send("probe_link", to=dst, bytes=size, warm_bytes=int(size * _WARM_SHARE))
        note = await member.until(probed, self._settings.start_s, f"probing its link to {dst}")
        wire = wire_bytes(note.get("bytes", int), "tls" if self._settings.tls else "tcp")
        seconds = note.get("seconds", float)
        device, way = (src, "up") if dst == SERVER else (dst, "down")
        achieved = 8 * wire / seconds if seconds > 0 else float("inf")
        found = [Finding(device, f"{way} rate", "bit/s", rate, achieved, self._settings.rate_tolerance)]
        if way == "up":
            latency_s = 2 * (a.latency_s + b.latency_s)
            found.append(Finding(device, "round trip", "s", latency_s, note.get("round_trip_s", float), None))
        return found

    async def _step(self, name: str) -> list[Finding]:
        target = self._target(name)
        member = self._members[name]
        stepped = member.expect("stepped")
        member.send("probe_step", steps=STEPS, paced=True)
        note = await member.until(stepped, self._settings.start_s, "timing its step")
        seconds = sorted(note.get("seconds", list))
        achieved = seconds[len(seconds) // 2] / self._settings.dilation
        return [Finding(name, "step", "s", target.step_s, achieved, self._settings.step_tolerance)]


def refuse(findings: Sequence[Finding]) -> None:
    """Raise if something is not what it is to be.

    Raises:
        TestbedError: with every target that is missed.
    """
    missed = [finding for finding in findings if not finding.met]
    if missed:
        lines = [
            f"{f.node}: {f.what} {f.achieved:.4g} {f.unit} instead of {f.target:.4g}, {f.error:+.1%} "
            f"(tolerance {f.tolerance:.0%})"
            for f in missed
        ]
        raise TestbedError(
            "the testbed is not what the experiment asks for, so nothing was run:\n  "
            + "\n  ".join(lines)
            + "\nrun on a quieter or larger host, raise testbed.dilation, or widen testbed.tolerance"
        )

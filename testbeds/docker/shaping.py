"""A container's data interface in both directions at the rates of its network, with tc, from the host.

    download   leaves the host's end of the veth; upload leaves the container's own end, reached with nsenter

Both are the egress of an end, where TCP feels the queue as backpressure instead of losses. The ingress of the host's
end would need an ifb device per container, which outlives a crash; these qdiscs die with the veth. The container lacks
NET_ADMIN and cannot change them.

Per direction:

    htb 1:
      class 1:10    everything else, at the rate
        tbf 10:     a gate, open or shut (an outage); holds the queue; cuts what TCP hands over in one piece (GSO, up
                    to 64 kB) into packets, so that bursts are short and the interface counts what a NIC would
          netem 11: delay, jitter, loss, where wanted and the kernel has it
      class 1:20    TCP acknowledgements without payload: neither queued nor charged
        netem 20:   as above

A rate counts IP packets, as the wire model (harness.transport.wire) does: 1,448 bytes of payload are 1,500. The kernel
counts 14 bytes of Ethernet more, so htb is told 1,514/1,500 of the rate; htb's credit of BURST_S is small. The model
has no acknowledgements: charged and queued behind data they would cost a link that is busy both ways 1.7 %, and a slow
one up to 30 % of a second's transfer. No offload need be switched off (with gso_max_segs 1, which also makes packets
packets, TCP itself reaches 1 Gbit/s no more).

The rate changes in class 1:10, whose queue and credit stay. htb cannot be woken from a tiny rate before the packet it
has paid for is over (up to 60 s), so an outage shuts the gate, and its end sends one idle frame of 60 bytes, which
wakes it. One or two packets may still pass into an outage.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal

from harness.errors import TestbedError
from testbeds.docker import shaping_tc
from testbeds.docker.counters import ETHERNET_BYTES

Direction = Literal["up", "down"]

BURST_S = 0.001
"""Credit of an idle link, in time of its rate: what the kernel's timers need at 100 Mbit/s on a busy host."""
QUEUE_S = 0.1
LEAST_BURST_BYTES, LEAST_QUEUE_PACKETS = 200, 256
LEAST_RATE_BPS = 8_000.0
"""Below it a rate is an outage: a packet would take more than a second."""
_UNLIMITED_BPS = 4e10
_NEVER_BINDS = "100gbit"
_ACKNOWLEDGEMENT = (
    # IPv4 header of 20 bytes, TCP, shorter than 128 bytes (options with SACK blocks), the flag ACK and no other
    "u32 match u8 0x05 0x0f at 0 match ip protocol 6 0xff match u16 0x0000 0xff80 at 2 match u8 0x10 0xff at 33"
)


@dataclass(frozen=True, slots=True)
class Shape:
    """One direction of a link.

    Attributes:
        rate_bps: bits of IP packets per second; None is as fast as the host, 0 an outage.
        latency_s: one-way latency.
        jitter_s: its standard deviation.
        loss_fraction: packets lost, 0 up to 1.
    """

    rate_bps: float | None = None
    latency_s: float = 0.0
    jitter_s: float = 0.0
    loss_fraction: float = 0.0

    @property
    def late(self) -> bool:
        return self.latency_s > 0 or self.jitter_s > 0


@dataclass(frozen=True, slots=True)
class Carried:
    """What a direction has let through: IP packets and their bytes, acknowledgements without payload left out."""

    ip_bytes: int
    packets: int


@dataclass
class _Side:
    """One direction as applied."""

    interface: str
    pid: int | None
    where: str
    mtu: int
    shape: Shape | None = None
    shut: bool = False
    limit_bytes: int = 0

    @property
    def frame(self) -> int:
        """Bytes of the longest frame."""
        return self.mtu + ETHERNET_BYTES

    def burst(self, bps: float) -> int:
        return max(int(bps / 8 * BURST_S), LEAST_BURST_BYTES)

    def limit(self, bps: float) -> int:
        return max(int(bps / 8 * QUEUE_S), LEAST_QUEUE_PACKETS * self.mtu)

    def htb(self, bps: float) -> str:
        burst = self.burst(bps)
        rate = round(bps * self.frame / self.mtu)  # htb counts frames; exact for full ones
        return (
            f"dev {self.interface} parent 1: classid 1:10 htb rate {rate}bit ceil {rate}bit "
            f"burst {burst} cburst {burst} quantum {self.frame} prio 1"
        )

    def gate(self, shut: bool) -> str:
        # shut: one byte in a second, after the one packet that fits the bucket
        rate = f"8bit burst {self.frame}" if shut else f"{_NEVER_BINDS} burst {2 * self.mtu}"
        return f"dev {self.interface} parent 1:10 handle 10: tbf rate {rate} limit {self.limit_bytes}"


class Shaper:
    """Shapes one container; every call is idempotent, and several containers may be shaped from several threads.

    Args:
        pid: a process in the container's network namespace.
        inside: the data interface's name there.
        outside: the host's end of it (cables.find knows it).

    Raises:
        TestbedError: no root, no iproute2, no such process or interface, or the two are not the ends of one veth.
    """

    def __init__(self, pid: int, inside: str, outside: str) -> None:
        within, without = shaping_tc.link(inside, pid), shaping_tc.link(outside)
        if within.get("link_index") != without["ifindex"]:
            raise TestbedError(
                f"{outside!r} is not the other end of {inside!r} of process {pid}: "
                f"that is interface number {within.get('link_index')} of its host, {outside!r} has {without['ifindex']}"
            )
        self._sides: dict[Direction, _Side] = {
            "up": _Side(inside, pid, "egress of the container's end", within["mtu"]),
            "down": _Side(outside, None, "egress of the host's end", without["mtu"]),
        }

    def apply(self, up: Shape, down: Shape) -> None:
        """Shape both directions anew; what is queued from an earlier call is dropped.

        Without netem, latency and jitter are accepted and left to the transport (see `describe`).

        Raises:
            TestbedError: a loss without netem, or the kernel refused.
        """
        for direction, shape in (("up", up), ("down", down)):
            _check(direction, shape)
        for side, shape in zip(self._sides.values(), (up, down), strict=True):
            self._install(side, shape)

    def set_rate(self, direction: Direction, bps: float) -> None:
        """Change the rate of a shaped direction; the queue stays. Below 8 kbit/s it is an outage.

        What htb let through last is paid for at the old rate: 1,500 bytes at most.

        Raises:
            TestbedError: nothing was applied, or `bps` is not a rate.
        """
        side = self._sides[direction]
        shape = side.shape
        if shape is None:
            raise TestbedError(f"the direction {direction!r} of {side.interface!r} is not shaped; apply() first")
        changed = Shape(bps, shape.latency_s, shape.jitter_s, shape.loss_fraction)
        _check(direction, changed)
        shut = bps < LEAST_RATE_BPS
        # an outage leaves the class its rate, and the queue its length
        side.limit_bytes = side.limit_bytes if shut else side.limit(bps)
        lines = [] if shut else [f"class change {side.htb(bps)}"]
        shaping_tc.batch("tc", [*lines, f"qdisc change {side.gate(shut)}"], side.pid)
        opened, side.shape, side.shut = side.shut and not shut, changed, shut
        if opened:
            shaping_tc.wake(side.interface, side.pid)

    def clear(self) -> None:
        """Remove all shaping; a container that is gone has taken its own along."""
        for side in self._sides.values():
            # fails where there is nothing to remove
            shaping_tc.run(["tc", "qdisc", "del", "dev", side.interface, "root"], side.pid)
            side.shape, side.shut = None, False

    def carried(self, direction: Direction) -> Carried | None:
        """Return what the direction's data class has let through since `apply`; None where it is not shaped."""
        side = self._sides[direction]
        command = ["tc", "-json", "-statistics", "qdisc", "show", "dev", side.interface]
        status, said, complaint = shaping_tc.run(command, side.pid)
        if status != 0:
            raise TestbedError(f"the counters of {side.interface!r} cannot be read: {complaint}")
        for row in json.loads(said):
            if row.get("handle") == "10:" and row["kind"] == "tbf":
                return Carried(row["bytes"] - ETHERNET_BYTES * row["packets"], row["packets"])
        return None

    def describe(self) -> dict[str, Any]:
        """Return, per direction, what shapes it and who does the delay: for the run's record."""
        return {direction: _described(side) for direction, side in self._sides.items()}

    def _install(self, side: _Side, shape: Shape) -> None:
        """Replace whatever is at the root."""
        netem = _netem(shape, side.mtu) if shaping_tc.supports("netem") else ""
        device = f"dev {side.interface}"
        side.shape, side.shut = shape, shape.rate_bps is not None and shape.rate_bps < LEAST_RATE_BPS
        bps = _UNLIMITED_BPS if shape.rate_bps is None else max(shape.rate_bps, LEAST_RATE_BPS)
        side.limit_bytes = side.limit(bps)
        lines = [
            # a change of kind makes the kernel drop the whole tree: this does for the first time and for the next
            f"qdisc replace {device} root pfifo",
            f"qdisc replace {device} root handle 1: htb default 10",
            f"class add {side.htb(bps)}",
            f"qdisc add {side.gate(side.shut)}",
            f"class add {device} parent 1: classid 1:20 htb rate {_NEVER_BINDS} burst 1mb quantum {side.frame} prio 0",
            f"filter add {device} parent 1: protocol ip prio 1 {_ACKNOWLEDGEMENT} flowid 1:20",
        ]
        if netem:
            lines += [f"qdisc add {device} parent 10:1 handle 11: {netem}"]
            lines += [f"qdisc add {device} parent 1:20 handle 20: {netem}"]
        shaping_tc.batch("tc", lines, side.pid)


def _check(direction: str, shape: Shape) -> None:
    """Raise TestbedError for what cannot be shaped."""
    rate = shape.rate_bps
    if rate is not None and not (isfinite(rate) and rate >= 0):
        raise TestbedError(
            f"the rate of direction {direction!r} is {rate!r}; give bits per second, 0 for an outage, or None"
        )
    if not (isfinite(shape.latency_s) and shape.latency_s >= 0 and isfinite(shape.jitter_s) and shape.jitter_s >= 0):
        raise TestbedError(f"latency and jitter of direction {direction!r} must be 0 or more seconds, not {shape!r}")
    if not 0 <= shape.loss_fraction < 1:
        raise TestbedError(f"the loss of direction {direction!r} is {shape.loss_fraction!r}; give 0 up to 1")
    if shape.loss_fraction > 0 and not shaping_tc.supports("netem"):
        raise TestbedError(
            f"direction {direction!r} is to lose {shape.loss_fraction:g} of its packets, and this kernel has no netem; "
            "use loss 0, or load sch_netem (modprobe sch_netem, on Ubuntu from linux-modules-extra)"
        )


def _netem(shape: Shape, mtu: int) -> str:
    """The netem of a shape, "" where it has nothing to do."""
    if not shape.late and not shape.loss_fraction:
        return ""
    # what is under way and what is queued: netem drops beyond its limit
    waiting_s = shape.latency_s + 4 * shape.jitter_s + QUEUE_S
    parts = [f"netem limit {int((shape.rate_bps or 1e10) / 8 * waiting_s / mtu) + 1000}"]
    if shape.late:
        parts.append(f"delay {shape.latency_s * 1e6:.0f}us")
    if shape.jitter_s:
        # the rate keeps packets in order: with jitter alone they overtake, which TCP takes for losses
        parts.append(f"{shape.jitter_s * 1e6:.0f}us distribution normal rate 100gbit")
    if shape.loss_fraction:
        parts.append(f"loss {shape.loss_fraction * 100:g}%")
    return " ".join(parts)


def _described(side: _Side) -> dict[str, Any]:
    shape = side.shape
    if shape is None:
        return {"interface": side.interface, "where": side.where, "kind": None}
    delayer = "netem" if shaping_tc.supports("netem") else "transport"
    return {
        "interface": side.interface,
        "where": side.where,
        "kind": "htb",
        "rate_bps": shape.rate_bps,
        "outage": side.shut,
        "burst_bytes": None if shape.rate_bps is None else side.burst(shape.rate_bps),
        "limit_bytes": None if shape.rate_bps is None else side.limit_bytes,
        "counted": "IP packets of at most the MTU; acknowledgements without payload pass freely",
        "latency": delayer if shape.late else "none",
        "latency_s": shape.latency_s,
        "jitter_s": shape.jitter_s,
        "loss_fraction": shape.loss_fraction,
    }

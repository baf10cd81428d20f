"""The kernel's own counters of an interface: what really crossed it, to hold the modelled wire bytes against.

An interface counts Ethernet frames without preamble and checksum; `ip_bytes` takes the 14 bytes of the Ethernet header
off each. On a veth they mean what a real NIC's mean only where it is shaped (testbeds.docker.shaping, at any rate, None
included): otherwise TCP hands it up to 64 kB in one piece, and 3 % of the bytes are missed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from harness.errors import TestbedError

ETHERNET_BYTES = 14


@dataclass(frozen=True, slots=True)
class Counters:
    """What an interface has received and sent, frames and their bytes; `later - earlier` is what came between.

    Seen from its own side: what the host's end of a veth received is what the container sent.
    """

    rx_bytes: int
    tx_bytes: int
    rx_packets: int
    tx_packets: int

    def __sub__(self, earlier: Counters) -> Counters:
        return Counters(
            self.rx_bytes - earlier.rx_bytes,
            self.tx_bytes - earlier.tx_bytes,
            self.rx_packets - earlier.rx_packets,
            self.tx_packets - earlier.tx_packets,
        )


def read(interface: str, pid: int | None = None) -> Counters:
    """Return the counters of an interface of the caller's network namespace, or of the process `pid`'s.

    Raises:
        TestbedError: there is no such process or interface.
    """
    # thread-self: a thread may be in a network namespace of its own
    path = Path(f"/proc/{'thread-self' if pid is None else pid}/net/dev")
    where = "this host" if pid is None else f"the network namespace of process {pid}"
    try:
        lines = path.read_text().splitlines()[2:]
    except OSError as error:
        raise TestbedError(
            f"the counters of {interface!r} cannot be read from {path} ({error.strerror}): is the container running?"
        ) from None
    # "  eth1: bytes packets errs drop fifo frame compressed multicast  bytes packets ..."; no space need follow ':'
    rows = {name.strip(): figures.split() for name, _, figures in (line.partition(":") for line in lines)}
    if interface not in rows:
        raise TestbedError(f"{where} has no interface {interface!r}; it has {', '.join(sorted(rows)) or 'none'}")
    figures = [int(figure) for figure in rows[interface]]
    return Counters(rx_bytes=figures[0], rx_packets=figures[1], tx_bytes=figures[8], tx_packets=figures[9])


def ip_bytes(counters: Counters) -> tuple[int, int]:
    """Return (received, sent) bytes of IP packets: the frames without their Ethernet headers."""
    return (
        counters.rx_bytes - ETHERNET_BYTES * counters.rx_packets,
        counters.tx_bytes - ETHERNET_BYTES * counters.tx_packets,
    )

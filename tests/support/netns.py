"""A container without an engine: a process in a network namespace of its own, and a veth to this host's.

Its end is `eth1`, as a container's; ours has a name that nobody else has. Everything goes when the process ends.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from harness.errors import TestbedError
from harness.transport.wire import wire_bytes
from testbeds.docker import shaping_tc

PATIENCE_S = 60.0
"""Against hangs only."""
INSIDE = "eth1"
_CHUNK = bytes(2**18)
_numbers = itertools.count()


@dataclass(frozen=True)
class Cable:
    """A process and the veth that leads to it: its end, and ours."""

    pid: int
    inside: str
    outside: str
    inside_address: str
    outside_address: str


def namespaces_or_skip() -> None:
    """Skip the test, with the reason, where no network can be shaped."""
    try:
        kinds = shaping_tc.kinds()
    except TestbedError as error:
        pytest.skip(str(error))
    missing = [kind for kind in ("tbf", "htb", "u32") if not kinds[kind]]
    if missing:
        pytest.skip(f"network namespaces cannot be made here, or the kernel has no {', '.join(missing)}")


@contextlib.contextmanager
def cable() -> Iterator[Cable]:
    """A process in its own namespace, connected."""
    process = subprocess.Popen([shaping_tc.program("unshare"), "--net", "sleep", "infinity"])
    try:
        ours, until = os.readlink("/proc/self/ns/net"), time.monotonic() + PATIENCE_S
        while os.readlink(f"/proc/{process.pid}/ns/net") == ours:
            assert process.poll() is None, "unshare has failed"
            assert time.monotonic() < until
            time.sleep(0.001)
        serial = next(_numbers)
        # 198.18.0.0/15 is for benchmarks (RFC 2544); four addresses each
        base = (198 << 24) + (18 << 16) + ((os.getpid() * 61 + serial) % 2**15) * 4
        near, far = (socket.inet_ntoa((base + last).to_bytes(4, "big")) for last in (1, 2))
        made = Cable(process.pid, INSIDE, f"vt{os.getpid()}x{serial}", far, near)
        shaping_tc.batch(
            "ip",
            [
                f"link add {made.outside} type veth peer name {INSIDE} netns {process.pid}",
                f"addr add {near}/30 dev {made.outside}",
                f"link set {made.outside} up",
            ],
        )
        shaping_tc.batch("ip", [f"addr add {far}/30 dev {INSIDE}", f"link set {INSIDE} up"], process.pid)
        yield made
    finally:
        process.kill()
        process.wait()
        # the kernel takes a namespace down a little later than its last process
        shaping_tc.run(["ip", "link", "del", made.outside])


@dataclass(frozen=True)
class Connection:
    """A TCP connection between the two ends."""

    inside: socket.socket
    outside: socket.socket

    def ends(self, direction: str) -> tuple[socket.socket, socket.socket]:
        """Return the sender and the receiver of what goes "up" (out of the container) or "down"."""
        return (self.inside, self.outside) if direction == "up" else (self.outside, self.inside)


@contextlib.contextmanager
def connection(through: Cable) -> Iterator[Connection]:
    """A new connection, made by the container."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server((through.outside_address, 0)))
        inside = stack.enter_context(shaping_tc.within(through.pid, socket.socket))
        for end in (listener, inside):
            end.settimeout(PATIENCE_S)
            # the kernel's default may be bbr, which after a stall of the host takes the link for a slower one
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")
        inside.connect(listener.getsockname())
        outside, _ = listener.accept()
        stack.enter_context(outside).settimeout(PATIENCE_S)
        for end in (inside, outside):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield Connection(inside, outside)


def send(sender: socket.socket, size: int) -> None:
    """Send that many bytes."""
    while size:
        size -= sender.send(_CHUNK[: min(size, len(_CHUNK))])


def receive(receiver: socket.socket, size: int) -> None:
    """Receive that many bytes."""
    buffer = bytearray(len(_CHUNK))
    while size:
        got = receiver.recv_into(buffer, min(size, len(buffer)))
        assert got, "the connection was closed"
        size -= got


def transfer(flow: Connection, direction: str, size: int) -> float:
    """Send that many bytes one way; return the seconds from the first byte's start to the last one's arrival."""
    sender, receiver = flow.ends(direction)
    with ThreadPoolExecutor(1) as thread:
        began = time.perf_counter()
        sent = thread.submit(send, sender, size)
        receive(receiver, size)
        taken = time.perf_counter() - began
        sent.result()
    return taken


def rate_bps(size: int, taken_s: float) -> float:
    """Return the bits per second of the wire model that a transfer had."""
    return wire_bytes(size, "tcp") * 8 / taken_s


def payload(bps: float, seconds: float) -> int:
    """Return the bytes of payload whose packets take `seconds` at a rate."""
    return int(bps / 8 * seconds * 1448 / 1500)

"""Running iproute2 as root, here or in a process's network namespace, and what the kernel can shape with.

A container cannot undo what is done here: it has no NET_ADMIN, and the tools run from the host.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from harness.errors import TestbedError

Result = TypeVar("Result")

_WITHIN_S = 30.0
_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
_PACKAGES = {"tc": "iproute2", "ip": "iproute2", "nsenter": "util-linux", "unshare": "util-linux"}
_CLONE_NEWNET = 0x40000000
_NO_BRIDGE_FORWARDS = bytes.fromhex("0180c2000003")
_LOCAL_EXPERIMENTAL = bytes.fromhex("88b5")

_PROBES = {
    "tbf": "tc qdisc add dev probe0 root tbf rate 1mbit burst 4kb limit 64kb",
    "htb": "tc qdisc add dev probe0 root handle 1: htb default 1",
    "u32": "tc qdisc add dev probe0 root handle 1: htb && "
    "tc filter add dev probe0 parent 1: protocol ip u32 match ip protocol 6 0xff flowid 1:0",
    "netem": "tc qdisc add dev probe0 root netem delay 10ms 1ms distribution normal",
    "ifb": "ip link add probe2 type ifb",
}


def program(name: str) -> str:
    """Return the path of a tool.

    Raises:
        TestbedError: it is not installed, or this process is not root.
    """
    path = shutil.which(name, path=_PATH)
    if path is None:
        raise TestbedError(f"{name!r} is not installed, and bandwidth is shaped with it; install {_PACKAGES[name]}")
    if os.geteuid() != 0:
        raise TestbedError("shaping a container's network needs root; run as root, or use the testbed 'local'")
    return path


def run(command: Sequence[str], pid: int | None = None, script: str = "") -> tuple[int, str, str]:
    """Run a tool, in the network namespace of `pid` if one is given; return its status, output and complaint."""
    line = [program(command[0]), *command[1:]]
    if pid is not None:
        line = [program("nsenter"), "--target", str(pid), "--net", *line]
    try:
        done = subprocess.run(line, input=script, capture_output=True, text=True, timeout=_WITHIN_S)
    except subprocess.TimeoutExpired:
        raise TestbedError(f"{' '.join(line)!r} has not answered within {_WITHIN_S:g} s") from None
    return done.returncode, done.stdout, done.stderr.strip()


def batch(tool: str, lines: Sequence[str], pid: int | None = None) -> None:
    """Run lines of `tc` or `ip` in one call.

    Raises:
        TestbedError: the kernel refused one; the message quotes the line.
    """
    status, _, complaint = run([tool, "-batch", "-"], pid, "\n".join(lines) + "\n")
    if status == 0:
        return
    said, _, at = complaint.rpartition("Command failed -:")
    line = lines[int(at) - 1] if at.isdecimal() and int(at) <= len(lines) else lines[0]
    able = ", ".join(kind for kind, works in kinds().items() if works)
    raise TestbedError(
        f"the kernel refused `{tool} {line}`: {' '.join((said or complaint).split())} (kinds that work here: {able})"
    )


def link(interface: str, pid: int | None = None) -> Mapping[str, Any]:
    """Return what `ip` says of an interface: ifindex, link_index, mtu, ...

    Raises:
        TestbedError: there is no such interface or process.
    """
    if pid is not None and not os.path.exists(f"/proc/{pid}/ns/net"):
        raise TestbedError(f"there is no process {pid}; is the container that is to be shaped running?")
    status, said, complaint = run(["ip", "-json", "link", "show"], pid)
    if status != 0:
        raise TestbedError(f"the interfaces of process {pid} cannot be listed: {complaint}")
    found = {row["ifname"]: row for row in json.loads(said)}
    if interface not in found:
        where = "this host" if pid is None else f"the network namespace of process {pid}"
        raise TestbedError(
            f"{where} has no interface {interface!r}; it has {', '.join(sorted(found))}: give the data network's"
        )
    return found[interface]  # type: ignore[no-any-return]


def supports(kind: str) -> bool:
    """Whether the kernel can do it: tried once, on a veth in a network namespace that ends with the try."""
    return kinds()[kind]


@functools.cache
def kinds() -> Mapping[str, bool]:
    """Return which of tbf, htb, u32, netem and ifb this kernel has, each really added once.

    Raises:
        TestbedError: no iproute2, no util-linux, or not root.
    """
    for tool in ("tc", "ip", "nsenter"):
        program(tool)
    found = {}
    for kind, line in _PROBES.items():
        script = f"PATH={_PATH!r}; ip link add probe0 type veth peer name probe1 && {line}"
        done = subprocess.run([program("unshare"), "--net", "sh", "-c", script], capture_output=True, timeout=_WITHIN_S)
        found[kind] = done.returncode == 0
    return found


def within(pid: int | None, call: Callable[[], Result]) -> Result:
    """Return what `call` returns in the network namespace of a process (None: in the caller's).

    Raises:
        OSError: there is no such process, or this one is not root; and what `call` raises.
    """
    if pid is None:
        return call()

    def entered() -> Result:
        libc = ctypes.CDLL(None, use_errno=True)
        with open(f"/proc/{pid}/ns/net") as namespace:
            if libc.setns(namespace.fileno(), _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns")
        return call()

    with ThreadPoolExecutor(1) as thread:  # a namespace is a thread's: one that ends takes it along
        return thread.submit(entered).result()


def wake(interface: str, pid: int | None = None) -> None:
    """Send a frame that nobody reads: a qdisc looks anew at what it may send when something is put in.

    Bridges do not pass it on.

    Raises:
        TestbedError: it cannot be sent.
    """

    def send() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
            raw.bind((interface, 0))
            raw.send(_NO_BRIDGE_FORWARDS + bytes(6) + _LOCAL_EXPERIMENTAL + bytes(46))

    try:
        within(pid, send)
    except OSError as error:
        raise TestbedError(
            f"{interface!r} could not be woken after an outage: {error}; does the container run?"
        ) from None

"""Which of the host's network devices is the other end of a container's interface."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from docker.models.containers import Container

from harness.errors import TestbedError
from testbeds.docker import ownership
from testbeds.docker.access import told

_HOST = Path("/sys/class/net")
_LIST = "for i in /sys/class/net/*; do echo ${i##*/} $(cat $i/address) $(cat $i/iflink); done"


@dataclass(frozen=True)
class Interface:
    """The two ends of a container's cable.

    Attributes:
        inside: the interface's name in the container.
        veth: the name of the host's end; its egress is what the container receives.
    """

    inside: str
    veth: str


def _name(container: Container) -> str:
    return str(container.labels.get(ownership.NODE, container.name))


def find(container: Container, hardware: str) -> Interface:
    """Return the cable of a running container's interface.

    Args:
        hardware: the interface's hardware address, as the engine says it.

    Raises:
        TestbedError: there is no such interface, or its cable does not end on this machine.
    """
    for inside, (address, number) in _listed(container).items():
        if address == hardware:
            return Interface(inside, _numbered(container, number))
    raise TestbedError(f"{_name(container)}: no interface has the address {hardware}; does the container still run?")


def _listed(container: Container) -> dict[str, tuple[str, int]]:
    """Return (hardware address, number of the other end) of each interface of a container."""
    folder = Path(f"/proc/{container.attrs['State']['Pid']}/root/sys/class/net")
    try:
        return {
            path.name: ((path / "address").read_text().strip(), int((path / "iflink").read_text()))
            for path in folder.iterdir()
        }
    except OSError:
        return asked(container)


def asked(container: Container) -> dict[str, tuple[str, int]]:
    """Do what root does by looking, for everybody else who may use the engine: ask in the container.

    Raises:
        TestbedError: no program can be run in it.
    """
    what = f"{_name(container)}: its interfaces cannot be listed"
    with told(what):
        code, output = container.exec_run(["/bin/sh", "-c", _LIST])
    said = cast(bytes, output).decode("utf-8", errors="replace")
    if code:
        raise TestbedError(f"{what}: {said.strip()}")
    rows = (line.split() for line in said.splitlines())
    return {row[0]: (row[1], int(row[2])) for row in rows if len(row) == 3}


def _numbered(container: Container, number: int) -> str:
    for path in _HOST.iterdir():
        with contextlib.suppress(OSError):  # others come and go meanwhile
            if int((path / "ifindex").read_text()) == number:
                return path.name
    raise TestbedError(f"{_name(container)}: its cable does not end on this machine; run where the docker engine runs")

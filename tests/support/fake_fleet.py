"""What a controller has to do with, without processes: members that keep what they are told, an emulator that obeys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.controller.emulator import Measure, Target
from harness.controller.members import Member
from harness.controller.settings import Settings
from harness.topology import Topology
from harness.worker.job import LinkJob


class Told(Member):
    """A node that keeps what it is told; `answers` says what it answers to a kind of note."""

    def __init__(self, name: str, role: str) -> None:
        super().__init__(name, role)
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.begin()
        self.present = self.introduced = True

    def send(self, kind: str, **fields: Any) -> None:
        self.told.append((kind, fields))

    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.told]


def members(nodes: Topology) -> dict[str, Told]:
    return {name: Told(name, nodes.role(name)) for name in nodes.names}


class FakeEmulator:
    """An emulator (harness.controller.emulator) that does nothing but keep what it was asked."""

    host = "127.0.0.1"

    def __init__(self) -> None:
        self.dead: dict[str, str] = {}
        self.killed: list[str] = []

    async def open(self, keys: Path) -> None: ...

    async def start(self, name: str, incarnation: int, port: int) -> None: ...

    def link(self, name: str) -> LinkJob:  # noqa: ARG002
        return LinkJob()

    def target(self, name: str) -> Target:  # noqa: ARG002
        return Target()

    async def throttle(self, name: str, measure: Measure) -> None: ...

    async def begin(self, in_s: float) -> None: ...

    async def relax(self, name: str) -> None: ...

    async def kill(self, name: str) -> None:
        self.killed.append(name)
        self.dead.pop(name, None)

    def gone(self) -> dict[str, str]:
        return dict(self.dead)

    def notes(self) -> dict[str, Any]:
        return {}

    async def close(self) -> None: ...


def settings(nodes: Topology, **more: Any) -> Settings:
    return Settings(threads=dict.fromkeys(nodes.names, 1), **more)

"""harness/controller/watch.py: who is dead, who is silent; a watch that was deaf itself accuses nobody."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import fake_fleet
import pytest
from fake_fleet import FakeEmulator

from harness.controller import watch
from harness.controller.course import Course, Phase
from harness.controller.members import Member
from harness.controller.watch import Watch
from harness.errors import DeadlockError
from harness.topology import Topology

NODES = Topology.numbered(2)


class Accusations:
    """Stands for the losses of a run."""

    def __init__(self) -> None:
        self.found: list[tuple[str, str]] = []

    async def lose(self, member: Member, why: str) -> None:
        self.found.append((member.name, why))
        member.present = False


class Scene:
    def __init__(self, began_s: float | None = 100.0, **settings: Any) -> None:
        self.course = Course(1.0)
        if began_s is not None:
            self.course.reach(Phase.RUNNING)
            self.course.origin_s = time.monotonic() - began_s
        self.members = fake_fleet.members(NODES)
        self.emulator = FakeEmulator()
        self.losses = Accusations()
        self.times: list[float] = []
        self.watch = Watch(
            self.course,
            self.members,
            self.emulator,
            fake_fleet.settings(NODES, **settings),
            self.losses,  # type: ignore[arg-type]
            self.times.append,
        )

    def silent(self, name: str, seconds: float) -> None:
        self.members[name].heard_s = time.monotonic() - seconds


def test_a_process_that_is_gone_is_a_loss():
    async def whole() -> None:
        scene = Scene(began_s=None)
        scene.emulator.dead["device-1"] = "has exited with status 2"
        await scene.watch.look()
        assert scene.losses.found == [("device-1", "has exited with status 2")]

    asyncio.run(whole())


def test_who_says_nothing_for_too_long_is_a_loss():
    async def whole() -> None:
        scene = Scene(silence_s=5.0)
        scene.silent("device-1", 60.0)
        scene.silent("device-0", 1.0)
        await scene.watch.look()
        ((name, why),) = scene.losses.found
        assert name == "device-1"
        assert why.startswith("has said nothing for 60.")

    asyncio.run(whole())


def test_before_the_start_nobody_has_to_say_anything():
    async def whole() -> None:
        scene = Scene(began_s=None, silence_s=5.0)
        scene.silent("device-1", 60.0)
        await scene.watch.look()
        late = Scene(began_s=2.0, silence_s=5.0)
        late.silent("device-1", 60.0)
        await late.watch.look()
        assert scene.losses.found == late.losses.found == []

    asyncio.run(whole())


def test_the_dilation_makes_patience_longer():
    async def whole() -> None:
        scene = Scene(silence_s=5.0, dilation=20.0)
        scene.silent("device-1", 60.0)
        await scene.watch.look()
        assert scene.losses.found == []

    asyncio.run(whole())


def test_after_the_end_who_falls_silent_is_still_a_loss_and_nobody_is_stuck():
    async def whole() -> None:
        scene = Scene(silence_s=5.0, hang_s=0.0)
        scene.course.reach(Phase.SCORING)
        for member in scene.members.values():
            member.stuck = True
        scene.silent("device-1", 60.0)
        await scene.watch.look()
        await scene.watch.look()
        assert [name for name, _ in scene.losses.found] == ["device-1"]

        async def nothing() -> None:
            await asyncio.sleep(0)

        await scene.course.unless_failed(nothing())

    asyncio.run(whole())


def test_nobody_moves():
    async def whole() -> None:
        scene = Scene(hang_s=0.0)
        for member in scene.members.values():
            member.stuck = True
        await scene.watch.look()
        await scene.watch.look()

        async def nothing() -> None:
            await asyncio.sleep(0)

        with pytest.raises(DeadlockError):
            await scene.course.unless_failed(nothing())
        assert len(scene.times) == 2

    asyncio.run(whole())


def test_a_watch_that_was_held_up_itself_accuses_nobody(monkeypatch: pytest.MonkeyPatch):
    """As after a laptop's sleep: nobody was heard because nobody listened."""
    monkeypatch.setattr(watch, "_DEAF_S", 0.3)

    async def whole() -> None:
        scene = Scene(silence_s=0.3)
        for name in scene.members:
            scene.silent(name, 0.0)
        going = asyncio.ensure_future(scene.watch.go_on())
        await asyncio.sleep(0.01)
        time.sleep(0.6)
        scene.course.reach(Phase.LEAVING)
        await going
        assert scene.losses.found == []

    asyncio.run(whole())

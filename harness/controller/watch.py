"""Sees who dies in silence, and whether anything moves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

from harness.controller.course import Course, Phase
from harness.controller.emulator import Emulator
from harness.controller.losses import Losses
from harness.controller.members import Member
from harness.controller.progress import Progress
from harness.controller.settings import Settings
from harness.errors import DeadlockError
from harness.run import Progress as Report

WATCH_S = 0.2
_DEAF_S = 1.0
"""Who looks so late was not running itself: whoever was silent meanwhile may not have been."""


class Watch:
    """Looks at the nodes of one run, every now and then."""

    def __init__(
        self,
        course: Course,
        members: Mapping[str, Member],
        emulator: Emulator,
        settings: Settings,
        losses: Losses,
        report: Report | None,
    ) -> None:
        self._course = course
        self._members = members
        self._emulator = emulator
        self._losses = losses
        self._report = report
        self._silence_s = settings.silence_s * settings.dilation
        self._progress = Progress(settings.hang_s * settings.dilation)

    async def go_on(self) -> None:
        """Look until the run is left."""
        while self._course.phase < Phase.LEAVING:
            before_s = time.monotonic()
            await asyncio.sleep(WATCH_S)
            if time.monotonic() - before_s > _DEAF_S:
                self._forgive()
            await self.look()

    def _forgive(self) -> None:
        for member in self._members.values():
            member.heard_s = time.monotonic()
        self._progress.forget()

    async def look(self) -> None:
        """Look once."""
        course, members = self._course, self._members.values()
        for name, how in self._emulator.gone().items():
            if self._members[name].incarnation >= 0:
                await self._losses.lose(self._members[name], how)
        if not course.began:
            return
        assert course.origin_s is not None
        for member in members:
            silent_s = time.monotonic() - max(member.heard_s, course.origin_s)
            if member.present and silent_s > self._silence_s:
                await self._losses.lose(member, f"has said nothing for {silent_s:.1f} s")
        if course.phase != Phase.RUNNING:
            return
        try:
            self._progress.check(members, course.now())
        except DeadlockError as error:
            course.fail(error)
        if self._report is not None:
            self._report(course.now())

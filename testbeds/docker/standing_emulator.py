"""One run on a standing testbed: its containers are throttled for the run, and afterwards as they were made.

Everything is reset before a run as well as after it: a controller that was killed has reset nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.errors import TestbedError
from harness.experiment import RunSpec
from harness.topology import Topology
from testbeds.docker import cgroup, shaping_tc
from testbeds.docker.emulator import DockerEmulator
from testbeds.docker.engine import MANAGEMENT
from testbeds.docker.lives import Keeper, Life
from testbeds.docker.shaping import Shaper
from testbeds.docker.standing import Standing


class StandingEmulator(DockerEmulator):
    """One run on containers that are there."""

    def __init__(
        self, spec: RunSpec, nodes: Topology, folder: Path, data_root: Path | None, standing: Standing
    ) -> None:
        self._stands = standing.engine()
        super().__init__(spec, nodes, folder, data_root, self._stands)
        self._standing = standing
        self._keepers: dict[str, Keeper] = {}
        self._lives: dict[str, Life] = {}
        self._clearers: dict[str, Shaper] = {}
        self._kills_before: dict[str, int] = {}
        self._peaks: set[str] = set()

    async def open(self, keys: Path) -> tuple[Path, int] | None:  # noqa: ARG002
        await self._stands.adopt()
        self.host = self._stands.gateway(MANAGEMENT)
        self._keep(self._look())
        return self._standing.keys, self._standing.made.port

    # ---- workers --------------------------------------------------------------------------------------------

    async def start(self, name: str, incarnation: int, port: int) -> None:  # noqa: ARG002
        """Have a new worker forked in the node's container; one that is not there is started again."""
        keeper = self._keepers.get(name) or self._standing.keeper(self._stands, name)
        if keeper is None or not keeper.runs:
            keeper = await self._standing.start(self._stands, name)
            self._keepers[name] = keeper  # its first worker is the one that is wanted
        else:
            self._keepers[name] = keeper
            await asyncio.to_thread(keeper.rest)
        await self._stands.limit(name, self._unthrottled(name))
        await self._find_cable(name, keeper.pid)
        await self._clear(name, keeper.pid)
        group = self._stands.group(name)
        self._kills_before[name] = cgroup.oom_kills(group)
        if _forget_peak(group):
            self._peaks.add(name)
        keeper.resume()
        await self._standing.ready(self._stands, keeper)
        life = self._lives[name] = await asyncio.to_thread(keeper.hold)
        self._gone.pop(name, None)
        self._pids[name] = life.host_pid

    def is_worker(self, name: str, pid: int, born: int) -> bool:
        keeper = self._keepers.get(name)
        life = None if keeper is None else keeper.worker()
        return life is not None and (life.pid, life.born) == (pid, born)

    async def _clear(self, name: str, pid: int) -> None:
        """Take off what shapes a node's link, where anything can."""
        shaper = self._shapers.get(name)
        if shaper is None and _can_shape():
            cable = await self._stands.interface(name)
            shaper = await asyncio.to_thread(Shaper, pid, cable.inside, cable.veth)
        if shaper is not None:
            self._clearers[name] = shaper
            await asyncio.to_thread(shaper.clear)

    async def kill(self, name: str) -> None:
        """End the worker; its container stays."""
        self._gone.pop(name, None)
        self._pids.pop(name, None)
        self._lives.pop(name, None)
        if name in self._keepers:
            await asyncio.to_thread(self._keepers[name].rest)

    def gone(self) -> dict[str, str]:
        """What was killed is known at once: peers that miss it ask who is to blame."""
        for name, life in self._lives.items():
            keeper = self._keepers[name]
            if name in self._gone or not keeper.runs or (status := keeper.ended(life)) is None:
                continue
            if os.WIFSIGNALED(status):
                self._gone[name] = self._how(name, 128 + os.WTERMSIG(status), self._was_oom(name), "")
        return super().gone()

    def _was_oom(self, name: str) -> bool:
        try:
            return cgroup.oom_kills(self._stands.group(name)) > self._kills_before[name]
        except TestbedError:  # gone with its container
            return False

    async def _end_of(self, name: str, pid: int) -> str:
        keeper, life = self._keepers[name], self._lives.get(name)
        if not keeper.runs:
            return await super()._end_of(name, keeper.pid)
        if life is None or life.host_pid != pid or (status := keeper.ended(life)) is None:
            return ""
        if os.WIFSIGNALED(status):
            return self._how(name, 128 + os.WTERMSIG(status), self._was_oom(name), "")
        return self._how(name, os.WEXITSTATUS(status), False, (await self._stands.logs(name, 1)).strip())

    # ---- the end --------------------------------------------------------------------------------------------

    async def _note(self, name: str) -> None:
        await super()._note(name)
        if name not in self._peaks:
            self._figures[name]["memory_peak_bytes"] = None  # it would be that of all runs

    def notes(self) -> dict[str, Any]:
        return {**super().notes(), "standing": self._standing.name}

    async def close(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        left = await asyncio.shield(asyncio.ensure_future(self._as_made()))
        if left:
            raise TestbedError(
                f"the standing testbed {self._standing.name} is not as it was: {'; '.join(left)}; the next run tries "
                f"again, or {self._standing.anew}"
            )

    async def _as_made(self) -> list[str]:
        """Reset every node; return what could not be, and why."""
        left = [sentence for found in await asyncio.gather(*map(self._reset, self._keepers)) for sentence in found]
        await self._stands.leave()
        return left

    async def _reset(self, name: str) -> list[str]:
        keeper = self._keepers[name]
        if not keeper.runs:
            return []  # its limits and links went with it
        left: list[str] = []

        async def attempt(function: Callable[[], object]) -> None:
            try:
                await asyncio.to_thread(function)
            except TestbedError as error:
                if keeper.runs:
                    left.append(str(error))

        await attempt(keeper.rest)
        if name in self._clearers:
            await attempt(self._clearers[name].clear)
        try:
            await self._stands.limit(name, self._standing.limits(name))
        except TestbedError as error:
            if keeper.runs:
                left.append(str(error))
        return left


def _can_shape() -> bool:
    """Whether this user could ever have shaped anything."""
    with contextlib.suppress(TestbedError):
        return all(shaping_tc.program(name) for name in ("tc", "ip", "nsenter"))
    return False


def _forget_peak(group: cgroup.Cgroup) -> bool:
    """Let a group's peak memory begin anew; False: this kernel does not do it."""
    try:
        (group.memory / "memory.max_usage_in_bytes").write_text("0")
    except OSError:
        return False
    return True

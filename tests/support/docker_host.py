"""A docker engine for tests: skip where there is none, run in the host's image, see that nothing is left."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import sys
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from harness.errors import TestbedError
from testbeds.docker import ownership
from testbeds.docker.access import connect
from testbeds.docker.engine import Engine, Started, State

PATIENCE_S = 60.0
"""Against hangs only: no test is about how long something takes."""

_numbers = itertools.count()


def engine_or_skip() -> None:
    """Skip the test where no docker engine can be used, with the reason."""
    try:
        connect().close()
    except TestbedError as error:
        pytest.skip(str(error))


def run_id() -> str:
    """Return a run id that nobody else has."""
    return f"test-{os.getpid()}-{time.time_ns() % 10**9}-{next(_numbers)}"


def left_of(run: str) -> list[str]:
    """Return the names of a run's containers and networks, dead or alive."""
    with contextlib.closing(connect()) as client:
        labelled: dict[str, Any] = {"label": f"{ownership.RUN}={run}"}
        containers = client.containers.list(all=True, filters=labelled, ignore_removed=True)
        return sorted(str(found.name) for found in [*containers, *client.networks.list(filters=labelled)])


@contextlib.asynccontextmanager
async def opened(run: str | None = None) -> AsyncIterator[Engine]:
    """An open engine; when it is closed, nothing of the run may be left."""
    async with Engine(run or run_id()) as engine:
        yield engine
    assert left_of(engine.run_id) == []


async def python(engine: Engine, name: str, script: str, **more: Any) -> Started:
    """Start a node that runs a Python script on the host's image."""
    more.setdefault("mounts", engine.image.mounts())
    return await engine.start(name, [sys.executable, "-c", script], **more)


async def ended(engine: Engine, name: str) -> State:
    """Wait until a node has ended."""
    deadline = time.monotonic() + PATIENCE_S
    while (state := await engine.state(name)).running:
        assert time.monotonic() < deadline, f"{name} does not end: {await engine.logs(name)}"
        await asyncio.sleep(0.05)
    return state


async def output(engine: Engine, name: str) -> str:
    """Wait until a node has ended well, and return what it printed."""
    state = await ended(engine, name)
    said = await engine.logs(name)
    assert state.exit_code == 0, said
    return said


async def connected(address: str, port: int, want: bool = True) -> None:
    """Wait until a TCP connection from the host succeeds (or, without `want`, fails)."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            _, writer = await asyncio.wait_for(asyncio.open_connection(address, port), 1.0)
        except (OSError, asyncio.TimeoutError):
            there = False
        else:
            there = True
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        if there is want:
            return
        assert time.monotonic() < deadline, f"{address}:{port} can{'not' if want else ''} be reached"
        await asyncio.sleep(0.05)


def received(veth: str) -> int:
    """Return the bytes that the host has received over a network device: what the container behind it sent."""
    return int(Path(f"/sys/class/net/{veth}/statistics/rx_bytes").read_text())


def reading(folder: Path, names: Sequence[str]) -> str:
    """Return a script that prints which of the named files in a folder it can read, one a line."""
    return (
        "import pathlib\n"
        f"folder = pathlib.Path({str(folder)!r})\n"
        "print(sorted(p.name for p in folder.iterdir()))\n"
        f"for name in {list(names)!r}:\n"
        "    try: (folder / name).read_bytes()\n"
        "    except OSError as e: print(name, type(e).__name__)\n"
        "    else: print(name, 'read')\n"
    )

"""harness/worker/standing.py: a process that forks a worker for one run after another."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psutil
import pytest

from harness.management.connection import Connection, ConnectionGone, listen
from harness.management.note import Note
from harness.transport import tls
from harness.worker.session import CONTROLLER
from harness.worker.standing import born

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
PATIENCE_S = 60.0
"""Against hangs only."""


class Meeting:
    """A controller without a run, and who has come to it."""

    def __init__(self) -> None:
        self.came: asyncio.Queue[Connection] = asyncio.Queue()
        self.all: list[Connection] = []

    def welcome(self, connection: Connection) -> None:
        self.all.append(connection)
        self.came.put_nowait(connection)

    async def next(self) -> tuple[Connection, Note]:
        """Return the next worker, and its hello."""
        connection = await asyncio.wait_for(self.came.get(), PATIENCE_S)
        return connection, await asyncio.wait_for(connection.receive(), PATIENCE_S)


@contextlib.asynccontextmanager
async def meeting(keys: Path, port: int) -> AsyncIterator[Meeting]:
    made = Meeting()
    desk = await listen(CONTROLLER, keys, "127.0.0.1", port, made.welcome, lambda *_: None)
    try:
        yield made
    finally:
        await desk.close()
        for connection in made.all:
            connection.abort("the test is over")
            await connection.wait_closed()


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    tls.make(tmp_path / "keys", [CONTROLLER, "device-0"])
    return tmp_path / "keys"


@contextlib.contextmanager
def standing(keys: Path, port: int, *more: str) -> Iterator[subprocess.Popen[str]]:
    """A standing worker; at the end it and its child are gone."""
    words = [sys.executable, "-m", "harness.worker", "--standing", "--name", "device-0", "--keys", str(keys)]
    words += ["--controller", f"127.0.0.1:{port}", *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            yield process
        finally:
            process.terminate()
            process.wait(PATIENCE_S)


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


def started(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def test_each_run_has_a_process_of_its_own_that_says_which(keys: Path) -> None:
    async def main() -> None:
        port = free_port()
        with standing(keys, port) as process:
            async with meeting(keys, port) as met:
                first, hello = await met.next()
                assert hello.get("incarnation", int) == -1
                pid = hello.get("pid", int)
                assert psutil.Process(pid).ppid() == process.pid
                assert hello.get("born", int) == started(pid)
                assert len(psutil.Process(process.pid).threads()) == 1  # it forks: no thread is lost in a child
                first.send("bye")
                with pytest.raises(ConnectionGone) as left:
                    await asyncio.wait_for(first.receive(), PATIENCE_S)
                assert left.value.orderly
                second, hello = await met.next()
                assert hello.get("pid", int) != pid
                process.terminate()
                with pytest.raises(ConnectionGone) as left:
                    await asyncio.wait_for(second.receive(), PATIENCE_S)
                assert not left.value.orderly
                process.wait(PATIENCE_S)
        assert process.returncode == 0

    asyncio.run(main())


def test_a_worker_that_dies_or_is_left_alone_is_followed_by_another(keys: Path) -> None:
    async def main() -> None:
        port = free_port()
        with standing(keys, port) as process:
            async with meeting(keys, port) as met:
                _, hello = await met.next()
                os.kill(hello.get("pid", int), signal.SIGKILL)
                second, hello = await met.next()
                second.abort("the controller is gone")
                _, third = await met.next()
                assert third.get("pid", int) != hello.get("pid", int)
                assert process.poll() is None

    asyncio.run(main())


def test_what_cannot_be_imported_is_named(keys: Path) -> None:
    with standing(keys, free_port(), "--import", "no_such_module") as process:
        assert process.wait(PATIENCE_S) != 0
        assert process.stderr is not None
        assert "No module named 'no_such_module'" in process.stderr.read()


def test_a_process_knows_when_it_began() -> None:
    assert born() == started(os.getpid())

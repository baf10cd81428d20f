"""testbeds/local/processes.py: workers' processes are started, watched, and ended whatever state they are in."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from harness.transport import tls
from harness.worker.session import CONTROLLER
from testbeds.local.processes import Processes

pytestmark = pytest.mark.slow
WITHIN_S = 60.0


def until(true: Callable[[], object]) -> None:
    limit_s = time.monotonic() + WITHIN_S
    while not true():
        assert time.monotonic() < limit_s, "it did not happen"
        time.sleep(0.01)


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    tls.make(tmp_path / "keys", [CONTROLLER, "device-0"])
    return tmp_path / "keys"


@pytest.fixture
def deaf() -> Iterator[str]:
    """The address of a controller that says nothing: workers wait for it."""
    with socket.create_server(("127.0.0.1", 0)) as bound:
        yield f"127.0.0.1:{bound.getsockname()[1]}"


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    made = Processes(tmp_path)
    yield made
    made.close()


def arguments(keys: Path, address: str) -> list[str]:
    return ["--name", "device-0", "--controller", address, "--keys", str(keys)]


def test_a_worker_that_ends_by_itself_is_told_with_its_status_and_its_last_words(processes: Processes, keys: Path):
    processes.start("device-0", arguments(keys, "nowhere"))
    until(processes.gone)
    (how,) = processes.gone().values()
    assert how.startswith("has exited with status 2 (")
    assert "'nowhere' is no HOST:PORT" in how


def test_a_worker_that_is_killed_is_told_by_its_signal(processes: Processes, keys: Path, deaf: str):
    processes.start("device-0", arguments(keys, deaf))
    assert processes.gone() == {}
    os.kill(processes.pid("device-0"), signal.SIGKILL)
    until(processes.gone)
    assert processes.gone() == {"device-0": "was killed by SIGKILL"}


def test_what_we_end_ourselves_is_not_told_and_may_be_started_anew(processes: Processes, keys: Path, deaf: str):
    processes.start("device-0", arguments(keys, deaf))
    first = processes.pid("device-0")
    os.kill(first, signal.SIGSTOP)
    processes.kill("device-0")
    assert not psutil.pid_exists(first)
    assert processes.gone() == {}
    processes.start("device-0", arguments(keys, deaf))
    assert processes.pid("device-0") != first
    assert psutil.pid_exists(processes.pid("device-0"))
    processes.kill("unknown")


def test_closing_ends_all_of_them_for_good(processes: Processes, keys: Path, deaf: str):
    pids = []
    for name in ("device-0", "device-1"):
        processes.start(name, arguments(keys, deaf))
        pids.append(processes.pid(name))
    os.kill(pids[0], signal.SIGSTOP)
    processes.close()
    assert not any(psutil.pid_exists(pid) for pid in pids)
    processes.start("device-0", arguments(keys, deaf))
    assert processes.gone() == {}
    processes.close()


def test_what_a_worker_prints_is_its_owner_s_to_read(processes: Processes, keys: Path, tmp_path: Path):
    processes.start("device-0", arguments(keys, "nowhere"))
    until(processes.gone)
    assert (tmp_path / "device-0.log").stat().st_mode & 0o777 == 0o600

"""testbeds/local/processes.py: workers start, end, and are told apart by how they ended."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from testbeds.local.processes import Processes

pytestmark = pytest.mark.slow
PATIENCE_S = 60.0


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    made = Processes(tmp_path)
    yield made
    made.close()


def waiting(tmp_path: Path) -> list[str]:
    """Return a worker's arguments with which it lives: it looks for its controller at a port where nobody listens."""
    from harness.transport import tls

    if not (tmp_path / "keys").exists():
        tls.make(tmp_path / "keys", ["device-0", "device-1", "controller"])
    return ["--name", "device-0", "--controller", "127.0.0.1:9", "--keys", str(tmp_path / "keys")]


def until(true: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE_S
    while not (found := true()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def test_one_that_ends_by_itself_is_gone_with_its_last_words(processes: Processes):
    processes.start("device-0", ["--nonsense"])
    found = until(processes.gone)
    assert set(found) == {"device-0"}
    assert found["device-0"].startswith("has exited with status 2 (python -m harness.worker: error: ")


def test_one_that_is_killed_is_gone_by_its_signal(processes: Processes, tmp_path: Path):
    processes.start("device-0", waiting(tmp_path))
    assert processes.gone() == {}
    os.kill(processes.pid("device-0"), signal.SIGTERM)
    assert until(processes.gone) == {"device-0": "was killed by SIGTERM"}


def test_one_that_is_ended_is_not_gone_by_itself_even_if_it_was_stopped(processes: Processes, tmp_path: Path):
    processes.start("device-0", waiting(tmp_path))
    pid = processes.pid("device-0")
    os.kill(pid, signal.SIGSTOP)
    processes.kill("device-0")
    assert processes.gone() == {}
    assert not psutil.pid_exists(pid)
    processes.kill("device-0")  # once more does no harm
    processes.kill("nobody")


def test_a_node_can_be_started_again_and_nothing_of_the_earlier_one_stays_open(processes: Processes, tmp_path: Path):
    processes.start("device-0", waiting(tmp_path))
    files = psutil.Process().num_fds()
    for _ in range(3):
        processes.kill("device-0")
        processes.start("device-0", waiting(tmp_path))
    assert psutil.Process().num_fds() == files
    assert processes.gone() == {}
    assert psutil.pid_exists(processes.pid("device-0"))


def test_once_closed_nothing_starts_any_more(processes: Processes, tmp_path: Path):
    """A start that was under way when the run was interrupted must not outlive it."""
    processes.start("device-0", waiting(tmp_path))
    pid = processes.pid("device-0")
    processes.close()
    assert not psutil.pid_exists(pid)
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    processes.start("device-1", waiting(tmp_path))
    assert {child.pid for child in psutil.Process().children(recursive=True)} == before
    assert processes.gone() == {}


def test_workers_do_not_hear_interrupts_at_the_terminal(processes: Processes, tmp_path: Path):
    processes.start("device-0", waiting(tmp_path))
    pid = processes.pid("device-0")
    os.kill(pid, signal.SIGINT)
    os.kill(psutil.Process(pid).ppid(), signal.SIGINT)  # the server that forks
    time.sleep(0.3)
    assert processes.gone() == {}
    processes.start("device-1", waiting(tmp_path))
    assert psutil.pid_exists(processes.pid("device-1"))

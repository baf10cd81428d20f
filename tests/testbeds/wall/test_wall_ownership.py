"""Marks that tell a live process from a dead one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from testbeds._wall import ownership


def test_a_process_lives_until_it_is_killed_even_if_nobody_waited_for_it() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        said = ownership.mark(process.pid)
        assert ownership.alive(said)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, and a zombie still
        assert not ownership.alive(said)
    assert not ownership.alive(said)
    with pytest.raises(ProcessLookupError):
        ownership.mark(process.pid)


def test_a_number_that_was_used_again_is_somebody_else() -> None:
    pid, start = ownership.mark().split()
    assert ownership.alive(f"{pid} {start}\n")
    assert not ownership.alive(f"{pid} {int(start) + 1}")


@pytest.mark.parametrize("rubbish", ["", "1", "one two", "-1 5", f"{10**30} 5"])
def test_rubbish_is_nobody(rubbish: str) -> None:
    assert not ownership.alive(rubbish)


def test_a_folder_is_claimed_by_this_process(tmp_path: Path) -> None:
    ownership.claim(tmp_path)
    assert ownership.alive((tmp_path / ownership.CONTROLLER_FILE).read_text())

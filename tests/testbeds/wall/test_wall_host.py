"""testbeds/_wall: what is told of the host (host.py), what it can give (room.py), and a run's own folder (run.py)."""

from __future__ import annotations

import asyncio
import os
import stat
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from harness.errors import TestbedError
from testbeds._wall import ownership
from testbeds._wall.host import HostWatch
from testbeds._wall.room import MOST_LOAD, Room, check_room, host_cores
from testbeds._wall.run import run_folder


def test_the_host_s_shares_are_shares():
    notes = HostWatch().notes()
    assert notes["busy"] + notes["steal"] + notes["idle"] == pytest.approx(1.0, abs=1e-3)
    assert len(notes["load_before"]) == len(notes["load_after"]) == 3
    assert notes["seconds"] >= 0
    assert 1 <= host_cores() <= (os.cpu_count() or 1)


def test_a_node_needs_its_threads_for_its_share_of_the_time():
    """Steps are timed once per number of threads, and not before all are known is anything refused."""
    asked = []

    async def scenario() -> None:
        room = Room({"a": 0.4, "b": 0.3, "c": 0.6}, {"a": 2, "b": 1, "c": 1}, 1.0)

        def measure(seconds: float) -> Callable[[int], Awaitable[list[float]]]:
            async def timed(steps: int) -> list[float]:
                asked.append(seconds)
                return [seconds] * steps

            return timed

        await room.look("a", measure(0.1))
        await room.look("b", measure(0.06))
        await room.look("c", measure(9.0))  # as many threads as b: known
        assert room.shares() == {"a": pytest.approx(0.5), "b": pytest.approx(0.2), "c": pytest.approx(0.1)}
        assert 9.0 not in asked
        with pytest.raises(TestbedError, match=r"b is 1\.5 times as fast as this host"):
            await Room({"b": 0.2}, {"b": 1}, 1.0).look("b", measure(0.3))

    asyncio.run(scenario())


def test_a_board_faster_than_the_host_is_refused_with_the_dilation_that_helps():
    with pytest.raises(TestbedError, match=r"^b is 2 times as fast as this host.*dilation to 4.2 or more") as caught:
        check_room({"a": 0.5, "b": 2.0}, {"a": 1, "b": 1}, 64, 2.0)
    assert "a is" not in str(caught.value)


def test_more_processors_than_there_are_is_refused_with_the_arithmetic():
    needed = {f"device-{number}": 0.5 for number in range(10)}
    with pytest.raises(TestbedError, match=r"0\.50 \+ 0\.50 .*\+ \.\.\. = 5\.00 processors .* 90% of 2"):
        check_room(needed, dict.fromkeys(needed, 1), 2, 1.0)
    check_room(needed, dict.fromkeys(needed, 1), 6, 1.0)
    assert MOST_LOAD * 6 > 5.0


def test_a_run_s_folder_is_its_own_and_goes_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def fails() -> None:
        with run_folder() as folder:
            assert folder.parent == tmp_path
            assert folder.name.startswith(ownership.FOLDER_PREFIX)
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
            (folder / "keys").mkdir()
            (folder / "keys" / "x.key").write_text("secret")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fails()
    assert list(tmp_path.iterdir()) == []

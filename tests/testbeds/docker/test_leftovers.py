"""What a killed controller leaves is found and removed; what a live one uses is not touched."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from docker_host import PATIENCE_S, engine_or_skip, left_of, run_id

from harness.errors import TestbedError
from testbeds._wall.ownership import CONTROLLER_FILE, mark
from testbeds.docker import access, leftovers, ownership
from testbeds.docker.access import connect
from testbeds.docker.leftovers import CONTAINER, DEVICE, FOLDER, NETWORK, Leftover

ROOT = Path(__file__).parents[3]
CONTROLLER = """
import asyncio, sys
from pathlib import Path
from testbeds._wall.ownership import claim
from testbeds.docker.engine import Engine
async def main():
    folder = Path(sys.argv[2]); folder.mkdir(); claim(folder)
    async with Engine(sys.argv[1]) as engine:
        for name in ("frozen", "stopped", "ended"):
            script = "pass" if name == "ended" else "import time; time.sleep(600)"
            await engine.start(name, [sys.executable, "-c", script], mounts=engine.image.mounts())
        engine.client.containers.get(f"ammeter-{sys.argv[1]}-frozen").pause()
        await engine.signal("stopped", "STOP")
        print("ready", flush=True)
        await asyncio.sleep(600)
asyncio.run(main())
"""


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary folder of our own: others may be running."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def dead() -> str:
    """The mark of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        said = mark(process.pid)
        process.kill()
    return said


def of(run: str, folder: Path, found: list[Leftover]) -> list[Leftover]:
    return [thing for thing in found if thing.run == run or thing.name == str(folder)]


def test_a_killed_controllers_things_are_found_and_removed(folders: Path) -> None:
    engine_or_skip()
    run, folder = run_id(), folders / "ammeter-run-1"
    with subprocess.Popen(
        [sys.executable, "-c", CONTROLLER, run, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as controller:
        assert controller.stdout is not None
        assert controller.stdout.readline() == "ready\n"
        assert of(run, folder, leftovers.find()) == []
        live = of(run, folder, leftovers.find(all=True))
        assert all(thing.alive for thing in live)
        controller.send_signal(signal.SIGKILL)
        controller.wait(PATIENCE_S)
    found = of(run, folder, leftovers.find())
    names = {(thing.kind, thing.name) for thing in found}
    assert names == {(thing.kind, thing.name) for thing in live}
    assert names == {(CONTAINER, f"ammeter-{run}-{name}") for name in ("frozen", "stopped", "ended")} | {
        (NETWORK, f"ammeter-{run}-{name}") for name in ("mgmt", "data")
    } | {(FOLDER, str(folder))}
    assert all(thing.age_s is not None and 0 <= thing.age_s < 3600 for thing in found)
    assert leftovers.remove(reversed(found)) == []  # networks first would be refused: the order is seen to
    assert left_of(run) == []
    assert not folder.exists()
    assert leftovers.remove(found) == []  # gone already: no matter


def test_folders_of_live_and_unknown_makers_are_kept(folders: Path, dead: str) -> None:
    for name, said in (("live", mark()), ("dead", dead), ("unclaimed", None)):
        (folders / f"ammeter-run-{name}").mkdir()
        if said is not None:
            (folders / f"ammeter-run-{name}" / CONTROLLER_FILE).write_text(said)
    (folders / "another").mkdir()
    found = [thing for thing in leftovers.find() if thing.kind == FOLDER]
    assert [Path(thing.name).name for thing in found] == ["ammeter-run-dead"]
    assert leftovers.remove(found) == []
    assert sorted(path.name for path in folders.iterdir()) == ["ammeter-run-live", "ammeter-run-unclaimed", "another"]


@contextlib.contextmanager
def _device(name: str) -> Iterator[None]:
    done = subprocess.run(["ip", "link", "add", name, "type", "bridge"], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"network devices cannot be made here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["ip", "link", "delete", name], capture_output=True)


def test_network_devices_go_with_the_last_sign_of_their_run() -> None:
    """A run's networks say whether its controller lives; a device's name says of which run it is."""
    engine_or_skip()
    live, gone = run_id(), run_id()
    with contextlib.closing(connect()) as client:
        labels = {ownership.RUN: live, ownership.CONTROLLER: mark()}
        network = client.networks.create(f"ammeter-{live}-data", labels=labels)
        try:
            kept, left = (f"{ownership.device_prefix(run)}0" for run in (live, gone))
            with _device(kept), _device(left):
                found = [thing for thing in leftovers.find() if thing.kind == DEVICE]
                assert left in {thing.name for thing in found}
                assert kept not in {thing.name for thing in found}
                assert leftovers.remove(thing for thing in found if thing.name == left) == []
                assert not Path(f"/sys/class/net/{left}").exists()
                assert Path(f"/sys/class/net/{kept}").exists()
        finally:
            network.remove()


def test_without_an_engine_the_rest_is_found(folders: Path, dead: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{folders}/none.sock")
    (folders / "ammeter-run-1").mkdir()
    (folders / "ammeter-run-1" / CONTROLLER_FILE).write_text(dead)
    assert [thing.kind for thing in leftovers.find() if thing.kind != DEVICE] == [FOLDER]


def test_what_cannot_be_removed_is_told_and_the_rest_goes(folders: Path) -> None:
    (folders / "file").write_text("")
    (folders / "folder").mkdir()
    things = [Leftover(FOLDER, str(folders / name), "", 1.0, False) for name in ("file", "folder")]
    (told,) = leftovers.remove(things)
    assert told.startswith(f"folder {folders / 'file'} could not be removed")
    assert not (folders / "folder").exists()


def test_an_engine_that_may_not_be_asked_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(access, "_knock", refused)
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    with pytest.raises(TestbedError, match="usermod"):
        leftovers.find()


@pytest.mark.parametrize("written", ["{}.123456789Z", "{}Z", "{}.5+00:00"])
def test_ages_are_read_from_the_engines_words(written: str) -> None:
    made = datetime.now(timezone.utc) - timedelta(minutes=10)
    assert leftovers._age_s(written.format(made.strftime("%Y-%m-%dT%H:%M:%S"))) == pytest.approx(600, abs=60)
    east = made.astimezone(timezone(timedelta(hours=2)))
    assert leftovers._age_s(east.strftime("%Y-%m-%dT%H:%M:%S.987654321+02:00")) == pytest.approx(600, abs=60)

"""What killed controllers left on this machine: containers, networks, network devices, folders of keys.

A controller removes its things in every way it can end but kill -9. What a live controller made, or what is part of a
standing testbed, is never touched, unless asked for.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import requests
from docker import DockerClient
from docker.errors import DockerException, NotFound

from harness.errors import TestbedError
from testbeds._wall.ownership import CONTROLLER_FILE, FOLDERS, alive
from testbeds.docker import access, ownership

CONTAINER, NETWORK, DEVICE, FOLDER = "container", "network", "device", "folder"
_ORDER = (CONTAINER, NETWORK, DEVICE, FOLDER)  # of removal: a network cannot go before its containers
_INTERFACES = Path("/sys/class/net")


@dataclass(frozen=True)
class Leftover:
    """Something that a run made.

    Attributes:
        kind: "container", "network", "device" (of the network: an ifb, with its qdiscs) or "folder" (of keys).
        name: the engine's or kernel's name, or the folder's path.
        run: the run's id; "" where it does not say.
        age_s: seconds since it was made; None = unknown.
        alive: its controller still runs.
        standing: the standing testbed that it is part of; "" = of none.
    """

    kind: str
    name: str
    run: str
    age_s: float | None
    alive: bool
    standing: str = ""


def _age_s(made: str) -> float:
    """Return how long ago an instant in the engine's words is ("2026-01-02T03:04:05.123456789Z", or with an offset)."""
    second, rest = made[:19], made[19:].lstrip(".0123456789")  # Python 3.10 reads six digits at most
    moment = datetime.fromisoformat(second + rest.replace("Z", "+00:00"))
    return max(time.time() - moment.timestamp(), 0.0)


def _of_engine(client: DockerClient) -> list[Leftover]:
    labelled: dict[str, str | list[str] | bool] = {"label": ownership.RUN}
    found = []
    for container in client.containers.list(all=True, filters=labelled, ignore_removed=True):
        labels, made = container.labels, container.attrs["Created"]
        found.append((CONTAINER, str(container.name), labels, made))
    for network in client.networks.list(filters=labelled):
        found.append((NETWORK, str(network.name), network.attrs["Labels"], network.attrs["Created"]))
    return [
        Leftover(
            kind,
            name,
            labels[ownership.RUN],
            _age_s(made),
            alive(labels.get(ownership.CONTROLLER, "")),
            labels.get(ownership.STANDING, ""),
        )
        for kind, name, labels, made in found
    ]


def _folders() -> list[Leftover]:
    found = []
    for folder in sorted(Path(tempfile.gettempdir()).glob(FOLDERS)):
        try:
            said = (folder / CONTROLLER_FILE).read_text(encoding="utf-8")
            age_s = max(time.time() - folder.stat().st_mtime, 0.0)
        except OSError:
            continue  # somebody else's, or not claimed yet: a live controller may be about to
        found.append(Leftover(FOLDER, str(folder), "", age_s, alive(said)))
    return found


def _devices(live_runs: Iterable[str]) -> list[Leftover]:
    prefixes = tuple(map(ownership.device_prefix, live_runs))
    names = sorted(path.name for path in _INTERFACES.iterdir() if ownership.is_ours(path.name))
    return [Leftover(DEVICE, name, "", None, name.startswith(prefixes)) for name in names]


def find(all: bool = False) -> list[Leftover]:
    """Return what dead controllers left behind, in the order in which it can be removed.

    Where no docker engine answers there are no containers to find.

    Args:
        all: what live controllers made and what stands, too.

    Raises:
        TestbedError: there is an engine and it may not be asked.
    """
    found: list[Leftover] = []
    with contextlib.suppress(access.NoEngine), contextlib.closing(access.connect()) as client:
        try:
            found += _of_engine(client)
        except (DockerException, requests.RequestException) as error:
            raise TestbedError(f"docker: the engine does not say what is left ({error})") from None
    found += _devices({thing.run for thing in found if thing.alive or thing.standing})
    found += _folders()
    return [thing for thing in found if all or not (thing.alive or thing.standing)]


def table(things: Iterable[Leftover]) -> list[tuple[str, str, str, str, str]]:
    """Return rows for people: what, name, run, age, and to whom it belongs."""
    return [
        (
            thing.kind,
            thing.name,
            thing.run,
            "" if thing.age_s is None else f"{thing.age_s:,.0f} s",
            f"of {thing.standing}" if thing.standing else "of a live run" if thing.alive else "left behind",
        )
        for thing in things
    ]


def remove(things: Iterable[Leftover]) -> list[str]:
    """Remove what `find` found; what is gone meanwhile is no matter.

    Returns:
        What could not be removed, and why: a sentence each.

    Raises:
        TestbedError: there are containers or networks and the engine may not be used.
    """
    things = sorted(things, key=lambda thing: _ORDER.index(thing.kind))
    left: list[str] = []
    with contextlib.ExitStack() as stack:
        ways: dict[str, Callable[[str], None]] = {DEVICE: _remove_device, FOLDER: _remove_folder}
        if any(thing.kind in (CONTAINER, NETWORK) for thing in things):
            client = stack.enter_context(contextlib.closing(access.connect()))
            ways[CONTAINER] = lambda name: client.containers.get(name).remove(force=True, v=True)
            ways[NETWORK] = lambda name: client.networks.get(name).remove()
        for thing in things:
            try:
                ways[thing.kind](thing.name)
            except NotFound:
                pass
            except (DockerException, requests.RequestException, OSError, subprocess.SubprocessError) as error:
                left.append(f"{thing.kind} {thing.name} could not be removed ({error})")
    return left


def _remove_folder(name: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(name)


def _remove_device(name: str) -> None:
    done = subprocess.run(["ip", "link", "delete", name], capture_output=True, text=True, check=False)
    if done.returncode and (_INTERFACES / name).exists():
        raise OSError(f"{done.stderr.strip()}; as root: ip link delete {name}")

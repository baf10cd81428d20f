"""Testbeds that stand: containers and networks that are there before a run and after it, so that it starts at once.

Each has a folder that only its owner may enter, $XDG_STATE_HOME/ammeter/testbeds/NAME: its keys (one authority for as
long as it stands), `testbed.json` (what it was made from), and a file that whoever uses it holds a lock on. A run whose
section asks for the same nodes uses it, if nobody else does.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import functools
import hashlib
import json
import os
import random
import re
import secrets
import shutil
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import harness
import profiles
import testbeds
from harness.errors import TestbedError
from harness.experiment import RunSpec
from harness.run import workload
from harness.topology import Topology
from harness.transport import tls
from harness.worker.session import CONTROLLER
from harness.worker.standing import PRELOAD_IF_USED
from testbeds._fleet.boards import boards
from testbeds._fleet.links import topology
from testbeds.docker import image, leftovers, ownership
from testbeds.docker.access import NoEngine, connect, told
from testbeds.docker.config import Config
from testbeds.docker.engine import MANAGEMENT
from testbeds.docker.limits import Limits
from testbeds.docker.lives import Keeper
from testbeds.docker.standing_engine import StandingEngine

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,40}")
_MADE_OF, _LOCK, _KEYS = "testbed.json", "lock", "keys"
_PORTS = range(20000, 30000)  # below those that the kernel gives away: it is to be free whenever a run begins
_START_S = 120.0
_LOOK_S = 0.02
_LOOKS = 10


@dataclass(frozen=True)
class Node:
    """What a node of a testbed is made from: a board, its memory (None: not limited), and threads."""

    board: str
    memory_bytes: int | None
    threads: int


@dataclass(frozen=True)
class Made:
    """What a standing testbed was made from.

    Attributes:
        run: part of its containers' and networks' names, and their label.
        port: where its workers look for a controller.
        code: hash of the code that its workers have imported; "" = that of an image that was built.
        here: the folder that its containers show, and start in.  data: the folder of data sets, if it was given.
        imports: what workers have imported beyond what all do.
        at_s: when, seconds since 1970.
    """

    run: str
    port: int
    image: str
    nodes: dict[str, Node]
    code: str
    here: str
    data: str | None
    imports: list[str]
    at_s: float


class Standing:
    """One standing testbed.

    Args:
        made: None: it was never finished.
    """

    def __init__(self, folder: Path, made: Made | None) -> None:
        self.name = folder.name
        self.folder = folder
        self.keys = folder / _KEYS
        self._made = made

    @property
    def made(self) -> Made:
        assert self._made is not None
        return self._made

    @property
    def finished(self) -> bool:
        return self._made is not None

    def engine(self) -> StandingEngine:
        """Return the engine's part of it, neither opened nor adopted."""
        return StandingEngine(self.name, self.made.run, self.made.image, list(self.made.nodes))

    def limits(self, name: str) -> Limits:
        """Return what a node was made with."""
        node = self.made.nodes[name]
        return Limits(cores=node.threads, memory_bytes=node.memory_bytes)

    def keeper(self, engine: StandingEngine, name: str) -> Keeper | None:
        """Return who keeps a node's processes; None: its container does not run."""
        found = engine.running(name)
        return None if found is None else Keeper(name, found.pid, engine.group(name))

    async def start(self, engine: StandingEngine, name: str) -> Keeper:
        """Start a node's container, in place of one that has ended. It imports, then it forks a first worker.

        Raises:
            TestbedError: the engine refuses.
        """
        made = self.made
        command = [*engine.image.worker, "--standing", "--name", name, "--keys", str(self.keys)]
        command += ["--controller", f"{engine.gateway(MANAGEMENT)}:{made.port}"]
        command += ["--listen", engine.address(name, "data"), "--remedy", f"give both the same version: {self.anew}"]
        command += [word for module in made.imports for word in ("--import", module)]
        threads = str(made.nodes[name].threads)
        here = Path(made.here)
        started = await engine.start(
            name,
            command,
            env={"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads},
            mounts=engine.image.mounts([here, *([Path(made.data)] if made.data is not None else [])]),
            limits=self.limits(name),
            keys=self.keys,
            workdir=here,
        )
        return Keeper(name, started.pid, engine.group(name))

    async def ready(self, engine: StandingEngine, keeper: Keeper) -> None:
        """Wait until a node has forked its first worker: it has imported everything.

        Raises:
            TestbedError: it ends, or takes too long.
        """
        name, deadline = keeper.name, time.monotonic() + _START_S
        while keeper.worker() is None:
            if not keeper.runs:
                state = await engine.state(name)
                last = (await engine.logs(name, 1)).strip()
                raise TestbedError(f"{name}: its container has exited with status {state.exit_code} ({last})")
            if time.monotonic() > deadline:
                raise TestbedError(f"{name}: its worker is not ready within {_START_S:g} s; is the host overloaded?")
            await asyncio.sleep(_LOOK_S)

    @property
    def anew(self) -> str:
        """How to make it again."""
        return f"ammeter testbed down {self.name}; ammeter testbed up ..."

    @contextlib.contextmanager
    def used(self) -> Iterator[bool]:
        """Be its only user; False: somebody else is. The lock goes with the process, however that ends."""
        with contextlib.ExitStack() as stack:
            try:
                descriptor = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
            except FileNotFoundError:  # taken down meanwhile
                yield False
                return
            stack.callback(os.close, descriptor)
            yield _locked(descriptor) and _is_at(descriptor, self.folder / _LOCK)


def _locked(descriptor: int) -> bool:
    for _ in range(_LOOKS):  # who only looks whether it is free has it for a moment
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(_LOOK_S)
    return False


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is still the one of this name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _root() -> Path:
    state = os.environ.get("XDG_STATE_HOME", "")
    return (Path(state) if os.path.isabs(state) else Path.home() / ".local" / "state") / "ammeter" / "testbeds"


def _read(folder: Path) -> Standing:
    try:
        said = json.loads((folder / _MADE_OF).read_text(encoding="utf-8"))
        said["nodes"] = {name: Node(**node) for name, node in said["nodes"].items()}
        return Standing(folder, Made(**said))
    except (OSError, ValueError, TypeError, KeyError):  # killed while it was made, or another version's
        return Standing(folder, None)


def find() -> list[Standing]:
    """Return all standing testbeds of this user, sorted by name."""
    try:
        return [_read(folder) for folder in sorted(_root().iterdir()) if folder.is_dir()]
    except FileNotFoundError:
        return []


# ---- what a run asks for -----------------------------------------------------------------------------------------


def _nodes(bed: Config, nodes: Topology) -> dict[str, Node]:
    threads = bed.threads_of(nodes)
    return {
        name: Node(board.id, board.memory_bytes if bed.memory else None, threads[name])
        for name, board in boards(bed, nodes).items()
    }


def _code() -> str:
    """Return a hash of all that a worker imports before it knows its run."""
    hashed = hashlib.sha256(f"{sys.version} {torch.__version__}".encode())
    for package in (harness, profiles, testbeds):
        for path in sorted(Path(next(iter(package.__path__))).rglob("*.py")):
            hashed.update(f"{path}\n".encode() + path.read_bytes())
    return hashed.hexdigest()[:16]


def _data(data_root: Path | None) -> str | None:
    return None if data_root is None else str(data_root.resolve())


def _serves(made: Made, bed: Config, nodes: Topology, data_root: Path | None) -> bool:
    asked = (bed.image, str(Path.cwd()), _nodes(bed, nodes))
    return asked == (made.image, made.here, made.nodes) and _data(data_root) in (None, made.data)


@contextlib.contextmanager
def borrowed(spec: RunSpec, data_root: Path | None) -> Iterator[Standing | None]:
    """Use a standing testbed that has the nodes that a run asks for; None: there is none, or it is in use.

    Raises:
        TestbedError: its workers run another version of the code.
    """
    bed = spec.bed
    assert isinstance(bed, Config)
    nodes = topology(bed)
    fitting = [found for found in find() if found.finished and _serves(found.made, bed, nodes, data_root)]
    for found in fitting:
        with found.used() as mine:
            if not mine:
                continue
            if found.made.code not in ("", _code()):
                raise TestbedError(
                    f"the standing testbed {found.name} was made by another version of the code: {found.anew}"
                )
            _say(f"on the standing testbed {found.name}")
            yield found
            return
    if fitting:
        _say(f"the standing testbed {fitting[0].name} is in use: on containers of its own")
    yield None


@functools.cache  # once, however many runs
def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


# ---- the verb's ----------------------------------------------------------------------------------------------------


def up(spec: RunSpec, name: str, data_root: Path | None) -> list[tuple[str, str, str, str]]:
    """Make a testbed of the nodes that a run asks for; return rows (node, board, address, state).

    Raises:
        TestbedError: one of that name is there, no engine answers, a container does not start.
    """
    bed = spec.bed
    assert isinstance(bed, Config)
    if not _NAME.fullmatch(name):
        raise TestbedError(f"--name {name}: containers are named so; use letters, digits, '_' and '-', at most 41")
    nodes = topology(bed)
    workload(spec, nodes, data_root)  # what reading its data imports is worth importing beforehand
    folder = _root() / name
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        raise TestbedError(f"a testbed {name} is there already: ammeter testbed down {name}, or --name it") from None
    made = Made(
        run=f"{name}-{secrets.token_hex(3)}",
        port=0,
        image=bed.image,
        nodes=_nodes(bed, nodes),
        code=_code() if bed.image == image.HOST else "",
        here=str(Path.cwd()),
        data=_data(data_root),
        imports=["testbeds.docker", *(module for module in PRELOAD_IF_USED if module in sys.modules)],
        at_s=time.time(),
    )
    standing = Standing(folder, made)
    try:
        with standing.used():
            tls.make(standing.keys, [*made.nodes, CONTROLLER])
            return asyncio.run(_up(standing))
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


async def _up(standing: Standing) -> list[tuple[str, str, str, str]]:
    made = standing.made
    engine = standing.engine()
    try:
        await engine.open()
        made = Made(**{**made.__dict__, "port": _free_port(engine.gateway(MANAGEMENT))})
        standing = Standing(standing.folder, made)
        starts = [asyncio.ensure_future(_start(standing, engine, name)) for name in made.nodes]
        try:
            await asyncio.gather(*starts)
        finally:
            for start in starts:
                start.cancel()
            await asyncio.gather(*starts, return_exceptions=True)
        rows = [(name, node.board, engine.address(name, "data"), "up") for name, node in made.nodes.items()]
        _write(standing.folder / _MADE_OF, json.dumps(asdict(made), indent=1))
    except BaseException:
        await engine.close()
        raise
    await engine.leave()
    return rows


async def _start(standing: Standing, engine: StandingEngine, name: str) -> None:
    keeper = await standing.start(engine, name)
    await standing.ready(engine, keeper)
    await asyncio.to_thread(keeper.rest)


def _write(path: Path, text: str) -> None:
    """Write a file that is there whole or not at all."""
    beside = path.with_suffix(".new")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


def _free_port(host: str) -> int:
    for port in random.sample(_PORTS, 100):
        with contextlib.suppress(OSError), socket.create_server((host, port)):
            return port
    raise TestbedError(f"no port between {_PORTS.start} and {_PORTS.stop} is free on {host}")


def down(name: str | None, force: bool = False) -> tuple[str, list[str]]:
    """Remove a testbed: containers, networks, folder. Return its name, and what could not be removed, a sentence each.

    Args:
        name: None: the only one there is.
        force: also while a run uses it; that run ends.

    Raises:
        TestbedError: there is none of that name or several, a run uses it, or the engine does not answer.
    """
    found = _chosen(name)
    with found.used() as mine:
        if not mine and not force and found.folder.exists():
            raise TestbedError(f"the testbed {found.name} is in use; wait for the run, or say --force")
        with contextlib.suppress(FileNotFoundError):
            (found.folder / _MADE_OF).unlink()  # from here on no run takes it
        left = leftovers.remove(thing for thing in leftovers.find(all=True) if thing.standing == found.name)
        if not left:
            shutil.rmtree(found.folder, ignore_errors=True)
    return found.name, left


def _chosen(name: str | None) -> Standing:
    there = {found.name: found for found in find()}
    if name is not None:
        if name in there:
            return there[name]
        if any(thing.standing == name for thing in leftovers.find(all=True)):
            return Standing(_root() / name, None)  # somebody has removed its folder
        raise TestbedError(f"no testbed {name} stands here; there are: {', '.join(there) or 'none'}")
    if len(there) != 1:
        none = "no testbed stands here; ammeter testbed up EXPERIMENT makes one"
        raise TestbedError(f"say which testbed: {', '.join(there)}" if there else none)
    return next(iter(there.values()))


def _running() -> Counter[str]:
    """Return how many containers of standing testbeds run, by run; without an engine none does."""
    labelled: dict[str, Any] = {"label": ownership.STANDING}
    with contextlib.suppress(NoEngine), contextlib.closing(connect()) as client, told("docker"):
        there = client.containers.list(filters=labelled, ignore_removed=True)
        return Counter(container.labels[ownership.RUN] for container in there)
    return Counter()


def table(things: Iterable[leftovers.Leftover]) -> list[tuple[str, str, str, str, str]]:
    """Return a row for people for each standing testbed: what, name, run, age, and its state.

    Args:
        things: all that `leftovers.find` finds.

    Raises:
        TestbedError: there is an engine and it may not be asked.
    """
    rows = []
    running = _running()
    for found in find():
        if not found.finished:
            with found.used() as mine:
                state = f"never came up: ammeter testbed down {found.name}" if mine else "is being made"
            rows.append(("testbed", found.name, "", "", state))
            continue
        made, there = found.made, running[found.made.run]
        with found.used() as mine:
            state = f"{there} of {len(made.nodes)} nodes up, {'free' if mine else 'in use'}"
        if there < len(made.nodes) and mine:
            state += f": {found.anew}"
        rows.append(("testbed", found.name, made.run, f"{max(time.time() - made.at_s, 0):,.0f} s", state))
    names = {row[1] for row in rows}
    orphans = sorted({thing.standing for thing in things} - names - {""})
    return rows + [("testbed", name, "", "", f"has lost its folder: ammeter testbed down {name}") for name in orphans]

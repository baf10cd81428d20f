"""Runs on real testbeds, and what can be done to their nodes from outside while they go on.

A bed is one testbed: `docker` differs from `local` in `section` and in how a node is found.
"""

from __future__ import annotations

import contextlib
import copy
import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
from detours import Detours

from harness import experiment
from harness.errors import AmmeterError
from harness.run import execute
from results.store import Run, Store
from testbeds.docker import ownership
from testbeds.docker.access import connect

PATIENCE_S = 120.0
"""Against hangs only: no test is about how long something takes."""

BASE: dict[str, Any] = {
    "name": "faults",
    "mode": "learn",
    "seeds": [1],
    "task": {"data": "digits", "model": "vgg-5", "partition": {"samples": 48}, "test_samples": 16},
    "training": {"rounds": 100, "batch_size": 16, "optimizer": {"lr": 0.02}},
    "methods": ["fedavg"],
    "testbed": {
        "network": {},
        "devices": [{"profile": "rpi-4-4g", "count": 3}],
        "server": {"profile": "rpi-5-8g", "network": {}},
        "preflight": False,
        "silence_s": 3.0,
        "link_s": 4.0,
    },
}


def until(true: Callable[[], Any], what: str) -> Any:
    """Wait until something is true; return it."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := true()):
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.02)
    return found


class Local:
    """The local testbed. One run at a time; use it as a context: nothing of it is left afterwards."""

    section: dict[str, Any] = {"name": "local", "shaped": False}  # noqa: RUF012 - read only

    def __init__(self, runs: Path, detours: Detours | None = None) -> None:
        self.store = Store(runs)
        self.at_s = -1.0
        self.run: Run | None = None
        self.error: BaseException | None = None
        self._detours = detours
        self._spec: Any = None
        self._thread: threading.Thread | None = None

    # ---- a run

    def spec(self, methods: list[Any], model: str = "vgg-5", **testbed: Any) -> experiment.RunSpec:
        """Return a small run of this testbed."""
        data = copy.deepcopy(BASE)
        data["task"]["model"] = model
        data["methods"] = methods
        data["testbed"] = {**self.section, **data["testbed"], **testbed}
        (spec,) = experiment.runs(experiment.parse(data))
        return spec

    def start(self, method: Any, **more: Any) -> Path:
        """Start a run in a thread; return its folder."""
        spec = self._spec = self.spec([method], **more)
        self.at_s, self.run, self.error = -1.0, None, None
        self._thread = threading.Thread(target=self._go, args=(spec,))
        self._thread.start()
        return self.store.folder("faults", spec.id)

    def again(self) -> Run:
        """Make the same run once more, in peace."""
        return self.store.record(self._spec.resolved(), self._spec.id, lambda rows: execute(self._spec, rows))

    def _go(self, spec: experiment.RunSpec) -> None:
        def progress(at_s: float) -> None:
            self.at_s = at_s

        try:
            self.run = self.store.record(spec.resolved(), spec.id, lambda rows: execute(spec, rows, None, progress))
        except BaseException as error:
            self.error = error

    def until_at(self, at_s: float) -> None:
        """Wait for a time of the run."""
        until(lambda: self.at_s >= at_s or not self._alive(), f"the run at {at_s} s")
        assert self._alive(), f"it was over before: {self.error}"

    def _alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def end(self) -> Run:
        """Wait for the run's end; return it.

        Raises:
            AmmeterError: what stopped it.
        """
        assert self._thread is not None
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive(), "the run hangs"
        if self.error is not None:
            raise self.error
        assert self.run is not None
        return self.run

    def fails(self) -> AmmeterError:
        """Wait for the run's end; return what stopped it."""
        with contextlib.suppress(AmmeterError):
            self.end()
        assert isinstance(self.error, AmmeterError), f"it did not fail: {self.error}"
        return self.error

    # ---- its nodes

    def pid(self, name: str) -> int:
        """Return a node's process: the one that calls itself so and descends from this one."""

        def found() -> list[int]:
            pids = []
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if process.name() == name and process.status() != psutil.STATUS_ZOMBIE:
                        pids.append(process.pid)
            return pids

        (pid,) = until(found, f"a process of {name}")
        return pid

    def kill(self, name: str) -> None:
        os.kill(self.pid(name), signal.SIGKILL)

    def freeze(self, name: str) -> Callable[[], None]:
        """Stop a node; return what lets it go on, if it is still there."""
        process = psutil.Process(self.pid(name))
        process.suspend()

        def thaw() -> None:
            with contextlib.suppress(psutil.NoSuchProcess):  # psutil knows a process that has its number by now
                process.resume()

        return thaw

    def cut_link(self, name: str, silently: bool) -> None:
        """Cut a node's data connections: broken off at both ends, or (silently) so that nothing passes any more."""
        assert self._detours is not None
        self._detours.cut(name, silently)

    def fill_memory(self, name: str) -> None:
        """Let a node have no more memory than it has."""
        process = psutil.Process(self.pid(name))
        process.rlimit(resource.RLIMIT_AS, (process.memory_info().vms, process.memory_info().vms))

    # ---- what is left

    def left(self) -> list[str]:
        """Return the names of processes of nodes that are still there."""
        found = []
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if process.name().startswith(("server", "device", "edge")):
                    found.append(process.name())
        return found

    def close(self) -> None:
        """End what goes on, for a test that has failed."""
        while self._alive():
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if process.name().startswith(("server", "device", "edge")):
                        process.kill()
            assert self._thread is not None
            self._thread.join(0.5)


class Docker(Local):
    """The docker testbed."""

    section: dict[str, Any] = {"name": "docker", "compute": "native", "shaped": False}  # noqa: RUF012 - read only

    def __init__(self, runs: Path) -> None:
        super().__init__(runs)
        self._client = connect()

    def _containers(self) -> list[Any]:
        labelled: dict[str, Any] = {"label": ownership.NODE}
        return list(self._client.containers.list(all=True, filters=labelled, ignore_removed=True))

    def container(self, name: str) -> Any:
        """Return a node's running container."""

        def found() -> list[Any]:
            mine = [one for one in self._containers() if one.labels[ownership.NODE] == name]
            return [one for one in mine if one.status == "running"]

        (container,) = until(found, f"a container of {name}")
        return container

    def pid(self, name: str) -> int:
        pid: int = self.container(name).attrs["State"]["Pid"]
        return pid

    def cut_link(self, name: str, silently: bool = True) -> None:  # noqa: ARG002 - a cable that is out is silent
        container = self.container(name)
        (network,) = [n for n in container.attrs["NetworkSettings"]["Networks"] if n.endswith("-data")]
        self._client.networks.get(network).disconnect(container)

    def fill_memory(self, name: str) -> None:
        """Let a node have no more memory than it has, but for some pages."""
        container = self.container(name)
        used = container.stats(stream=False)["memory_stats"]["usage"]
        container.update(mem_limit=used + 2**20, memswap_limit=used + 2**20)

    def left(self) -> list[str]:
        networks = self._client.networks.list(filters={"label": ownership.RUN})
        return [str(one.name) for one in [*self._containers(), *networks]]

    def close(self) -> None:
        while self._alive():
            for container in self._containers():
                container.kill()
            assert self._thread is not None
            self._thread.join(0.5)
        self._client.close()


BEDS: dict[str, type[Local]] = {"local": Local}
"""By the name of the testbed: those on which every fault is tried; some are tried on docker, where starts take long."""


@contextlib.contextmanager
def opened(bed: Local) -> Iterator[Local]:
    """Give a bed and end it."""
    try:
        yield bed
    finally:
        bed.close()

"""The docker engine: a run's two networks and its containers, and their removal whatever happens.

A run has a management network (controller and workers; never shaped) and a data network (worker to worker; shaped).
Both are internal: no node reaches beyond this machine, while the host talks to containers at each network's gateway
address. Addresses are dealt out here, by name, and stay a node's own when it is started again or plugged in again.

Every thing made carries the run's label and the controller's mark (`ownership`): `close` removes by label, not by
memory, and `leftovers` finds what a killed controller left.

Calls of the SDK block, so they run on a few threads. Those that plug containers into networks or out of them take
turns: engines such as 20.10 miscount what is plugged in when two change it at one moment, and then refuse to remove
the network ("has active endpoints", moby issue 42119) until they are started again. Containers that end by themselves
at one moment can do that, too: end a run with `close` while they live.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ipaddress
import re
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import requests
from docker import DockerClient
from docker.errors import DockerException, NotFound
from docker.models.containers import Container
from docker.models.networks import Network
from docker.types import IPAMConfig, IPAMPool, LogConfig, Mount

from harness.errors import TestbedError
from testbeds._wall.ownership import mark
from testbeds.docker import cables, cgroup, image, ownership
from testbeds.docker.access import connect, told, user
from testbeds.docker.cables import Interface
from testbeds.docker.image import Image
from testbeds.docker.limits import Limits, apply, resources

MANAGEMENT = "mgmt"
DATA = "data"
NETWORKS = (MANAGEMENT, DATA)
_THREADS = 8
_SUBNET_TRIES = 5
_FIRST_NODE = 2  # within a subnet: 0 is its name, 1 the gateway
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_CONGESTION_CONTROLS = Path("/proc/sys/net/ipv4/tcp_allowed_congestion_control")  # what no privilege is needed for
_LOG = LogConfig(type="json-file", config={"max-size": "10m"})

T = TypeVar("T")


@dataclass(frozen=True)
class Started:
    """A container that was started.

    Attributes:
        name: the node's.
        id: the engine's.
        pid: its first process, as the host sees it.
        addresses: its IPv4 address on each network ("mgmt", "data").
    """

    name: str
    id: str
    pid: int
    addresses: Mapping[str, str]


@dataclass(frozen=True)
class State:
    """What became of a container.

    Attributes:
        running: it lives (a stopped or frozen process lives, too).
        exit_code: of its first process, 128 + signal if one killed it; None while it runs.
        oom_killed: the kernel killed a process of it for want of memory: the work does not fit.
    """

    running: bool
    exit_code: int | None
    oom_killed: bool


@dataclass(frozen=True)
class _Subnet:
    network: Network
    subnet: ipaddress.IPv4Network
    gateway: str

    def address(self, number: int) -> str:
        return str(self.subnet[number])


def _sysctls() -> dict[str, str]:
    """Return the containers' congestion control: one that looks at losses.

    BBR, which a host may prefer, leaves a shaped link unused now and then when processors are short.
    """
    try:
        allowed = _CONGESTION_CONTROLS.read_text(encoding="ascii").split()
    except OSError:
        return {}
    chosen = [name for name in ("cubic", "reno") if name in allowed]
    return {"net.ipv4.tcp_congestion_control": chosen[0]} if chosen else {}


class Engine:
    """One run's containers and networks.

    Args:
        run_id: part of every name; letters, digits, "_", "." and "-".
        image_name: "host", or an image that was built.
    """

    def __init__(self, run_id: str, image_name: str = image.HOST) -> None:
        if not _NAME.fullmatch(run_id):
            raise TestbedError(f"run id {run_id!r}: containers are named so; use letters, digits, '_', '.' and '-'")
        self.run_id = run_id
        self._image_name = image_name
        self._own = secrets.token_hex(8)
        self._labels = {ownership.RUN: run_id, ownership.CONTROLLER: mark(), ownership.ENGINE: self._own}
        self._plugging = threading.Lock()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="ammeter-docker")
        self._closing = False
        self._client: DockerClient | None = None
        self._image: Image | None = None
        self._user = ""
        self._networks: dict[str, _Subnet] = {}
        self._numbers: dict[str, int] = {}
        self._containers: dict[str, Container] = {}
        self._cgroups: dict[str, cgroup.Cgroup] = {}

    # ---- beginning and end -----------------------------------------------------------------------------------------

    async def __aenter__(self) -> Engine:
        try:
            await self.open()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def open(self) -> None:
        """Connect, see to the image and make the run's networks.

        Raises:
            TestbedError: there is no engine, no such image, no room for networks, or a run of this id is going on.
        """
        await self._call(self._open)

    def _open(self) -> None:
        self._client = client = connect()
        with told("docker"):
            self._user = user(client.info())
            self._image = image.prepare(client, self._image_name)
            there = client.networks.list(filters={"label": f"{ownership.RUN}={self.run_id}"})
        if there:
            raise TestbedError(
                f"run {self.run_id} has networks already: it is going on elsewhere, or its controller was killed; wait "
                "for it, or run 'ammeter testbed clean'"
            )
        for name in NETWORKS:
            self._networks[name] = self._make_network(name)

    def _make_network(self, name: str) -> _Subnet:
        """Make a network on a subnet that the engine picks.

        The engine lets containers have fixed addresses only where the subnet was asked for. So it is let to pick one,
        and then asked for that one; a run that takes it in between is met by trying again.
        """
        full = f"ammeter-{self.run_id}-{name}"
        options: dict[str, Any] = {"driver": "bridge", "internal": True, "labels": self._labels}
        networks = self.client.networks
        for _ in range(_SUBNET_TRIES):
            with told(f"network {full}"):
                picked = networks.create(full, **options)
                picked.reload()
                pool = picked.attrs["IPAM"]["Config"][0]
                picked.remove()
            subnet = ipaddress.IPv4Network(pool["Subnet"])
            gateway = str(subnet[1])
            asked = IPAMConfig(pool_configs=[IPAMPool(subnet=str(subnet), gateway=gateway)])
            try:
                with told(f"network {full}"):
                    return _Subnet(networks.create(full, ipam=asked, **options), subnet, gateway)
            except TestbedError as error:
                if "overlap" not in str(error):
                    raise
        raise TestbedError(f"network {full}: other runs keep taking the subnets that the engine picks; try again")

    async def close(self) -> None:
        """Remove the run's containers and networks, also those still being made. May be called again.

        Raises:
            TestbedError: some are left, after all was tried.
        """
        left = await asyncio.shield(asyncio.get_running_loop().run_in_executor(None, self.remove))
        if left:
            raise TestbedError(f"run {self.run_id}: {'; '.join(left)}; run 'ammeter testbed clean'")

    def remove(self) -> list[str]:
        """Do what `close` does, without a loop; return what could not be removed, and why."""
        self._closing = True
        self._threads.shutdown(wait=True, cancel_futures=True)
        if self._client is None:
            return []
        wanted: dict[str, str | list[str] | bool] = {"label": f"{ownership.ENGINE}={self._own}"}
        left: list[str] = []

        def attempt(what: str, action: Callable[[], object]) -> None:
            try:
                with contextlib.suppress(NotFound):
                    action()
            except (DockerException, requests.RequestException) as error:
                left.append(f"{what} could not be removed ({error})")

        try:
            for container in self._client.containers.list(all=True, filters=wanted, ignore_removed=True):
                attempt(f"container {container.name}", functools.partial(self._discard, container))
            for network in self._client.networks.list(filters=wanted):
                attempt(f"network {network.name}", network.remove)
        except (DockerException, requests.RequestException) as error:
            left.append(f"the engine does not say what is left ({error})")
        self._client.close()
        if not left:
            self._client = None
        return left

    # ---- what is there ---------------------------------------------------------------------------------------------

    @property
    def client(self) -> DockerClient:
        """The SDK's client.

        Raises:
            TestbedError: the engine is not open.
        """
        if self._client is None:
            raise TestbedError(f"run {self.run_id}: the engine is not open")
        return self._client

    @property
    def image(self) -> Image:
        """What containers are made of.

        Raises:
            TestbedError: the engine is not open.
        """
        if self._image is None:
            raise TestbedError(f"run {self.run_id}: the engine is not open")
        return self._image

    def gateway(self, network: str) -> str:
        """Return the host's own address on a network ("mgmt" or "data")."""
        return self._networks[network].gateway

    def address(self, name: str, network: str) -> str:
        """Return a node's address on a network; it is the node's before it starts, and for the whole run."""
        number = self._numbers.setdefault(name, _FIRST_NODE + len(self._numbers))
        return self._networks[network].address(number)

    def _container(self, name: str) -> Container:
        try:
            return self._containers[name]
        except KeyError:
            raise TestbedError(f"{name} was not started") from None

    async def _call(self, function: Callable[..., T], *args: Any) -> T:
        if self._closing:
            raise TestbedError(f"run {self.run_id} is being ended")
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *args)

    # ---- containers ------------------------------------------------------------------------------------------------

    async def start(
        self,
        name: str,
        command: Sequence[str],
        env: Mapping[str, str] | None = None,
        mounts: Sequence[Mount] = (),
        limits: Limits | None = None,
        keys: Path | None = None,
        workdir: Path | None = None,
        devices: Sequence[Path] = (),
    ) -> Started:
        """Start a node's container on both networks; one of that name that is there is removed first.

        Args:
            command: after the image's entry point, where it has one.
            env: variables beside the image's own.
            mounts: `image.mounts(...)`.
            limits: from the first instant; None = everything.
            keys: the run's folder of keys; the node sees its own.
            workdir: where it runs; must be mounted.
            devices: the host's device files that it may use.

        Raises:
            TestbedError: the engine refuses, by name and with its reason.
        """
        addresses = {network: self.address(name, network) for network in NETWORKS}
        shown = [*mounts, *(image.key_mounts(keys, name) if keys is not None else ())]
        settings: dict[str, Any] = {
            "image": self.image.reference,
            "command": list(command),
            "name": f"ammeter-{self.run_id}-{name}",
            "hostname": name,
            "environment": {**self.image.environment, **(env or {})},
            "mounts": shown,
            "labels": {**self._labels, ownership.NODE: name},
            "user": self._user,
            "read_only": True,  # but for the folders in memory: nothing is left on a disk
            "cap_drop": ["ALL"],
            "security_opt": ["no-new-privileges"],
            "log_config": _LOG,
            "sysctls": _sysctls(),
            "devices": [f"{path}:{path}:rw" for path in devices],
            **(resources(limits) if limits is not None else {}),
        }
        if self._user.startswith("0:"):
            settings["cap_add"] = ["DAC_OVERRIDE"]  # a user who is root reads everybody's files; so do its containers
        if workdir is not None:
            settings["working_dir"] = str(workdir)
        return await self._call(self._start, name, settings, addresses)

    def _start(self, name: str, settings: dict[str, Any], addresses: Mapping[str, str]) -> Started:
        management, data = (self._networks[network].network for network in NETWORKS)
        with told(f"{name}: its container does not start"):
            if name in self._containers:
                self._discard(self._containers.pop(name))
            endpoint = self.client.api.create_endpoint_config(ipv4_address=addresses[MANAGEMENT])
            network = str(management.name)
            container = self.client.containers.create(
                **settings, network=network, networking_config={network: endpoint}
            )
            try:
                with self._plugging:
                    data.connect(container, ipv4_address=addresses[DATA])
                    container.start()
                container.reload()
                pid = int(container.attrs["State"]["Pid"])
                with contextlib.suppress(TestbedError):  # one that ended at once has no counters
                    self._cgroups[name] = cgroup.of(pid)
            except BaseException:
                self._discard(container)
                raise
        self._containers[name] = container
        return Started(name, str(container.id), pid, dict(addresses))

    def _discard(self, container: Container) -> None:
        with contextlib.suppress(NotFound), self._plugging:
            container.remove(force=True, v=True)

    async def limit(self, name: str, wanted: Limits) -> None:
        """Put a node under limits while it runs, in place of those it had; `Limits()` lifts them.

        Raises:
            DeviceOutOfMemory, TestbedError: as `limits.apply`.
        """
        await self._call(apply, self._container(name), wanted)

    async def signal(self, name: str, signal: str) -> None:
        """Send a node's first process a signal, such as "STOP", "CONT" or "TERM".

        Raises:
            TestbedError: it does not run.
        """
        await self._call(self._signal, name, signal)

    def _signal(self, name: str, signal: str) -> None:
        with told(f"{name}: signal {signal} cannot be sent"), self._plugging:
            self._container(name).kill(signal=f"SIG{signal}")

    async def kill(self, name: str) -> None:
        """End a node at once (SIGKILL), frozen or not; its container stays, to be asked what became of it.

        Raises:
            TestbedError: the engine does not do it.
        """
        await self._call(self._kill, name)

    def _kill(self, name: str) -> None:
        try:
            self._signal(name, "KILL")
        except TestbedError:
            if self._state(name).running:
                raise

    async def disconnect(self, name: str) -> None:
        """Pull a node's cable out of the data network.

        Raises:
            TestbedError: it is out already.
        """
        await self._call(self._disconnect, name)

    def _disconnect(self, name: str) -> None:
        with told(f"{name}: its link cannot be cut"), self._plugging:
            self._networks[DATA].network.disconnect(self._container(name))

    async def reconnect(self, name: str) -> None:
        """Plug a node into the data network again, at its old address; the cable is new: shape it anew.

        Raises:
            TestbedError: it is in already.
        """
        await self._call(self._reconnect, name)

    def _reconnect(self, name: str) -> None:
        with told(f"{name}: its link cannot be mended"), self._plugging:
            self._networks[DATA].network.connect(self._container(name), ipv4_address=self.address(name, DATA))

    async def state(self, name: str) -> State:
        """Return what became of a node.

        Raises:
            TestbedError: its container is gone.
        """
        return await self._call(self._state, name)

    def _state(self, name: str) -> State:
        container = self._container(name)
        with told(f"{name}: its container cannot be looked at"):
            container.reload()
        said = container.attrs["State"]
        running = bool(said["Running"])
        return State(running, None if running else int(said["ExitCode"]), bool(said["OOMKilled"]))

    async def logs(self, name: str, tail: int = 50) -> str:
        """Return the last lines that a node wrote to its output and error streams.

        Raises:
            TestbedError: its container is gone.
        """
        return await self._call(self._logs, name, tail)

    def _logs(self, name: str, tail: int) -> str:
        with told(f"{name}: its output cannot be read"):
            said = self._container(name).logs(tail=tail)
        return said.decode("utf-8", errors="replace")

    # ---- counters and cables ---------------------------------------------------------------------------------------

    def group(self, name: str) -> cgroup.Cgroup:
        """Return a node's control group, for `cgroup.cpu_stat` and its like, which do not trouble the engine.

        Raises:
            TestbedError: it was not started, or its group cannot be seen from here.
        """
        try:
            return self._cgroups[name]
        except KeyError:
            raise TestbedError(f"{name}: its control group is not to be seen; did it end at once?") from None

    async def interface(self, name: str, network: str = DATA) -> Interface:
        """Return the two ends of a node's cable to a network; they change with `reconnect` and a new start.

        Raises:
            TestbedError: it does not run, is not on that network, or its cable does not end on this machine.
        """
        return await self._call(self._interface, name, network)

    async def veth(self, name: str, network: str = DATA) -> str:
        """Return the host's end of a node's cable; its egress is what the node receives.

        Raises:
            TestbedError: as `interface`.
        """
        return (await self.interface(name, network)).veth

    def _interface(self, name: str, network: str) -> Interface:
        container = self._container(name)
        with told(f"{name}: its container cannot be looked at"):
            container.reload()
            endpoint = container.attrs["NetworkSettings"]["Networks"].get(self._networks[network].network.name)
        if endpoint is None or not endpoint["MacAddress"]:
            raise TestbedError(f"{name} is not on the {network} network")
        return cables.find(container, endpoint["MacAddress"])

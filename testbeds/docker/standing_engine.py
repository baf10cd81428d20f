"""The engine's part of a standing testbed: containers and networks that outlive who made them."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Sequence
from typing import Any

from harness.errors import TestbedError
from testbeds.docker import cgroup, image, ownership
from testbeds.docker.access import connect, told, user
from testbeds.docker.engine import NETWORKS, Engine, Started, _Subnet


class StandingEngine(Engine):
    """The containers and networks of one standing testbed: made once by `open` and `start`, found again by `adopt`.

    Args:
        run_id: part of every name.
        nodes: in this order they get their addresses.
    """

    def __init__(self, name: str, run_id: str, image_name: str, nodes: Sequence[str]) -> None:
        super().__init__(run_id, image_name)
        self._standing = name
        self._labels[ownership.STANDING] = name
        self._nodes = nodes

    def address(self, name: str, network: str) -> str:
        if not self._numbers:
            for node in self._nodes:
                super().address(node, network)
        return super().address(name, network)

    async def adopt(self) -> None:
        """Find what was made.

        Raises:
            TestbedError: there is no engine, or a network is gone.
        """
        await self._call(self._adopt)

    def _adopt(self) -> None:
        self._client = client = connect()
        labelled: dict[str, Any] = {"label": f"{ownership.RUN}={self.run_id}"}
        with told("docker"):
            self._user = user(client.info())
            self._image = image.prepare(client, self._image_name)
            networks = {network.name: network for network in client.networks.list(filters=labelled)}
            containers = client.containers.list(all=True, filters=labelled, ignore_removed=True)
        for name in NETWORKS:
            network = networks.get(f"ammeter-{self.run_id}-{name}")
            if network is None:
                raise TestbedError(
                    f"the {name} network of the standing testbed {self._standing} is gone; ammeter testbed down "
                    f"{self._standing}; ammeter testbed up ..."
                )
            pool = network.attrs["IPAM"]["Config"][0]
            self._networks[name] = _Subnet(network, ipaddress.IPv4Network(pool["Subnet"]), pool["Gateway"])
        for container in containers:
            self._containers[container.labels[ownership.NODE]] = container

    def running(self, name: str) -> Started | None:
        """Return a node's container if it runs, as it was when it was found or started."""
        container = self._containers.get(name)
        if container is None or not container.attrs["State"]["Running"]:
            return None
        pid = int(container.attrs["State"]["Pid"])
        try:
            self._cgroups[name] = cgroup.of(pid)
        except TestbedError:
            return None  # it has ended meanwhile
        addresses = {network: self.address(name, network) for network in NETWORKS}
        return Started(name, str(container.id), pid, addresses)

    async def leave(self) -> None:
        """Be done with it; everything stays."""
        self._closing = True
        await asyncio.to_thread(self._threads.shutdown, wait=True, cancel_futures=True)
        if self._client is not None:
            self._client.close()
            self._client = None

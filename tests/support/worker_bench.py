"""One node's worker without a controller: its driver, processor and network in this process, for tests of each.

Several of them in one event loop are a small run over loopback TCP.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np

from harness import record
from harness.cost.work import Work
from harness.node import Node
from harness.topology import Topology
from harness.worker.clock import RunClock
from harness.worker.driver import WallDriver
from harness.worker.network import Network, Peer
from harness.worker.processor import Processor
from harness.worker.rows import ARRIVAL, ARRIVALS, Rows

WITHIN_S = 60.0
"""No test waits longer: a hang fails instead."""
SEED = 7


def run(scenario: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Run a scenario; what hangs fails, and so does what asyncio complains of."""
    complaints: list[dict[str, Any]] = []

    async def limited() -> Any:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        return await asyncio.wait_for(scenario(), WITHIN_S)

    found = asyncio.run(limited())
    assert complaints == []
    return found


async def until(true: Callable[[], Any]) -> None:
    """Wait for what happens elsewhere."""
    while not true():
        await asyncio.sleep(0.002)


class Desk:
    """One node's worker, and all that its parts told it.

    Attributes:
        unreachable, strangers, failures: what the network told of.
    """

    def __init__(
        self,
        name: str = "server",
        nodes: Topology | None = None,
        keys: Path | None = None,
        incarnation: int = 0,
        backlog_bytes: int = 2**20,
        stall_s: float = 30.0,
        dilation: float = 1.0,
        pace: Callable[[Work, int], float] | None = None,
    ) -> None:
        nodes = nodes or Topology.numbered(2)
        number = nodes.names.index(name)
        self.unreachable: list[tuple[str, str]] = []
        self.strangers: list[str] = []
        self.name = name
        self.incarnation = incarnation
        self.clock = RunClock(dilation)
        self.rows = Rows()
        self.driver = WallDriver(name, number, len(nodes.names), self.clock, self.rows)
        self.network = self.driver.network = Network(
            name,
            number,
            len(nodes.names),
            incarnation,
            self.clock,
            self.rows,
            self.driver,
            keys=keys,
            framing="tcp" if keys is None else "tls",
            backlog_bytes=backlog_bytes,
            stall_s=stall_s,
            deliver=self.driver.deliver,
            unreachable=lambda *what: self.unreachable.append(what),
            failed=self.driver.fail,
            stranger=self.strangers.append,
        )
        self.processor = self.driver.processor = Processor(name, SEED, self.clock, self.rows, self.driver, pace)
        self.node = self.driver.node = Node(name, self.driver, nodes, SEED)
        self.node.incarnation = incarnation
        self.port = 0

    async def play(self, role: Callable[[Node], Any]) -> None:
        """Run a role to its end; raises what it raises."""
        await self.driver.play(role)
        if self.driver.failed.done():
            raise self.driver.failed.result()[0]

    def take(self) -> dict[str, list[dict[str, Any]]]:
        """Return the rows since the last call by table, names instead of numbers."""
        _, tables = self.rows.take()
        names = self.rows.recorder.names
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in (*record.TABLES, ARRIVALS)}
        for table, data in tables.items():
            kind = ARRIVAL if table == ARRIVALS else record.dtype(table)
            for row in np.frombuffer(data, dtype=kind):
                values = dict(zip(kind.names or (), row.tolist(), strict=True))
                values |= {column: names[values[column]] for column in record.NAMED & values.keys()}
                found[table].append(values)
        return found

    async def close(self) -> None:
        await self.driver.stop(5.0)
        await self.network.close()
        assert await asyncio.to_thread(self.processor.close, WITHIN_S)


@contextlib.asynccontextmanager
async def desk(**options: Any) -> AsyncIterator[Desk]:
    """One worker on its own."""
    made = Desk(**options)
    try:
        yield made
    finally:
        await made.close()


@contextlib.asynccontextmanager
async def desks(*names: str, options: dict[str, dict[str, Any]] | None = None, **common: Any) -> AsyncIterator[Any]:
    """Several workers that know each other, in the order of their names."""
    nodes = common.pop("nodes", None) or Topology(tuple(name for name in names if name.startswith("device")))
    made = [Desk(name, nodes, **{**common, **(options or {}).get(name, {})}) for name in names]
    try:
        for one in made:
            one.clock.origin_s = made[0].clock.origin_s
            one.port = await one.network.open("127.0.0.1")
        for one in made:
            introduce(one, *made)
        yield made
    finally:
        for one in made:
            await one.close()


def introduce(one: Desk, *others: Desk) -> None:
    """Tell a worker where the others are."""
    for other in others:
        if other is not one:
            one.network.peers[other.name] = Peer("127.0.0.1", other.port, other.incarnation)

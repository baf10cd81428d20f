"""A small bench: coroutines on the virtual driver with hand-set prices, links and latencies.

Prices: `burn(n)` runs n operators, and the bench's profiles price operators alone, so it costs n x `tick_s`.
Bytes: `letter(n)` posts as a message of n bytes in all, and the bench frames nothing, so n bytes cross the link.
With powers of two every time is exact, and tests may compare with ==.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from math import inf
from typing import Any

import torch

from harness.message import HEADER_BYTES
from harness.node import Node
from harness.record import (
    MARK_KINDS,
    NAMED,
    STATUSES,
    TIERS,
    WAIT_KINDS,
    Recorder,
)
from harness.testbed import Outcome
from harness.topology import SERVER, Topology
from profiles.device import DeviceProfile
from testbeds.virtual.driver import VirtualDriver
from testbeds.virtual.fair import Link
from testbeds.virtual.settings import Machine, Options

Role = Callable[[Node], Awaitable[Any]]

_ONE = torch.zeros(1)


def burn(ticks: int) -> None:
    """Run `ticks` operators."""
    for _ in range(ticks):
        _ONE.add(1)


def letter(size_bytes: int) -> torch.Tensor:
    """Return a payload whose message has `size_bytes` bytes, header included."""
    return torch.zeros(size_bytes - HEADER_BYTES, dtype=torch.uint8)


def profile(tick_s: float = 1.0, memory_bytes: int = 2**40) -> DeviceProfile:
    """Return a profile on which an operator costs `tick_s` and nothing else costs anything."""
    return DeviceProfile(
        id="bench",
        title="bench",
        processor="cpu",
        cores=1,
        memory_bytes=memory_bytes,
        conv_flops_per_s=inf,
        matmul_flops_per_s=inf,
        depthwise_flops_per_s=inf,
        depthwise_backward_flops_per_s=inf,
        memory_bytes_per_s=inf,
        operator_s=tick_s,
    )


def machine(
    name: str = "machine",
    tick_s: float = 1.0,
    up: float = inf,
    down: float = inf,
    latency_s: float = 0.0,
    jitter_s: float = 0.0,
    memory_bytes: int = 2**40,
    degree: int = 1,
) -> Machine:
    """Return what a node runs on; `up` and `down` in bytes per second."""
    return Machine(
        profile(tick_s, memory_bytes),
        Link(f"{name}.up", up, degree),
        Link(f"{name}.down", down, degree),
        latency_s,
        jitter_s,
    )


class Bench:
    """One run on the virtual driver.

    Args:
        roles: coroutine function by node name; "device-..." and "edge-..." by their names, and "server".
        machines: keyword arguments of `machine` by node name (or a Machine); default: tick 1 s, no limit, no latency.
        edge_of: which edge serves which device.
        faults: (time, "crash" or "rejoin", node).

    Attributes:
        driver, nodes, recorder: of the run.  outcome: after `run()`.
    """

    def __init__(
        self,
        roles: Mapping[str, Role],
        machines: Mapping[str, Any] | None = None,
        edge_of: Mapping[str, str] | None = None,
        faults: Sequence[tuple[float, str, str]] = (),
        seed: int = 0,
        ends: str = "server",
        recorder: Recorder | None = None,
        **options: Any,
    ) -> None:
        devices = tuple(name for name in roles if name.startswith("device"))
        edges = tuple(name for name in roles if name.startswith("edge"))
        topology = Topology(devices, edges, edge_of or {})
        given = dict(machines or {})
        found = {}
        for name in (*devices, *edges, SERVER):
            own = given.get(name, {})
            degree = len(devices) + len(edges) if name == SERVER else 1
            found[name] = own if isinstance(own, Machine) else machine(name, **{"degree": degree, **own})
        settings: dict[str, Any] = {"framing": "none", "timing": True, "seed": seed, **options}
        self.recorder = recorder or Recorder()
        self.driver = VirtualDriver(topology, found, self.recorder, Options(**settings))
        self.nodes = {
            name: self.driver.add(name, _role(roles.get(name, nothing)), seed) for name in (*devices, *edges, SERVER)
        }
        for time, what, name in faults:
            self.driver.kernel.at(time, getattr(self.driver, what), name)
        self._ends = ends
        self.outcome = Outcome()

    def run(self) -> Bench:
        """Run to the end; raises what the run raises."""
        self.outcome = self.driver.run(self._ends)
        return self

    def rows(self, table: str, **where: Any) -> list[dict[str, Any]]:
        """Return the decoded rows of a table whose columns have these values."""
        array = self.recorder.arrays()[table]
        decoded = []
        for values in array.tolist():
            row = dict(zip(array.dtype.names, values, strict=True))
            for column in NAMED & row.keys():
                row[column] = self.recorder.names[row[column]]
            if table == "wait":
                row["kind"] = WAIT_KINDS[row["kind"]]
            elif table == "compute":
                row["tier"] = TIERS[row["tier"]]
            elif table == "mark":
                row["kind"] = MARK_KINDS[row["kind"]]
            elif table == "transfer":
                row["status"] = STATUSES[row["status"]]
            if all(row[column] == value for column, value in where.items()):
                decoded.append(row)
        return decoded

    def intervals(self, table: str, **where: Any) -> list[tuple[float, float]]:
        """Return (start_s, end_s) of the computes or waits of these values, in the order of their starts."""
        return sorted((row["start_s"], row["end_s"]) for row in self.rows(table, **where))

    def arrivals(self, **where: Any) -> list[float]:
        """Return when the messages of these values arrived, in posting order."""
        return [row["arrived_s"] for row in sorted(self.rows("transfer", **where), key=lambda row: row["serial"])]

    @property
    def balanced(self) -> bool:
        """Whether sent = consumed + unread + undelivered + in flight (rule 2), and every message has one row."""
        end = self.outcome
        serials = sorted(row["serial"] for row in self.rows("transfer"))
        counted = end.consumed + end.unread + end.undelivered + end.in_flight
        return end.sent == counted and serials == list(range(end.sent))


def run(roles: Mapping[str, Role], machines: Mapping[str, Any] | None = None, **options: Any) -> Bench:
    """Build a Bench and run it."""
    return Bench(roles, machines, **options).run()


def _role(awaitable: Role) -> Role:
    """Let a role be anything that gives an awaitable, e.g. `lambda node: node.sleep(8)`."""

    async def role(node: Node) -> None:
        await awaitable(node)

    return role


async def nothing(node: Node) -> None:
    """A role that returns at once."""

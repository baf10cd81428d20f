"""The star: devices with unequal uplinks and one shared server NIC; time per start or end of a flow."""

from __future__ import annotations

import gc
import random
import statistics
import time

from testbeds.virtual.fair import Flow, Link
from testbeds.virtual.kernel import Kernel
from testbeds.virtual.network import Network

DEVICES = 500
CONCURRENT = (125, 250, 500, 1000, 2000, 4000)
EVENTS = 20_000


def _star(concurrent: int, general: bool) -> float:
    """Return seconds per start or end, with so many flows at any time; each that ends makes room for another."""
    rng = random.Random(7)
    kernel = Kernel()
    network = Network(kernel)
    hub = Link("server.down", 1.25e8, degree=DEVICES)
    leaves = [Link(f"device-{index}.up", rng.uniform(1e5, 1e6)) for index in range(DEVICES)]
    if general:  # a flow over three links ends the star pattern
        network.start(Flow((leaves[0], hub, Link("more", 1e9)), 1.0, lambda _: None))
    events = 0
    limit = EVENTS if not general else max(40, 400_000 // concurrent)

    def start(_: object = None) -> None:
        nonlocal events
        events += 1
        network.start(Flow((leaves[rng.randrange(DEVICES)], hub), rng.uniform(1e4, 1e6), done))

    def done(_: Flow) -> None:
        nonlocal events
        events += 1
        if events < limit + concurrent:
            start()
        else:
            kernel.stop()

    for _ in range(concurrent):
        start()
    events = 0
    gc.collect()
    began = time.perf_counter()
    kernel.run()
    return (time.perf_counter() - began) / events


def report() -> str:
    """Measure and return the section."""
    lines = [
        "## The star",
        "",
        f"{DEVICES} devices with unequal uplinks and one shared server NIC (tests/bench/star.py): microseconds per",
        "start or end of a flow against the number of flows at any time; median of 3. The general solver, for",
        "comparison, fills progressively over all flows.",
        "",
        "| flows | us per start or end | general solver, us |",
        "|---|---|---|",
    ]
    for concurrent in CONCURRENT:
        fast = statistics.median(_star(concurrent, general=False) for _ in range(3))
        slow = _star(concurrent, general=True)
        lines.append(f"| {concurrent:,} | {fast * 1e6:.1f} | {slow * 1e6:,.0f} |")
    return "\n".join([*lines, ""])

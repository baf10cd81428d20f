"""The kernel's shaping against the rates asked for, with real TCP connections through a veth.

A transfer's rate is the wire model's bytes over the time from the first byte's start to the last one's arrival, as on
the virtual clock. `python -m tests.bench.shaping` measures this part alone; it needs root and iproute2.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from netns import Cable, Connection, cable, connection, payload, rate_bps, receive, send, transfer

from harness.errors import TestbedError
from harness.transport.wire import wire_bytes
from testbeds.docker import shaping_tc
from testbeds.docker.counters import ip_bytes, read
from testbeds.docker.shaping import Direction, Shape, Shaper

RATES_MBIT = (5, 20, 50, 100)
SECONDS = (1, 5)
MOST_ERROR, MOST_COUNTED = 0.03, 0.01
REPEATS, ROUND_TRIPS, LOADED_ROUND_TRIPS, SMALL_BYTES, CONTAINERS = 3, 100, 20, 64, 16
DIRECTIONS: tuple[Direction, ...] = ("up", "down")
_ROWS = {"up": DIRECTIONS[:1], "down": DIRECTIONS[1:], "both at once": DIRECTIONS}


@contextlib.contextmanager
def _shaped(bps: float) -> Iterator[tuple[Cable, Shaper]]:
    with cable() as made:
        shaper = Shaper(made.pid, made.inside, made.outside)
        shaper.apply(Shape(bps), Shape(bps))
        yield made, shaper


def _errors(made: Cable, bps: float, seconds: float, directions: tuple[Direction, ...]) -> list[float]:
    """Transfer for so long on a new connection per direction; return the rates' relative errors."""
    size = payload(bps, seconds)

    def error(direction: str) -> float:
        with connection(made) as flow:
            return rate_bps(size, transfer(flow, direction, size)) / bps - 1

    with ThreadPoolExecutor(len(directions)) as threads:
        return list(threads.map(error, directions))


def _round_trip(flow: Connection, times: int) -> float:
    """Return the median of small requests and their answers, seconds."""
    taken = []
    with ThreadPoolExecutor(1) as thread:

        def answer() -> None:
            for _ in range(times):
                receive(flow.outside, SMALL_BYTES)
                send(flow.outside, SMALL_BYTES)

        done = thread.submit(answer)
        for _ in range(times):
            began = time.perf_counter()
            send(flow.inside, SMALL_BYTES)
            receive(flow.inside, SMALL_BYTES)
            taken.append(time.perf_counter() - began)
            time.sleep(0.002)  # so that the link is idle again
        done.result()
    return statistics.median(taken)


def _beside(made: Cable, bps: float) -> float:
    """As `_round_trip`, beside transfers out of the container on another connection."""
    over = threading.Event()
    with connection(made) as bulk, connection(made) as flow, ThreadPoolExecutor(1) as thread:

        def load() -> None:
            while not over.is_set():
                transfer(bulk, "up", payload(bps, 0.5))

        done = thread.submit(load)
        time.sleep(0.5)
        taken = _round_trip(flow, LOADED_ROUND_TRIPS)
        over.set()
        done.result()
    return taken


def _counted(made: Cable, direction: Direction) -> tuple[float, float]:
    """Return by how much the interface and the data class differ from the wire model, relative."""
    shaper = Shaper(made.pid, made.inside, made.outside)
    carried = shaper.carried(direction)
    before = read(made.inside, made.pid)
    size = 5 * 10**6
    with connection(made) as flow:
        transfer(flow, direction, size)
    received, sent = ip_bytes(read(made.inside, made.pid) - before)
    after = shaper.carried(direction)
    assert carried is not None
    assert after is not None
    model = wire_bytes(size, "tcp")
    return (sent if direction == "up" else received) / model - 1, (after.ip_bytes - carried.ip_bytes) / model - 1


def _fleet() -> dict[str, float]:
    """Shape many containers, one after the other; return seconds."""
    taken = {}
    with contextlib.ExitStack() as stack:
        cables = [stack.enter_context(cable()) for _ in range(CONTAINERS)]
        began = time.perf_counter()
        shapers = [Shaper(made.pid, made.inside, made.outside) for made in cables]
        for shaper in shapers:
            shaper.apply(Shape(5e6), Shape(20e6))
        taken["shape"] = time.perf_counter() - began
        began = time.perf_counter()
        for shaper in shapers:
            shaper.set_rate("up", 6e6)
        taken["change a rate"] = time.perf_counter() - began
        began = time.perf_counter()
        for shaper in shapers:
            shaper.clear()
        taken["clear"] = time.perf_counter() - began
    return taken


def _verdict(met: bool) -> str:
    return "met" if met else "missed"


def report() -> str:
    """Measure and return the section."""
    try:
        shaping_tc.kinds()
    except TestbedError as error:
        return f"## Shaping\n\nNot measured: {error}.\n"
    before = os.getloadavg()[0]
    lines = [
        f"| Mbit/s | direction | {' | '.join(f'{seconds} s: median | largest' for seconds in SECONDS)} | target |",
        "|---" * (3 + 2 * len(SECONDS)) + "|",
    ]
    trips = ["| Mbit/s | idle, us | beside a transfer, us | serialised twice, us |", "|---|---|---|---|"]
    for rate in RATES_MBIT:
        bps = rate * 1e6
        with _shaped(bps) as (made, _):
            for name, directions in _ROWS.items():
                cells, worst = [], 0.0
                for seconds in SECONDS:
                    errors = [e for _ in range(REPEATS) for e in _errors(made, bps, seconds, directions)]
                    largest = max(errors, key=abs)
                    worst = max(worst, abs(largest))
                    cells += [f"{statistics.median(errors):+.2%}", f"{largest:+.2%}"]
                lines.append(
                    f"| {rate} | {name} | {' | '.join(cells)} | {MOST_ERROR:.0%} ({_verdict(worst <= MOST_ERROR)}) |"
                )
            with connection(made) as flow:
                idle = _round_trip(flow, ROUND_TRIPS)
            serialised = 2 * wire_bytes(SMALL_BYTES, "tcp") * 8 / bps
            trips.append(f"| {rate} | {idle * 1e6:.0f} | {_beside(made, bps) * 1e6:.0f} | {serialised * 1e6:.0f} |")
    with _shaped(100e6) as (made, _):
        counted = {direction: _counted(made, direction) for direction in DIRECTIONS}
    fleet = _fleet()
    differences = ", ".join(f"{name} {nic:+.3%} and {data:+.3%}" for name, (nic, data) in counted.items())
    largest = max(abs(each) for pair in counted.values() for each in pair)
    return "\n".join(
        [
            "## Shaping",
            "",
            "Error of a transfer's rate against the rate asked for, one TCP connection per direction through a veth "
            f"(tests/bench/shaping.py), congestion control cubic; {REPEATS} transfers each, on a new connection; "
            f"load average {before:.1f} before and {os.getloadavg()[0]:.1f} after.",
            "",
            *lines,
            "",
            f"Round trips of {SMALL_BYTES} bytes, medians. A link that was idle lets them pass at once "
            "(one packet of credit).",
            "",
            *trips,
            "",
            "Bytes of a transfer of 5 MB on the interface (Ethernet headers off) and in the data class, against the "
            f"wire model: {differences} (target: {MOST_COUNTED:.0%}, {_verdict(largest <= MOST_COUNTED)}).",
            "",
            f"{CONTAINERS} containers, one after the other: "
            + ", ".join(f"{name} {taken:.2f} s" for name, taken in fleet.items())
            + f" (target: shaped in under 2 s, {_verdict(fleet['shape'] < 2)}).",
            "",
        ]
    )


if __name__ == "__main__":
    print(report())

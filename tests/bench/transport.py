"""The transport on loopback beside grpcio: throughput of large tensors, round trips of small ones.

Two processes; each figure is the sender's: from the post to the acknowledgement of the last byte. grpcio's unary call
carries ready-made bytes and returns nothing, so it is spared making a tensor of them; its round trip is one call that
returns what it was given. Our processes keep freed memory, as a worker does (harness/allocator.py): in fresh memory
the kernel's page faults cost more than the copy. grpcio is measured as it comes, which is what the targets are held
against, and with freed memory kept, too. `python -m tests.bench.transport` measures this part alone.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from harness.allocator import keep_freed_memory
from harness.message import HEADER_BYTES, Message, tree_bytes
from harness.transport import tls
from harness.transport.assembler import Arrival
from harness.transport.endpoint import connect, listen

SIZES_MB = (10, 100)
REPEATS, WARM_UP, MESSAGES, ROUND_TRIPS, PAYLOAD_BYTES = 5, 5, 5, 500, 64
TARGETS = {"plain": 5.0, "mutual TLS": 2.0}
MOST_OF_ROUND_TRIP = 0.5
_WITHIN_S = 120.0
_METHODS = {"take": "/bench/take", "echo": "/bench/echo"}
_BASE, _KEPT = "grpcio", "grpcio, freed memory kept"
_WAYS = ("plain", "mutual TLS", _BASE, _KEPT)


@dataclass(frozen=True)
class Measured:
    """Medians, in seconds.

    Attributes:
        large: per message, by its size in MB.
        acknowledged_s: from the post of a small message to its acknowledgement (grpcio: the call).
        answered_s: from the post of a small message to the arrival of its answer (grpcio: the call).
    """

    large: dict[int, float]
    acknowledged_s: float
    answered_s: float


def _message(src: str, dst: str, payload: Any, serial: int, **meta: Any) -> Message:
    message = Message(src, dst, "bench", payload, meta, "data", HEADER_BYTES + tree_bytes(payload))
    message.serial = serial
    return message


def _context(keys: Path | None, name: str, server: bool) -> Any:
    if keys is None:
        return None
    return tls.server_context(keys, name) if server else tls.client_context(keys, name)


# ---- the other process ------------------------------------------------------------------------------------------


async def _receiver(pipe: Connection, keys: Path | None) -> None:
    """Swallow large messages, answer small ones on a channel of its own, until told to stop."""
    serial = 0
    back: Any = None

    def deliver(arrival: Arrival) -> bool:
        nonlocal serial
        if arrival.message.meta:
            serial += 1
            back.post(_message("server", "device-0", arrival.message.payload, serial))
        return True

    listener = await listen("server", deliver, tls=_context(keys, "server", True), refused=print)
    pipe.send(listener.port)
    port = await asyncio.to_thread(pipe.recv)
    back = await connect("server", "device-0", "127.0.0.1", port, tls=_context(keys, "server", False))
    pipe.send("connected")
    await asyncio.to_thread(pipe.recv)
    await back.close()
    await listener.close()


def _prepare(way: str) -> None:
    """What a process of this way does first."""
    if way != _BASE:
        keep_freed_memory()
    torch.set_num_threads(1)


def _serve_ours(pipe: Connection, way: str, keys: Path | None) -> None:
    _prepare(way)
    asyncio.run(_receiver(pipe, keys))


def _serve_grpc(pipe: Connection, way: str, _: Path | None) -> None:
    import grpc

    _prepare(way)
    answers = {_METHODS["take"]: lambda *_: b"", _METHODS["echo"]: lambda request, _: request}

    class Handler(grpc.GenericRpcHandler):  # type: ignore[misc]
        def service(self, details: Any) -> Any:
            return grpc.unary_unary_rpc_method_handler(answers[details.method])

    server = grpc.server(ThreadPoolExecutor(4), options=_GRPC_OPTIONS)
    server.add_generic_rpc_handlers((Handler(),))
    pipe.send(server.add_insecure_port("127.0.0.1:0"))
    server.start()
    pipe.recv()
    server.stop(None).wait()


_GRPC_OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


# ---- this process -----------------------------------------------------------------------------------------------


async def _ours(pipe: Connection, keys: Path | None) -> Measured:
    """Measure from here."""
    answered: asyncio.Event = asyncio.Event()

    def deliver(_: Arrival) -> bool:
        answered.set()
        return True

    listener = await listen("device-0", deliver, tls=_context(keys, "device-0", True), refused=print)
    port = await asyncio.to_thread(pipe.recv)
    channel = await connect("device-0", "server", "127.0.0.1", port, tls=_context(keys, "device-0", False))
    pipe.send(listener.port)
    await asyncio.to_thread(pipe.recv)
    serial = 0
    large: dict[int, float] = {}
    for size in SIZES_MB:
        tensor = torch.zeros(size * 10**6, dtype=torch.uint8) + 1
        taken = []
        for _ in range(WARM_UP + MESSAGES):
            serial += 1
            transfer = await channel.post(_message("device-0", "server", tensor, serial)).settled
            assert transfer.error is None, transfer.error
            taken.append(transfer.acknowledged_s - transfer.enqueued_s)
        large[size] = statistics.median(taken[WARM_UP:])
    small = torch.zeros(PAYLOAD_BYTES, dtype=torch.uint8)
    alone = []
    for _ in range(ROUND_TRIPS):
        serial += 1
        began = time.perf_counter()
        await channel.post(_message("device-0", "server", small, serial)).settled
        alone.append(time.perf_counter() - began)
    taken = []
    for _ in range(ROUND_TRIPS):
        serial += 1
        began = time.perf_counter()
        channel.post(_message("device-0", "server", small, serial, answer=True))
        await answered.wait()
        taken.append(time.perf_counter() - began)
        answered.clear()
    pipe.send("stop")
    await channel.close()
    await listener.close()
    return Measured(large, statistics.median(alone), statistics.median(taken))


def _grpc(pipe: Connection) -> Measured:
    """As `_ours`."""
    import grpc

    with grpc.insecure_channel(f"127.0.0.1:{pipe.recv()}", options=_GRPC_OPTIONS) as channel:
        take, echo = (channel.unary_unary(_METHODS[name]) for name in ("take", "echo"))
        echo(b"warm")

        def timed(call: Any, data: bytes, times: int) -> float:
            taken = []
            for _ in range(WARM_UP + times):
                began = time.perf_counter()
                call(data)
                taken.append(time.perf_counter() - began)
            return statistics.median(taken[WARM_UP:])

        large = {size: timed(take, bytes(size * 10**6), MESSAGES) for size in SIZES_MB}
        small = timed(echo, bytes(PAYLOAD_BYTES), ROUND_TRIPS)
    pipe.send("stop")
    return Measured(large, small, small)


def _send(pipe: Connection, results: Connection, way: str, keys: Path | None) -> None:
    _prepare(way)
    results.send(_grpc(pipe) if way.startswith(_BASE) else asyncio.run(_ours(pipe, keys)))


def _once(way: str, keys: Path) -> Measured:
    """Measure one way, with two processes of its own."""
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    results, result = context.Pipe()
    given = keys if way == "mutual TLS" else None
    serve = _serve_grpc if way.startswith(_BASE) else _serve_ours
    processes = [
        context.Process(target=serve, args=(theirs, way, given), daemon=True),
        context.Process(target=_send, args=(mine, result, way, given), daemon=True),
    ]
    for process in processes:
        process.start()
    try:
        if not results.poll(_WITHIN_S):
            raise SystemExit(f"transport benchmark: {way!r} has not answered within {_WITHIN_S:g} s")
        measured: Measured = results.recv()
        return measured
    finally:
        for process in processes:
            process.join(5)
            process.kill()
            process.join()


def _verdict(met: bool) -> str:
    return "met" if met else "missed"


def report() -> str:
    """Measure in turn and return the section."""
    with tempfile.TemporaryDirectory() as folder:
        keys = Path(folder) / "keys"
        tls.make(keys, ["server", "device-0"])
        before = os.getloadavg()[0]
        runs = [{way: _once(way, keys) for way in _WAYS} for _ in range(REPEATS)]
        after = os.getloadavg()[0]
    lines = [
        "## Transport",
        "",
        f"One sender, one receiver, two processes on loopback (tests/bench/transport.py); medians of {REPEATS} runs in "
        f"turn, each after {WARM_UP} messages to warm up; "
        f"load average {before:.1f} before and {after:.1f} after. GB/s from the post to the acknowledgement of "
        "the last byte. grpcio: unary calls with ready-made bytes, without TLS; as it comes, and with freed memory "
        "kept as our processes do.",
        "",
        "| way | " + " | ".join(f"{size} MB, GB/s | times grpcio" for size in SIZES_MB) + " | target |",
        "|---" * (2 + 2 * len(SIZES_MB)) + "|",
    ]
    for way in _WAYS:
        cells, ratios = [], []
        for size in SIZES_MB:
            speed = statistics.median(size / 1e3 / run[way].large[size] for run in runs)
            ratios.append(statistics.median(run[_BASE].large[size] / run[way].large[size] for run in runs))
            cells += [f"{speed:.2f}", f"{ratios[-1]:.1f}"]
        target = TARGETS.get(way)
        cells.append("" if target is None else f"{target:g} ({_verdict(min(ratios) >= target)})")
        lines.append(f"| {way} | " + " | ".join(cells) + " |")
    lines += [
        "",
        f"Round trips of {PAYLOAD_BYTES} bytes: a message and its acknowledgement; a message each way, both "
        "acknowledged, on two connections. grpcio: one call that returns what it was given.",
        "",
        "| way | acknowledged, us | of grpcio's | target | answered, us | of grpcio's |",
        "|---|---|---|---|---|---|",
    ]
    for way in _WAYS:
        cells = []
        for what in ("acknowledged_s", "answered_s"):
            trip = statistics.median(getattr(run[way], what) for run in runs)
            share = statistics.median(getattr(run[way], what) / getattr(run[_BASE], what) for run in runs)
            cells += [f"{trip * 1e6:.0f}", f"{share:.2f}"]
            if what == "acknowledged_s":
                met = _verdict(share <= MOST_OF_ROUND_TRIP)
                cells.append(f"{MOST_OF_ROUND_TRIP:g} ({met})" if way == "mutual TLS" else "")
        lines.append(f"| {way} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    print(report())

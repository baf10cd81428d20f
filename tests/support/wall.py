"""A small wall-clock testbed: one process per node, asyncio over loopback TCP, the Node unchanged.

It exists to hold the virtual testbed to its word (tests/testbeds/test_wall_contract.py), not to measure time: no
throttle, no clock alignment, no TLS. What it does take seriously is what decides messages, bytes and bits:

    wire       a length, a msgpack header, raw tensor buffers; nothing is unpickled; a frame that does not parse
               closes the connection
    channels   one connection per (peer, lane); one message in flight; its acknowledgement ends it
    compute    one executor thread, first come first served, torch on one thread, a torch stream per activity
    endings    the run is over when the role of `ends` has returned; posts to a finished node are refused

The parent talks to the node processes over pipes (the management network): it deals jobs, collects reports, and
kills whoever does not answer in time.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import struct
import time
import traceback
from collections.abc import Callable, Coroutine, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import sha256
from math import prod
from multiprocessing.connection import Connection, wait
from typing import Any

import msgpack
import torch

from harness import experiment, record
from harness.cost.key import key as price_key
from harness.errors import ProtocolError
from harness.experiment import RunSpec
from harness.message import HEADER_BYTES, Message, check_frozen, freeze, tensors, tree_bytes
from harness.node import Node, run_role
from harness.randomness import TorchStream
from harness.run import role, workload
from harness.topology import Topology

BACKLOG_BYTES = 64 * 2**20
_LENGTH = struct.Struct("!I")
_MOST_HEADER_BYTES = 2**20
_TENSOR, _TUPLE = 1, 2
_DTYPES = {str(dtype): dtype for dtype in (torch.float32, torch.float16, torch.float64, torch.int64, torch.uint8)}
_ARRIVED, _REFUSED = b"+", b"-"


# ---- what is compared -------------------------------------------------------------------------------------------


@dataclass
class Report:
    """What one node says of one run.

    Attributes:
        posted: (destination, tag, payload bytes, status) of each of its messages, in posting order.
        evaluated: (label, round, digest of the weights) of each of its evaluations.
        unread: messages that arrived and that nobody read.
    """

    posted: list[tuple[str, str, int, int]] = field(default_factory=list)
    evaluated: list[tuple[str, int, str]] = field(default_factory=list)
    unread: int = 0


def digest(states: Any) -> str:
    """Return a hash of the bits of all tensors of a tree, with their shapes and dtypes."""
    hashed = sha256()
    for tensor in tensors(states):
        hashed.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
        hashed.update(_raw(tensor))
    return hashed.hexdigest()


# ---- wire -------------------------------------------------------------------------------------------------------


def _raw(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def encode(message: Message) -> list[bytes]:
    """Return the frame of a message: length, header, raw tensors in the order of `tensors(payload)`."""
    shapes: list[tuple[str, list[int]]] = []
    buffers: list[bytes] = []

    def special(value: Any) -> msgpack.ExtType:
        if isinstance(value, tuple):
            return msgpack.ExtType(_TUPLE, pack(list(value)))
        if isinstance(value, torch.Tensor):
            shapes.append((str(value.dtype), list(value.shape)))
            buffers.append(_raw(value))
            return msgpack.ExtType(_TENSOR, _LENGTH.pack(len(buffers) - 1))
        raise ProtocolError(f"{message.src}: no frame for {type(value).__name__!r}")

    def pack(value: Any) -> bytes:
        packed: bytes = msgpack.packb(value, default=special, strict_types=True)
        return packed

    tree = pack(message.payload)
    header = pack(
        {
            "src": message.src,
            "tag": message.tag,
            "lane": message.lane,
            "meta": message.meta,
            "serial": message.serial,
            "incarnation": message.incarnation,
            "ends": message.ends_stream,
            "bytes": message.payload_bytes,
            "tree": tree,
            "tensors": [list(shape) for shape in shapes],
        }
    )
    return [_LENGTH.pack(len(header)), header, *buffers]


async def decode(reader: asyncio.StreamReader, dst: str) -> Message:
    """Read one frame.

    Raises:
        ValueError: it is no frame of this protocol.
    """
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    if length > _MOST_HEADER_BYTES:
        raise ValueError(f"a header of {length} bytes")
    header = msgpack.unpackb(await reader.readexactly(length), strict_map_key=True)
    found: list[torch.Tensor] = []
    for name, shape in header["tensors"]:
        dtype = _DTYPES[name]
        size = prod(shape) * dtype.itemsize
        raw = bytearray(await reader.readexactly(size))
        tensor = torch.empty(shape, dtype=dtype)
        if size:
            tensor.view(-1).view(torch.uint8).copy_(torch.frombuffer(raw, dtype=torch.uint8))
        found.append(tensor)

    def special(code: int, data: bytes) -> Any:
        if code == _TUPLE:
            return tuple(unpack(data))
        if code == _TENSOR:
            return found[_LENGTH.unpack(data)[0]]
        raise ValueError(f"an extension of code {code}")

    def unpack(data: bytes) -> Any:
        return msgpack.unpackb(data, ext_hook=special, strict_map_key=True)

    message = Message(
        header["src"],
        dst,
        header["tag"],
        unpack(header["tree"]),
        header["meta"],
        header["lane"],
        header["bytes"],
        header["incarnation"],
        header["ends"],
    )
    message.serial = header["serial"]
    return message


# ---- primitives -------------------------------------------------------------------------------------------------

_OWN = (record.RECV, record.GATHER, record.SLEEP, record.CHANNEL)
"""Waits that belong to one activity: when it is cancelled they are over, so that nothing is delivered to them."""


class WallFuture:
    """A value that will be there later, on asyncio."""

    def __init__(self, kind: int) -> None:
        self._inner: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._inner.add_done_callback(lambda done: done.cancelled() or done.exception())  # asked for: no complaint
        self._own = kind in _OWN

    def done(self) -> bool:
        return self._inner.done()

    def set_result(self, value: Any, cause: int = -1) -> None:  # noqa: ARG002 - the wall keeps no records
        if not self._inner.done():
            self._inner.set_result(value)

    def set_exception(self, error: BaseException) -> None:
        if not self._inner.done():
            self._inner.set_exception(error)

    def add_done_callback(self, call: Callable[[Any], None]) -> None:
        self._inner.add_done_callback(lambda _: call(self))

    def __await__(self) -> Generator[Any, None, Any]:
        return self._inner.__await__() if self._own else asyncio.shield(self._inner).__await__()


class WallActivity(WallFuture):
    """A task; awaiting it gives its value, or None if it was cancelled."""

    def __init__(self, task: asyncio.Task[Any], lane: int, failed: Callable[[BaseException], None]) -> None:
        super().__init__(record.JOIN)
        self.lane = lane
        self.task = task
        self.randomness: TorchStream | None = None  # once it has computed something
        self._failed = failed
        task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[Any]) -> None:
        if task.cancelled():
            self.set_result(None)
        elif (error := task.exception()) is not None:
            self._failed(error)
            self.set_exception(error)
        else:
            self.set_result(task.result())

    def cancel(self) -> None:
        self.task.cancel()


class WallDriver:
    """The primitives below one Node (see harness.driver), in its process."""

    timing = False

    def __init__(self, name: str, seed: int) -> None:
        self.report = Report()
        self.ports: dict[str, int] = {}
        self.over = False  # its role has returned
        self.failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.node: Node | None = None
        self._name = name
        self._begun = time.monotonic()
        self._lanes = 0
        self._tasks: set[asyncio.Task[Any]] = set()  # asyncio itself holds tasks weakly
        self._activities: dict[asyncio.Task[Any], WallActivity] = {}
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._outboxes: dict[tuple[str, str], asyncio.Queue[tuple[Message, WallFuture]]] = {}
        self._backlog: dict[tuple[str, str], int] = {}
        self._outstanding = 0
        self._flushing: list[WallFuture] = []
        self._seed = seed
        self._name = name

    # ---- clock, futures, activities

    def now(self) -> float:
        return time.monotonic() - self._begun

    def lane(self) -> int:
        task = asyncio.current_task()
        return self._activities[task].lane if task in self._activities else 0

    def future(self, kind: int, tag: str) -> WallFuture:  # noqa: ARG002
        return WallFuture(kind)

    def later(self, delay_s: float, call: Callable[[], None]) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(delay_s, call)

    def start(self, node: Node, coroutine: Coroutine[Any, Any, Any], daemon: bool) -> WallActivity:  # noqa: ARG002
        task = self._keep(coroutine)
        activity = self._activities[task] = WallActivity(task, self._lanes, self.fail)
        self._lanes += 1
        return activity

    def _keep(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def fail(self, error: BaseException) -> None:
        """An error in any activity ends the run, named."""
        if not self.failure.done():
            self.failure.set_exception(error)

    # ---- processor

    def execute(
        self,
        node: Node,  # noqa: ARG002
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        stand_in: Callable[[], Any] | None,  # noqa: ARG002
    ) -> WallFuture:
        future = WallFuture(record.COMPUTE)
        try:
            price_key(fn, args)  # refuse here what a virtual clock could not price
        except ProtocolError as error:
            future.set_exception(error)
            return future
        task = asyncio.current_task()
        assert task is not None
        job = asyncio.get_running_loop().run_in_executor(self._executor, self._run, self._activities[task], fn, args)

        def done(job: asyncio.Future[Any]) -> None:
            if job.cancelled():
                return
            error = job.exception()
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(job.result())

        job.add_done_callback(done)
        return future

    def _run(self, activity: WallActivity, fn: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        if activity.randomness is None:  # the same stream as on the virtual clock
            activity.randomness = TorchStream(self._seed, self._name, activity.lane)
        with activity.randomness:
            try:
                return fn(*args)
            except StopIteration as error:
                raise ProtocolError("StopIteration came out of compute; return a value instead") from error

    # ---- network

    def transmit(self, node: Node, message: Message) -> WallFuture:  # noqa: ARG002
        handle = WallFuture(record.SEND)
        channel = (message.dst, message.lane)
        message.serial = len(self.report.posted)
        self.report.posted.append((message.dst, message.tag, message.payload_bytes, record.IN_FLIGHT))
        freeze(message)
        if channel not in self._outboxes:
            self._outboxes[channel] = asyncio.Queue()
            self._backlog[channel] = 0
            self._keep(self._sender(channel, self._outboxes[channel]))
        self._backlog[channel] += message.payload_bytes
        if self._backlog[channel] > BACKLOG_BYTES + message.payload_bytes:
            raise ProtocolError(f"{message.src}: too much waits for {message.dst}; ask handle.done()")
        self._outstanding += 1
        self._outboxes[channel].put_nowait((message, handle))
        return handle

    async def _sender(self, channel: tuple[str, str], outbox: asyncio.Queue[tuple[Message, WallFuture]]) -> None:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.ports[channel[0]])
            with contextlib.closing(writer):
                while True:
                    message, handle = await outbox.get()
                    for part in encode(message):
                        writer.write(part)
                        await writer.drain()
                    answer = await reader.readexactly(1)
                    check_frozen(message)
                    self._backlog[channel] -= message.payload_bytes
                    self._settle(message, answer)
                    handle.set_result(None, message.serial)
        except Exception as error:
            self.fail(error)

    def _settle(self, message: Message, answer: bytes) -> None:
        status = record.DELIVERED if answer == _ARRIVED else record.UNDELIVERED
        self.report.posted[message.serial] = (message.dst, message.tag, message.payload_bytes, status)
        self._outstanding -= 1
        if self._outstanding == 0:
            waiting, self._flushing = self._flushing, []
            for future in waiting:
                future.set_result(None)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Read one peer's messages on one lane; what does not parse ends the run by name."""
        try:
            while True:
                message = await decode(reader, self._name)
                if HEADER_BYTES + tree_bytes(message.payload) != message.payload_bytes:
                    raise ValueError(f"{message} has other bytes than its sender counted")
                if self.over or self.node is None:
                    writer.write(_REFUSED)
                else:
                    self.node.mailbox.deliver(message)
                    writer.write(_ARRIVED)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        except Exception as error:
            self.fail(error)
        finally:
            writer.close()

    def flush(self, node: Node) -> WallFuture:  # noqa: ARG002
        future = WallFuture(record.SEND)
        if self._outstanding == 0:
            future.set_result(None)
        else:
            self._flushing.append(future)
        return future

    # ---- records

    def evaluate(self, node: Node, label: str, scorer: Any, states: tuple[Any, ...], round_index: int) -> None:  # noqa: ARG002
        self.report.evaluated.append((label, round_index, digest(states)))

    def mark(self, node: Node, kind: int, name: str, number: int) -> None:
        """The wall keeps no marks."""

    def barrier(self, node: Node, messages: list[Message], round_index: int) -> None:
        """The wall keeps no barriers."""

    def hold(self, node: Node, size_bytes: int) -> None:
        """The wall has all the memory there is."""

    def lost(self) -> set[str]:
        return set()

    # ---- the end

    async def close(self) -> None:
        """Cancel what still runs and wait for it; a computation in progress is waited for."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._executor.shutdown(wait=True, cancel_futures=True)


# ---- one node's process -----------------------------------------------------------------------------------------


async def _play(name: str, nodes: Topology, spec: RunSpec, run: Callable[[Node], Any], pipe: Connection) -> Report:
    """Run one role; returns when the parent says that the run is over."""
    loop = asyncio.get_running_loop()
    driver = WallDriver(name, spec.seed)
    server = await asyncio.start_server(driver.serve, "127.0.0.1", 0)
    pipe.send(("port", server.sockets[0].getsockname()[1]))
    driver.ports = pipe.recv()  # once all nodes listen
    node = driver.node = Node(name, driver, nodes, spec.seed)
    stopped: asyncio.Future[None] = loop.create_future()

    def stop() -> None:
        loop.remove_reader(pipe.fileno())
        stopped.set_result(None)

    loop.add_reader(pipe.fileno(), stop)
    role_task = driver.start(node, run_role(node, run), False).task
    try:
        await asyncio.wait([role_task, driver.failure, stopped], return_when=asyncio.FIRST_COMPLETED)
        if role_task.done() and not driver.failure.done():
            driver.over = True
            pipe.send(("over", None))
            await asyncio.wait([driver.failure, stopped], return_when=asyncio.FIRST_COMPLETED)
        if driver.failure.done():
            driver.failure.result()
    finally:
        driver.failure.done() or driver.failure.cancel()
        loop.remove_reader(pipe.fileno())
        await driver.close()
        server.close()
    driver.report.unread = node.mailbox.num_unread
    return driver.report


def _node_process(name: str, nodes: Topology, jobs: Sequence[dict[str, Any]], pipe: Connection) -> None:
    """Play `name` in every job, one after the other."""
    torch.set_num_threads(1)
    try:
        for job in jobs:
            (spec,) = experiment.runs(experiment.parse(job))
            run = role(spec, workload(spec, nodes, None), nodes.role(name))
            report = asyncio.run(_play(name, nodes, spec, run, pipe))
            pipe.recv()  # "stop"
            pipe.send(("report", report))
    except BaseException as error:
        with contextlib.suppress(OSError):
            pipe.send(("error", f"{name}: {type(error).__name__}: {error}\n{traceback.format_exc()}"))


# ---- the parent -------------------------------------------------------------------------------------------------


class WallError(Exception):
    """A node failed, or did not answer in time."""


START_S = 60.0
"""How long processes may take to import everything, on a busy machine."""


def play(jobs: Sequence[dict[str, Any]], nodes: Topology, ends: str, timeout_s: float) -> list[dict[str, Report]]:
    """Run every job (an experiment of one run, as plain data) on processes; return the nodes' reports of each.

    Args:
        ends: the run is over when the nodes of this role have returned.
        timeout_s: for each of them, once its nodes are there.

    Raises:
        WallError: names the nodes that failed or that had not answered in time. No process is left in any case.
    """
    context = multiprocessing.get_context("forkserver")  # a fresh interpreter that imports once, not once per node
    context.set_forkserver_preload(
        ["torch", "torch.optim", "sklearn.datasets", "msgpack", "harness.experiment", "harness.run"]
    )
    processes: dict[str, Any] = {}
    pipes: dict[str, Connection] = {}

    said: dict[str, list[tuple[str, Any]]] = {name: [] for name in nodes.names}
    at_work = dict.fromkeys(nodes.names, len(jobs))  # reports that are still to come

    def hear(names: set[str], wanted: str, within_s: float) -> dict[str, Any]:
        """Wait until each of these nodes has said `wanted`; what else it says is kept for later."""
        deadline = time.monotonic() + within_s
        heard: dict[str, Any] = {}
        while True:
            for name in names - heard.keys():
                for position, (kind, value) in enumerate(said[name]):
                    if kind == wanted:
                        heard[name] = value
                        del said[name][position]
                        break
            missing = sorted(names - heard.keys())
            if not missing:
                return heard
            ready = wait([pipes[name] for name in at_work], timeout=max(0.0, deadline - time.monotonic()))
            if not ready:
                raise WallError(f"{', '.join(missing)}: no {wanted!r} within {within_s:g} s")
            for name in [name for name in at_work if pipes[name] in ready]:
                try:
                    kind, value = pipes[name].recv()
                except EOFError:
                    raise WallError(f"{name} has died") from None
                if kind == "error":
                    raise WallError(value)
                said[name].append((kind, value))
                at_work[name] -= kind == "report"
                if not at_work[name]:  # it has given all its reports and may leave
                    del at_work[name]

    try:
        for name in nodes.names:
            pipes[name], theirs = context.Pipe()
            processes[name] = context.Process(target=_node_process, args=(name, nodes, list(jobs), theirs), daemon=True)
            processes[name].start()
            theirs.close()
        everybody = set(nodes.names)
        enders = {name for name in nodes.names if nodes.role(name) == ends}
        reports = []
        for _ in jobs:
            ports = hear(everybody, "port", START_S)
            for pipe in pipes.values():
                pipe.send(ports)
            hear(enders, "over", timeout_s)
            for pipe in pipes.values():
                pipe.send("stop")
            reports.append(hear(everybody, "report", timeout_s))
        return reports
    finally:
        for process in processes.values():
            process.kill()
        for process in processes.values():
            process.join()
            process.close()
        for pipe in pipes.values():
            pipe.close()

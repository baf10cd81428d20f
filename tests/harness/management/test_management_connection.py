"""Connections over loopback: order, backpressure, ends, strangers, and nothing left behind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
import ssl
import subprocess
import sys
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import psutil
import pytest
from cryptography import x509

from harness.errors import TransportError
from harness.management import connection as module
from harness.management.connection import UNREAD_BYTES, UNSENT_BYTES, Connection, ConnectionGone, Desk, dial, listen
from harness.management.note import MARK, Note, pack
from harness.transport import tls

WITHIN_S = 60.0
"""No test waits longer: a hang fails instead."""
ROOT = Path(__file__).parents[3]
MIB = 2**20


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "keys"
    tls.make(folder, ["controller", "device-0", "device-1"])
    return folder


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The keys of another run."""
    folder = tmp_path_factory.mktemp("other") / "keys"
    tls.make(folder, ["controller", "device-0"])
    return folder


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run it, and see that it leaves no task, no socket and no complaint behind."""
    complaints: list[dict[str, Any]] = []

    async def watched() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: complaints.append(context))
        await asyncio.wait_for(scenario(), WITHIN_S)
        await asyncio.sleep(0.01)  # what was cut is closed in the loop's next turns
        assert asyncio.all_tasks() == {asyncio.current_task()}
        sockets = [one for one in psutil.Process().net_connections("tcp") if one.status != "NONE"]
        assert sockets == before

    before = [one for one in psutil.Process().net_connections("tcp") if one.status != "NONE"]
    asyncio.run(watched())
    gc.collect()  # a future whose error nobody asked for complains now
    assert not complaints


async def until(true: Callable[[], Any]) -> None:
    while not true():
        await asyncio.sleep(0.005)


async def within(waiting: Awaitable[Any], seconds: float = WITHIN_S) -> Any:
    return await asyncio.wait_for(waiting, seconds)


class Meeting:
    """A desk of the controller, who came, and who was refused."""

    def __init__(self) -> None:
        self.desk: Desk
        self.welcomed: list[Connection] = []
        self.refused: list[tuple[str, TransportError]] = []

    async def open(self, keys: Path, **options: Any) -> None:
        self.desk = await listen(
            "controller",
            keys,
            "127.0.0.1",
            0,
            self.welcomed.append,
            lambda *what: self.refused.append(what),
            **options,
        )

    async def dial(self, keys: Path, name: str = "device-0", timeout_s: float = 30.0) -> tuple[Connection, Connection]:
        """Return both ends of a new connection, the dialled one first."""
        before = len(self.welcomed)
        ours = await dial(name, "controller", "127.0.0.1", self.desk.port, keys, timeout_s)
        await until(lambda: len(self.welcomed) > before)
        return ours, self.welcomed[-1]

    async def works(self, keys: Path) -> None:
        """Nobody has been disturbed."""
        ours, theirs = await self.dial(keys, "device-1")
        theirs.send("hello")
        assert (await ours.receive()).kind == "hello"
        await end(ours, theirs)


async def hear_all(connection: Connection, heard: list[Note]) -> None:
    """Receive until it is over, which raises."""
    while True:
        heard.append(await connection.receive())


async def end(*connections: Connection) -> None:
    for connection in connections:
        connection.close()
    await asyncio.gather(*(connection.wait_closed() for connection in connections))


@contextlib.asynccontextmanager
async def meeting(keys: Path, **options: Any) -> AsyncIterator[Meeting]:
    made = Meeting()
    await made.open(keys, **options)
    try:
        yield made
    finally:
        await made.desk.close()
        await end(*made.welcomed)


# ---- notes ------------------------------------------------------------------------------------------------------


def test_notes_go_both_ways_and_each_end_knows_the_other(keys: Path) -> None:
    async def scenario() -> None:
        async with meeting(keys) as place:
            worker, controller = await place.dial(keys)
            assert (worker.name, worker.peer) == ("device-0", "controller")
            assert (controller.name, controller.peer) == ("controller", "device-0")
            assert worker.address == f"127.0.0.1:{place.desk.port}"
            assert controller.address == "{}:{}".format(*worker._transport.get_extra_info("sockname"))
            fields = {"kind": 1, "self": None, "deep": [{"a": [1.5, b"x", "é", True]}], "big": 2**64 - 1}
            worker.send("job", **fields)
            assert await controller.receive() == Note("job", fields)
            controller.send("answer")
            assert await worker.receive() == Note("answer", {})
            for one in (worker, controller):
                wire = one._transport.get_extra_info("socket")
                assert wire.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                assert wire.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
                assert one._transport.get_extra_info("ssl_object").version() == "TLSv1.3"
            await end(worker, controller)

    run(scenario)


def test_a_note_says_what_its_values_were_when_it_was_sent(keys: Path) -> None:
    async def scenario() -> None:
        async with meeting(keys) as place:
            worker, controller = await place.dial(keys)
            values = [1]
            worker.send("values", values=values)
            values.append(2)
            assert (await controller.receive())["values"] == [1]
            await end(worker)

    run(scenario)


def test_what_no_note_can_carry_is_refused_and_the_connection_goes_on(keys: Path) -> None:
    async def scenario() -> None:
        async with meeting(keys) as place:
            worker, controller = await place.dial(keys)
            with pytest.raises(TransportError, match="no note 'job': a 'tuple' is no plain value"):
                worker.send("job", value=(1, 2))
            worker.send("job", value="5")
            note = await controller.receive()
            with pytest.raises(TransportError, match="the field 'value' of a note 'job' is a str, not a int"):
                note.get("value", int)
            await end(worker)

    run(scenario)


def test_notes_stay_in_order_under_load_both_ways(keys: Path) -> None:
    count = 3000

    async def talk(one: Connection) -> None:
        for number in range(count):
            one.send("n", number=number, data=bytes(number % 7 * 1000 if number % 500 else 3 * MIB))
            if number % 50 == 0:
                await one.drain()
                await asyncio.sleep(0)

    async def hear(one: Connection) -> None:
        for number in range(count):
            note = await one.receive()
            assert note["number"] == number
            assert len(note["data"]) == (number % 7 * 1000 if number % 500 else 3 * MIB)

    async def scenario() -> None:
        async with meeting(keys) as place:
            both = await place.dial(keys)
            await asyncio.gather(*map(talk, both), *map(hear, both))
            await end(*both)

    run(scenario)


@pytest.mark.slow
def test_300_megabytes_go_through_a_slow_reader_in_little_memory(keys: Path) -> None:
    piece, count = 4 * MIB, 75

    async def produce(worker: Connection, sent: list[int]) -> None:
        for number in range(count):
            worker.send("records", number=number, data=number.to_bytes(4, "big") * (piece // 4))
            sent.append(number)
            await worker.drain()

    async def scenario() -> None:
        async with meeting(keys) as place:
            worker, controller = await place.dial(keys)
            sent: list[int] = []
            producing = asyncio.ensure_future(produce(worker, sent))
            await until(lambda: controller._deaf and worker._unsent > UNSENT_BYTES)
            await asyncio.sleep(0.2)
            assert not producing.done()
            stuck = len(sent)
            assert stuck * piece < UNREAD_BYTES + UNSENT_BYTES + 32 * MIB  # with what the kernel holds
            assert controller._unread_bytes <= UNREAD_BYTES + 2 * piece
            for number in range(count):
                note = await controller.receive()
                assert note.get("data", bytes) == number.to_bytes(4, "big") * (piece // 4)
                if number % 10 == 0:
                    await asyncio.sleep(0.01)
            await producing
            assert stuck < len(sent) == count
            await end(worker, controller)

    tracemalloc.start(1)
    try:
        run(scenario)
        assert tracemalloc.get_traced_memory()[1] < UNREAD_BYTES + UNSENT_BYTES + 40 * MIB
    finally:
        tracemalloc.stop()


def test_many_small_notes_that_nobody_reads_stop_the_peer(keys: Path) -> None:
    async def scenario() -> None:
        async with meeting(keys) as place:
            worker, controller = await place.dial(keys)
            frames = 0
            while worker._unsent <= UNSENT_BYTES:
                worker.send("n", number=frames, data=bytes(30_000))
                frames += 1
                await asyncio.sleep(0)
            assert len(controller._unread) < 200
            for number in range(frames):
                assert (await controller.receive())["number"] == number
            await within(worker.drain())
            await end(worker)

    run(scenario)


# ---- ends -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("closer", [0, 1])
def test_what_was_sent_before_closing_arrives_from_either_side(closer: int, keys: Path) -> None:
    async def scenario() -> None:
        async with meeting(keys) as place:
            both = await place.dial(keys)
            here, there = both[closer], both[1 - closer]
            for number in range(10):
                here.send("n", number=number, data=bytes(4 * MIB))
                there.send("n", number=number, data=bytes(4 * MIB))
            assert here._unsent > 0
            here.close()
            here.close()
            here.send("too late")
            with pytest.raises(ConnectionGone, match="closed here") as closed:
                await here.receive()
            assert closed.value.orderly
            with pytest.raises(ConnectionGone, match="closed here"):
                await here.drain()
            for number in range(10):
                assert (await there.receive())["number"] == number
            with pytest.raises(ConnectionGone, match=f"{here.name} at .*: the peer has closed") as gone:
                await there.receive()
            assert gone.value.orderly
            await there.wait_closed()
            await here.wait_closed()
            there.send("too late")
            there.close()
            with pytest.raises(ConnectionGone, match="the peer has closed"):
                await there.drain()

    run(scenario)


def test_both_sides_may_close_at_once_with_notes_unsent(keys: Path) -> None:
    async def scenario() -> None:
        async with meeting(keys) as place:
            both = await place.dial(keys)
            for one in both:
                for _ in range(5):
                    one.send("n", data=bytes(4 * MIB))
            loop = asyncio.get_running_loop()
            start_s = loop.time()
            await within(end(*both))
            assert module.LINGER_S > 1
            assert all(one._linger is not None and one._linger.cancelled() for one in both)  # none had to be cut off
            assert loop.time() - start_s < WITHIN_S

    run(scenario)


def test_a_peer_that_reads_nothing_is_cut_off_after_closing(keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LINGER_S", 0.2)

    async def scenario() -> None:
        async with meeting(keys) as place:
            worker, controller = await place.dial(keys)
            for number in range(30):
                worker.send("n", number=number, data=bytes(4 * MIB))
            await until(lambda: controller._deaf)
            worker.close()
            await within(worker.wait_closed())
            heard: list[Note] = []
            with pytest.raises(ConnectionGone, match=r"device-0 at .* lost") as gone:
                await hear_all(controller, heard)
            assert not gone.value.orderly
            assert [note["number"] for note in heard] == list(range(len(heard)))
            assert 0 < len(heard) < 30

    run(scenario)


def test_a_connection_that_is_aborted_is_over_at_once(keys: Path) -> None:
    async def scenario() -> None:
        async with meeting(keys) as place:
            worker, controller = await place.dial(keys)
            worker.send("unread")
            controller.send("unread")
            await until(lambda: worker._unread and controller._unread)
            waiting = asyncio.ensure_future(worker.wait_closed())
            controller.send("n", data=bytes(30 * MIB))
            controller.abort("it has not moved for 10 s")
            controller.abort("again")
            controller.close()
            with pytest.raises(ConnectionGone, match=r"controller: device-0 at .*: it has not moved for 10 s") as gone:
                await controller.receive()
            assert not gone.value.orderly
            await within(controller.wait_closed())
            await within(waiting)
            assert (await worker.receive()).kind == "unread"
            for _ in range(2):
                with pytest.raises(ConnectionGone, match="the connection was lost"):
                    await worker.receive()

    run(scenario)


def test_who_waits_is_woken_by_the_end(keys: Path) -> None:
    async def scenario() -> None:
        async with meeting(keys) as place:
            worker, controller = await place.dial(keys)
            receiving = [asyncio.ensure_future(worker.receive()) for _ in range(2)]
            while not controller._deaf or worker._unsent <= 2 * UNSENT_BYTES:
                worker.send("n", data=bytes(4 * MIB))
                await asyncio.sleep(0)
            draining = asyncio.ensure_future(worker.drain())
            await asyncio.sleep(0.01)
            given_up = asyncio.ensure_future(worker.receive())
            await asyncio.sleep(0)
            given_up.cancel()
            controller.abort("enough")
            for waiting in (*receiving, draining):
                with pytest.raises(ConnectionGone, match="the connection was lost"):
                    await within(waiting)

    run(scenario)


WORKER = """
import asyncio, sys
from pathlib import Path
from harness.management.connection import dial

async def main():
    connection = await dial("device-0", "controller", "127.0.0.1", int(sys.argv[1]), Path(sys.argv[2]), 30.0)
    connection.send("hello")
    await connection.receive()
    while True:
        connection.send("n", data=bytes(2**20))
        await connection.drain()

asyncio.run(main())
"""


@pytest.mark.slow
@pytest.mark.parametrize("busy", [True, False])
def test_a_peer_that_is_killed_is_gone(busy: bool, keys: Path) -> None:
    async def scenario() -> None:
        async with meeting(keys) as place:
            port = str(place.desk.port)
            process = subprocess.Popen([sys.executable, "-c", WORKER, port, str(keys)], cwd=ROOT)
            try:
                await until(lambda: place.welcomed)
                (controller,) = place.welcomed
                assert (await controller.receive()).kind == "hello"
                if busy:
                    controller.send("go")
                    for _ in range(20):
                        await controller.receive()
                os.kill(process.pid, signal.SIGKILL)
                with pytest.raises(ConnectionGone, match=r"device-0 at .*: the connection was lost") as gone:
                    await hear_all(controller, [])
                assert not gone.value.orderly
                await within(controller.wait_closed())
                await place.works(keys)
            finally:
                process.kill()
                process.wait()

    run(scenario)


def test_the_management_connection_needs_no_torch() -> None:
    script = "import sys, harness.management.connection as _; assert 'torch' not in sys.modules, 'torch was imported'"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ---- strangers --------------------------------------------------------------------------------------------------


def context_of(kind: str, keys: Path, others: Path) -> ssl.SSLContext:
    """What somebody brings who is not of this run."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(keys / tls.AUTHORITY)
    if kind == "foreign":
        context.load_cert_chain(others / "device-0.pem", others / "device-0.key")
    if kind == "old":
        context.load_cert_chain(keys / "device-0.pem", keys / "device-0.key")
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


@pytest.mark.parametrize("kind", ["nothing", "foreign", "old"])
def test_a_peer_without_the_runs_certificate_is_refused(
    kind: str, keys: Path, others: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with meeting(keys) as place:
            standing = await place.dial(keys)
            with monkeypatch.context() as patch:
                patch.setattr(module, "client_context", lambda *_: context_of(kind, keys, others))
                with pytest.raises(TransportError, match=r"device-0: cannot reach controller at .*keys of one run"):
                    await dial("device-0", "controller", "127.0.0.1", place.desk.port, keys, 30.0)
            await until(lambda: place.refused)
            address, error = place.refused[0]
            assert address.startswith("127.0.0.1:")
            assert f"controller: the peer at {address} was refused" in str(error)
            assert len(place.welcomed) == 1
            standing[0].send("still here")
            assert (await standing[1].receive()).kind == "still here"
            await place.works(keys)
            assert len(place.refused) == 1
            await end(*standing)

    run(scenario)


def test_a_worker_of_another_run_talks_to_nobody(keys: Path, others: Path) -> None:
    async def scenario() -> None:
        async with meeting(keys) as place:
            with pytest.raises(TransportError, match=r"(?i)cannot reach controller at .*certificate.*keys of one run"):
                await dial("device-0", "controller", "127.0.0.1", place.desk.port, others, 30.0)
            await until(lambda: place.refused)
            await place.works(keys)

    run(scenario)


def test_a_desk_that_is_somebody_elses_is_not_talked_to(keys: Path) -> None:
    async def scenario() -> None:
        async with meeting(keys) as place:
            with pytest.raises(TransportError, match=r"(?i)cannot reach device-1 .*(hostname|match)"):
                await dial("device-0", "device-1", "127.0.0.1", place.desk.port, keys, 30.0)
            await until(lambda: place.refused)
            await place.works(keys)

    run(scenario)


@pytest.mark.parametrize("server_side", [True, False])
def test_a_certificate_must_name_one_node(server_side: bool, keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def names(transport: Any) -> frozenset[str]:
        both = transport.get_extra_info("ssl_object").server_side is server_side
        return tls.peer_names(transport) | ({"device-7"} if both else set())

    async def scenario() -> None:
        async with meeting(keys) as place:
            with monkeypatch.context() as patch:
                patch.setattr(module, "peer_names", names)
                with pytest.raises(TransportError, match="cannot reach controller") as failed:
                    await dial("device-0", "controller", "127.0.0.1", place.desk.port, keys, 30.0)
                await until(lambda: place.refused)
            assert "names 2 nodes, not one" in str(place.refused[0][1] if server_side else failed.value)
            assert not str(place.refused[0][1]).endswith(": ")
            assert not place.welcomed
            await place.works(keys)

    run(scenario)


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\nHost: controller\r\n\r\n", bytes(500), MARK + pack("x", {}), b""])
def test_plain_text_is_refused(data: bytes, keys: Path) -> None:
    async def scenario() -> None:
        async with meeting(keys) as place:
            reader, writer = await asyncio.open_connection("127.0.0.1", place.desk.port)
            writer.write(data)
            if not data:
                writer.close()
            await until(lambda: place.refused)
            assert "was refused" in str(place.refused[0][1])
            if data:
                with contextlib.suppress(ConnectionError):
                    await within(reader.read())
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
            assert not place.welcomed
            await place.works(keys)

    run(scenario)


@contextlib.asynccontextmanager
async def rude_peer(place: Meeting, keys: Path) -> AsyncIterator[asyncio.StreamWriter]:
    """Somebody of this run who says what the test makes it say."""
    context = tls.client_context(keys, "device-0")
    _, writer = await asyncio.open_connection("127.0.0.1", place.desk.port, ssl=context, server_hostname="controller")
    try:
        yield writer
    finally:
        writer.transport.abort()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def test_a_member_that_begins_with_rubbish_is_refused(keys: Path) -> None:
    async def scenario() -> None:
        async with meeting(keys) as place, rude_peer(place, keys) as writer:
            writer.write(b"GET / HTTP/1.1\r\n\r\n")
            await until(lambda: place.refused)
            assert "another protocol" in str(place.refused[0][1])
            assert not place.welcomed
            await place.works(keys)

    run(scenario)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"rubbish" * 9, "another protocol"),
        (pack("x", {})[:-1] + b"\xc1", "unknown type 0xc1"),
        (MARK[:8] + b"\xff" * 8, "are above"),
    ],
)
def test_a_member_that_goes_on_with_rubbish_is_cut_off(data: bytes, why: str, keys: Path) -> None:
    async def scenario() -> None:
        async with meeting(keys) as place, rude_peer(place, keys) as writer:
            writer.write(MARK + pack("hello", {"x": 1}))
            await until(lambda: place.welcomed)
            (controller,) = place.welcomed
            assert (await controller.receive())["x"] == 1
            writer.write(data)
            with pytest.raises(ConnectionGone, match=f"device-0 at .*: note refused: .*{why}") as gone:
                await within(controller.receive())
            assert not gone.value.orderly
            await within(controller.wait_closed())
            await place.works(keys)

    run(scenario)


def test_a_note_that_is_cut_off_says_so(keys: Path) -> None:
    async def scenario() -> None:
        async with meeting(keys) as place:
            async with rude_peer(place, keys) as writer:
                writer.write(MARK + pack("whole", {}) + pack("half", {"data": bytes(500_000)})[:-1])
                await until(lambda: place.welcomed and place.welcomed[0]._reader.middle)
            (controller,) = place.welcomed
            assert (await controller.receive()).kind == "whole"
            with pytest.raises(ConnectionGone, match="lost in the middle of a note"):
                await within(controller.receive())

    run(scenario)


@pytest.mark.parametrize("how", ["silent", "half a handshake", "silent within TLS"])
def test_a_peer_that_says_nothing_is_dropped(how: str, keys: Path) -> None:
    async def scenario() -> None:
        async with meeting(keys, handshake_s=0.3) as place:
            async with contextlib.AsyncExitStack() as stack:
                if how == "silent within TLS":
                    await stack.enter_async_context(rude_peer(place, keys))
                else:
                    raw = stack.enter_context(socket.create_connection(("127.0.0.1", place.desk.port)))
                    raw.sendall(b"" if how == "silent" else b"\x16\x03\x01\x02\x00\x01")
                await until(lambda: place.refused)
            assert "handshake within 0.3 s" in str(place.refused[0][1])
            assert not place.welcomed
            await place.works(keys)

    run(scenario)


# ---- dialling and listening -------------------------------------------------------------------------------------


def test_who_dials_waits_until_somebody_listens(keys: Path) -> None:
    async def scenario() -> None:
        with socket.create_server(("127.0.0.1", 0)) as held:
            port = held.getsockname()[1]
        dialling = asyncio.ensure_future(dial("device-0", "controller", "127.0.0.1", port, keys, 30.0))
        await asyncio.sleep(0.25)
        assert not dialling.done()
        welcomed: list[Connection] = []
        desk = await listen("controller", keys, "127.0.0.1", port, welcomed.append, lambda *_: None)
        worker = await dialling
        await until(lambda: welcomed)
        await desk.close()
        worker.send("after the desk has closed")
        assert (await welcomed[0].receive()).kind == "after the desk has closed"
        await end(worker, *welcomed)

    run(scenario)


def test_who_dials_gives_up_with_a_sentence(keys: Path) -> None:
    async def scenario() -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            port = silent.getsockname()[1]
            with pytest.raises(
                TransportError, match=r"device-0: cannot reach controller at .* within 0\.2 s: no answer"
            ):
                await dial("device-0", "controller", "127.0.0.1", port, keys, 0.2)
        for timeout_s in (0.2, 0.0):
            with pytest.raises(TransportError, match=f"within {timeout_s:g} s: .*; check that it runs"):
                await dial("device-0", "controller", "127.0.0.1", port, keys, timeout_s)
        with pytest.raises(TransportError, match="the certificate in"):
            await dial("device-9", "controller", "127.0.0.1", port, keys, 0.2)

    run(scenario)


@pytest.mark.parametrize("turns", [1, 3, 10, 30, 100])
def test_who_is_cancelled_while_dialling_leaves_nothing(turns: int, keys: Path) -> None:
    async def scenario() -> None:
        async with meeting(keys) as place:
            dialling = asyncio.ensure_future(dial("device-0", "controller", "127.0.0.1", place.desk.port, keys, 30.0))
            for _ in range(turns):
                await asyncio.sleep(0)
            dialling.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await end(await dialling)

    run(scenario)


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5, 8, 13])
def test_a_desk_that_closes_while_peers_come_in_leaves_nothing(turns: int, keys: Path) -> None:
    async def scenario() -> None:
        place = Meeting()
        await place.open(keys)
        raw = [socket.create_connection(("127.0.0.1", place.desk.port)) for _ in range(5)]
        dialling = asyncio.ensure_future(dial("device-0", "controller", "127.0.0.1", place.desk.port, keys, 1.0))
        for _ in range(turns):
            await asyncio.sleep(0.001 if turns > 3 else 0)
        await place.desk.close()
        await place.desk.close()
        for one in raw:
            one.close()
        with contextlib.suppress(TransportError):
            await end(await dialling)
        await end(*place.welcomed)

    run(scenario)


def test_a_port_that_is_taken_is_named(keys: Path) -> None:
    async def scenario() -> None:
        async with meeting(keys) as place:
            for port in (place.desk.port, 70_000):
                with pytest.raises(
                    TransportError, match=rf"controller: cannot listen on 127\.0\.0\.1:{port} .*another"
                ):
                    await listen("controller", keys, "127.0.0.1", port, print, print)

    run(scenario)


def test_an_owner_that_fails_stops_nobody_from_coming_in(keys: Path) -> None:
    reported: list[dict[str, Any]] = []

    async def scenario() -> None:
        place = Meeting()

        def welcome(connection: Connection) -> None:
            place.welcomed.append(connection)
            if connection.peer == "device-0":
                raise ValueError("an error of the owner")

        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: reported.append(context))
        place.desk = await listen("controller", keys, "127.0.0.1", 0, welcome, lambda *_: None)
        await end(*await place.dial(keys))
        await place.works(keys)
        await place.desk.close()

    run(scenario)
    assert [str(context["exception"]) for context in reported] == ["an error of the owner"]


def test_no_more_files_is_reported_and_passes(keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with meeting(keys) as place:
            real = place.desk._socket

            class Full:
                def __getattr__(self, name: str) -> Any:
                    return getattr(real, name)

                def fileno(self) -> int:
                    return real.fileno()

                def accept(self) -> Any:
                    if not place.refused:
                        raise OSError(24, "Too many open files")
                    return real.accept()

            monkeypatch.setattr(place.desk, "_socket", Full())
            await place.works(keys)
            assert "Too many open files" in str(place.refused[0][1])
            assert len(place.refused) == 1

    run(scenario)


def test_the_certificates_of_these_tests_are_the_runs(keys: Path, others: Path) -> None:
    """Two runs have two authorities; else the tests of strangers would show nothing."""
    made = [x509.load_pem_x509_certificate((one / tls.AUTHORITY).read_bytes()) for one in (keys, others)]
    assert made[0].public_key() != made[1].public_key()

"""Channels over loopback: order, acknowledgements, backpressure, large messages, peers that go or misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from transport_ends import Ends, ends, message, run, until

from harness.errors import TransportError
from harness.transport import tls
from harness.transport.acknowledgement import ARRIVED as ACK_ARRIVED
from harness.transport.acknowledgement import READY, Acknowledgement, Reader
from harness.transport.endpoint import connect
from harness.transport.frame import encode
from harness.transport.limiter import Delay
from harness.transport.outgoing import ARRIVED, LOST, REFUSED


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "keys"
    tls.make(folder, ["server", "device-0", "device-1"])
    return folder


@pytest.fixture(params=["plain", "tls"])
def secured(request: pytest.FixtureRequest, keys: Path) -> Path | None:
    return keys if request.param == "tls" else None


@contextlib.contextmanager
def rude_server() -> Iterator[socket.socket]:
    """A listening socket whose peer says it is the server, and then whatever the test makes it."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(30)
        yield listening


async def meet(listening: socket.socket, **options: Any) -> tuple[Any, socket.socket, list[TransportError | None]]:
    """Connect to a rude server; return the channel, the server's socket, and what the owner is told."""
    told: list[TransportError | None] = []
    port = listening.getsockname()[1]
    pending = asyncio.ensure_future(
        connect("device-0", "server", "127.0.0.1", port, closed=lambda _, error: told.append(error), **options)
    )
    peer, _ = await asyncio.to_thread(listening.accept)
    peer.sendall(Acknowledgement(READY, text="server").packed())
    return await pending, peer, told


def test_messages_arrive_in_order_and_are_timed(secured: Path | None) -> None:
    async def scenario() -> None:
        async with ends(secured) as pair:
            tensors = [torch.randn(size) for size in (3, 300_000, 0, 5, 40_000, 1)]
            transfers = [pair.channel.post(message({"t": tensor}, i)) for i, tensor in enumerate(tensors)]
            assert pair.channel.backlog_bytes == sum(transfer.payload_bytes for transfer in transfers)
            for transfer in transfers:
                await transfer.settled
            assert pair.channel.backlog_bytes == 0
            assert [arrival.message.serial for arrival in pair.arrivals] == list(range(len(tensors)))
            begun = [transfer.started_s for transfer in transfers]
            assert begun == sorted(begun)
            for tensor, arrival, transfer in zip(tensors, pair.arrivals, transfers, strict=True):
                assert torch.equal(arrival.message.payload["t"], tensor)
                assert transfer.status == ARRIVED
                assert transfer.frame_bytes == arrival.frame_bytes > transfer.payload_bytes - 64
                assert (transfer.first_byte_s, transfer.arrived_s) == (arrival.first_byte_s, arrival.last_byte_s)
                assert transfer.enqueued_s <= transfer.started_s <= transfer.first_byte_s
                assert transfer.first_byte_s <= transfer.arrived_s <= transfer.acknowledged_s
            for before, after in pairwise(transfers):
                assert before.arrived_s <= after.arrived_s  # nobody overtakes
                assert before.acknowledged_s <= after.acknowledged_s
        assert pair.outgoing_closed == [None]
        await until(lambda: pair.incoming_closed == [None])
        assert not pair.strangers

    run(scenario)


def test_a_hundred_megabytes_go_through(secured: Path | None) -> None:
    async def scenario() -> None:
        tensor = torch.arange(25_000_000, dtype=torch.int32)
        async with ends(secured) as pair:
            transfer = await pair.channel.post(message(tensor)).settled
            assert transfer.status == ARRIVED
            assert torch.equal(pair.arrivals[0].message.payload, tensor)

    run(scenario)


def test_a_node_that_is_done_refuses(secured: Path | None) -> None:
    async def scenario() -> None:
        async with ends(secured) as pair:
            pair.wanted = False
            assert (await pair.channel.post(message()).settled).status == REFUSED
            pair.wanted = True
            assert (await pair.channel.post(message(serial=1)).settled).status == ARRIVED

    run(scenario)


def test_a_payload_without_a_frame_is_lost_alone() -> None:
    async def scenario() -> None:
        async with ends() as pair:
            transfers = [pair.channel.post(message(payload, i)) for i, payload in enumerate([1, 2**70, 3])]
            statuses = [(await transfer.settled).status for transfer in transfers]
            assert statuses == [ARRIVED, LOST, ARRIVED]
            assert "64 bits" in str(transfers[1].error)

    run(scenario)


def test_a_slow_reader_costs_the_sender_no_memory(secured: Path | None) -> None:
    async def scenario() -> None:
        async with ends(secured) as pair:
            await until(lambda: pair.listener.connections)
            (incoming,) = pair.listener.connections
            incoming.pause()
            payload = torch.zeros(50_000_000)
            payload += 1  # its pages are there
            before = psutil.Process().memory_info().rss
            transfer = pair.channel.post(message(payload))
            await asyncio.sleep(0.3)
            grown = psutil.Process().memory_info().rss - before
            assert not transfer.settled.done()
            assert grown < 30e6
            assert pair.channel._transport.get_write_buffer_size() <= 3 * 2**20
            incoming.resume()
            assert (await transfer.settled).status == ARRIVED

    run(scenario)


def test_a_peer_that_reads_no_acknowledgements_is_read_no_more() -> None:
    async def scenario() -> None:
        pair = Ends()
        await pair.listen()
        _, writer = await asyncio.open_connection("127.0.0.1", pair.listener.port, limit=1024)
        await until(lambda: pair.listener.connections)
        (incoming,) = pair.listener.connections
        data = b"".join(encode(message()).parts) * 1000
        pushed = 0
        while not incoming._choked:
            writer.write(data)
            pushed += len(data)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(writer.drain(), 0.05)
            assert pushed < 2**30
        assert incoming._transport.get_write_buffer_size() < 2**24
        writer.transport.abort()
        await pair.listener.close()

    run(scenario)


def test_a_reset_is_told_and_loses_what_waits() -> None:
    async def scenario() -> None:
        with rude_server() as listening:
            channel, peer, told = await meet(listening)
            transfers = [channel.post(message(torch.zeros(3_000_000), i)) for i in range(3)]
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            peer.close()
            for transfer in transfers:
                assert (await transfer.settled).status == LOST
                assert "server has closed the connection" in str(transfer.error)
            await channel.over
            assert len(told) == 1
            assert isinstance(told[0], TransportError)
            assert channel.post(message(serial=9)).status == LOST
            assert channel.backlog_bytes == 0

    run(scenario)


def test_a_peer_that_closes_its_side_is_gone() -> None:
    async def scenario() -> None:
        with rude_server() as listening:
            channel, peer, told = await meet(listening)
            with peer:
                peer.shutdown(socket.SHUT_WR)
                await channel.over
                assert "server has closed the connection" in str(told[0])

    run(scenario)


def test_a_frozen_peer_is_given_up_when_asked_for() -> None:
    async def scenario() -> None:
        with rude_server() as listening:
            channel, peer, told = await meet(listening, stall_s=0.2)
            with peer:  # accepted, and then reads nothing
                transfer = await channel.post(message(torch.zeros(5_000_000))).settled
                assert transfer.status == LOST
                await channel.over
                assert "neither taken nor acknowledged anything of 'tag'" in str(told[0])

    run(scenario)


@pytest.mark.parametrize("answer", [Acknowledgement(ACK_ARRIVED, 77).packed(), b"rubbish" * 20])
def test_a_receiver_that_speaks_nonsense_is_cut_off(answer: bytes) -> None:
    async def scenario() -> None:
        with rude_server() as listening:
            channel, peer, told = await meet(listening)
            with peer:
                transfer = channel.post(message())
                peer.sendall(answer)
                assert (await transfer.settled).status == LOST
                await channel.over
                assert "not in flight" in str(told[0]) or "another protocol" in str(told[0])

    run(scenario)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"GET / HTTP/1.1\r\nHost: server\r\n\r\n", "another protocol"),
        (b"".join(encode(message(torch.zeros(100))).parts)[:-5], "in the middle of a frame"),
        (b"".join(encode(message(dst="device-1")).parts), "on the connection of"),
        (b"".join(encode(message()).parts) + b"".join(encode(message(src="device-1")).parts), "on the connection of"),
    ],
)
def test_rubbish_closes_its_connection_by_name_and_no_other(data: bytes, why: str) -> None:
    async def scenario() -> None:
        async with ends() as pair:
            _, writer = await asyncio.open_connection("127.0.0.1", pair.listener.port)
            writer.write(data)
            writer.write_eof()
            await until(lambda: pair.incoming_closed)
            assert why in str(pair.incoming_closed[0])
            writer.close()
            assert (await pair.channel.post(message(1)).settled).status == ARRIVED

    run(scenario)


def test_a_sender_hears_why_its_frame_was_refused() -> None:
    async def scenario() -> None:
        async with ends() as pair:
            transfer = await pair.channel.post(message(src="device-0", dst="device-7")).settled
            assert transfer.status == LOST
            assert "'device-7'" in str(transfer.error)

    run(scenario)


def test_closing_here_loses_what_is_not_acknowledged() -> None:
    async def scenario() -> None:
        async with ends() as pair:
            await until(lambda: pair.listener.connections)
            (incoming,) = pair.listener.connections
            incoming.pause()
            transfers = [pair.channel.post(message(torch.zeros(5_000_000), i)) for i in range(2)]
            await pair.channel.close()
            assert [transfer.status for transfer in transfers] == [LOST, LOST]
            assert pair.outgoing_closed == [None]
            incoming.resume()
            await incoming.over
            assert "in the middle of a frame" in str(pair.incoming_closed[0])

    run(scenario)


def test_nobody_there_and_somebody_else_there() -> None:
    async def scenario() -> None:
        with rude_server() as listening:
            port = listening.getsockname()[1]
        with pytest.raises(TransportError, match=rf"cannot reach server at 127\.0\.0\.1:{port}"):
            await connect("device-0", "server", "127.0.0.1", port)
        async with ends() as pair:
            with pytest.raises(TransportError, match="calls itself 'server'"):
                await connect("device-0", "edge-0", "127.0.0.1", pair.listener.port)
        with rude_server() as listening, pytest.raises(TransportError, match=r"no answer within 0\.1 s"):
            await connect("device-0", "server", "127.0.0.1", listening.getsockname()[1], timeout_s=0.1)

    run(scenario)


def test_acknowledgements_come_back_however_reads_cut_them() -> None:
    sent = [
        Acknowledgement(READY, text="server"),
        Acknowledgement(ACK_ARRIVED, 5, 1.5, 2.5),
        Acknowledgement(3, text="é" * 999),
    ]
    data = b"".join(one.packed() for one in sent)
    for step in (1, 7, 500):
        reader = Reader()
        got = []
        for at in range(0, len(data), step):
            piece = data[at : at + step]
            reader.buffer()[: len(piece)] = piece
            got += reader.filled(len(piece))
        assert got[:2] == sent[:2]
        assert set(got[2].text) == {"é"}


def test_a_message_does_not_wait_for_the_acknowledgement_of_the_one_before() -> None:
    async def scenario() -> None:
        latency_s, count = 0.05, 10
        async with ends(outgoing={"delay": Delay(latency_s)}) as pair:
            begun = time.monotonic()
            transfers = [pair.channel.post(message([number], number)) for number in range(count)]
            await transfers[-1].settled
            assert time.monotonic() - begun < count * latency_s
            assert [arrival.message.payload for arrival in pair.arrivals] == [[number] for number in range(count)]

    run(scenario)

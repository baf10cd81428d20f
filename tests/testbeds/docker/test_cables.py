"""Which network device of the host a container hangs on."""

from __future__ import annotations

import asyncio
import contextlib
import time

import pytest
from docker_host import PATIENCE_S, connected, engine_or_skip, opened, python, received

from harness.errors import TestbedError
from testbeds.docker import cables

SEND = """
import socket
with socket.create_server(("", 5000)) as s:
    while True:
        c, _ = s.accept()
        try: c.sendall(bytes(2_000_000))
        except OSError: pass
        c.close()
"""


@pytest.fixture(autouse=True)
def _engine() -> None:
    engine_or_skip()


async def _drained(address: str) -> int:
    reader, writer = await asyncio.open_connection(address, 5000)
    total = 0
    while part := await asyncio.wait_for(reader.read(2**20), PATIENCE_S):
        total += len(part)
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return total


def test_what_a_container_sends_arrives_at_its_own_cable_of_that_network() -> None:
    async def main() -> None:
        async with opened() as engine:
            await python(engine, "device-0", SEND)
            await python(engine, "device-1", SEND)
            ends = {
                (name, network): (await engine.interface(name, network)).veth
                for name in ("device-0", "device-1")
                for network in ("data", "mgmt")
            }
            assert len(set(ends.values())) == 4
            for at in ends:
                await connected(engine.address(*at), 5000)
            await asyncio.sleep(0.3)  # what the connections above were sent has arrived by now
            for at in ends:
                before = {at: received(veth) for at, veth in ends.items()}
                assert await _drained(engine.address(*at)) == 2_000_000
                grown = {other: received(veth) - before[other] for other, veth in ends.items()}
                assert 2_000_000 < grown.pop(at) < 2_500_000
                assert max(grown.values()) < 100_000

    asyncio.run(main())


def test_asking_in_the_container_finds_what_looking_finds() -> None:
    async def main() -> None:
        async with opened() as engine:
            started = await python(engine, "device-0", SEND)
            container = engine.client.containers.get(started.id)
            asked = cables.asked(container)
            assert set(asked) == {"eth0", "eth1", "lo"}
            for network, endpoint in container.attrs["NetworkSettings"]["Networks"].items():
                end = await engine.interface("device-0", network.rpartition("-")[2])
                hardware, number = asked[end.inside]
                assert hardware == endpoint["MacAddress"]
                with open(f"/sys/class/net/{end.veth}/ifindex") as file:
                    assert int(file.read()) == number
            with pytest.raises(TestbedError, match="no interface has the address 00:00:00:00:00:01"):
                cables.find(container, "00:00:00:00:00:01")

    asyncio.run(main())


def test_a_container_that_has_ended_has_no_cable() -> None:
    async def main() -> None:
        async with opened() as engine:
            await python(engine, "device-0", "pass")
            deadline = time.monotonic() + PATIENCE_S
            while (await engine.state("device-0")).running:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.05)
            with pytest.raises(TestbedError, match="device-0 is not on the data network"):
                await engine.veth("device-0")

    asyncio.run(main())

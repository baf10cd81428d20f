"""A run's containers and networks, on a real engine: starting, reaching, freezing, killing, and leaving nothing."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from docker_host import PATIENCE_S, connected, ended, engine_or_skip, left_of, opened, output, python, run_id

from harness.errors import TestbedError
from testbeds.docker import cgroup
from testbeds.docker.engine import Engine

ROOT = Path(__file__).parents[3]
LISTEN = """
import socket
with socket.create_server(("", 5000)) as s:
    while True:
        c, _ = s.accept()
        c.sendall(b"here"); c.close()
"""
ASK = """
import socket, time
while True:
    try:
        with socket.create_connection(({address!r}, {port}), 1) as c:
            print(c.recv(99).decode(), c.getsockname()[0]); break
    except OSError: time.sleep(0.05)
"""
SLEEP = "import time; time.sleep(600)"
SPIN = "while True: pass"
CONTROLLER = """
import asyncio, sys
from testbeds.docker.engine import Engine
async def main():
    async with Engine(sys.argv[1]) as engine:
        await engine.start("device-0", [sys.executable, "-c", "import time; time.sleep(600)"],
                           mounts=engine.image.mounts())
        print("ready", flush=True)
        await asyncio.sleep(600)
asyncio.run(main())
"""


@pytest.fixture(autouse=True)
def _engine() -> None:
    engine_or_skip()


def test_a_node_reaches_the_controller_over_management_and_its_peer_over_data() -> None:
    async def main() -> None:
        async with opened() as engine:
            callers = []

            async def hello(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                callers.append(writer.get_extra_info("peername")[0])
                writer.write(b"controller")
                writer.close()
                await writer.wait_closed()

            listening = await asyncio.start_server(hello, engine.gateway("mgmt"), 0)
            port = listening.sockets[0].getsockname()[1]
            server = await python(engine, "server", LISTEN)
            assert server.addresses == {network: engine.address("server", network) for network in ("mgmt", "data")}
            await python(engine, "device-0", ASK.format(address=server.addresses["data"], port=5000))
            await python(engine, "device-1", ASK.format(address=engine.gateway("mgmt"), port=port))
            assert (await output(engine, "device-0")).split() == ["here", engine.address("device-0", "data")]
            assert (await output(engine, "device-1")).split() == ["controller", engine.address("device-1", "mgmt")]
            assert callers == [engine.address("device-1", "mgmt")]
            listening.close()
            await listening.wait_closed()

    asyncio.run(main())


def test_a_cut_link_is_mended_at_the_same_address() -> None:
    async def main() -> None:
        async with opened() as engine:
            await python(engine, "device-0", LISTEN)
            await connected(engine.address("device-0", "data"), 5000)
            before = await engine.veth("device-0")
            await engine.disconnect("device-0")
            await connected(engine.address("device-0", "data"), 5000, want=False)
            await connected(engine.address("device-0", "mgmt"), 5000)
            assert not Path(f"/sys/class/net/{before}").exists()
            with pytest.raises(TestbedError, match="device-0 is not on the data network"):
                await engine.veth("device-0")
            with pytest.raises(TestbedError, match="device-0: its link cannot be cut"):
                await engine.disconnect("device-0")
            await python(engine, "device-1", SLEEP)  # does not get the address that is out of use meanwhile
            await engine.reconnect("device-0")
            await connected(engine.address("device-0", "data"), 5000)
            assert Path(f"/sys/class/net/{await engine.veth('device-0')}").exists()

    asyncio.run(main())


def test_a_frozen_node_uses_no_time_and_can_be_killed() -> None:
    async def main() -> None:
        async with opened() as engine:
            await python(engine, "device-0", SPIN)
            group = engine.group("device-0")

            async def works() -> None:
                used = cgroup.cpu_stat(group).usage_s
                deadline = time.monotonic() + PATIENCE_S
                while cgroup.cpu_stat(group).usage_s < used + 0.05:
                    assert time.monotonic() < deadline
                    await asyncio.sleep(0.01)

            await works()
            await engine.signal("device-0", "STOP")
            await asyncio.sleep(0.1)
            used = cgroup.cpu_stat(group).usage_s
            await asyncio.sleep(0.5)
            assert cgroup.cpu_stat(group).usage_s - used < 0.01
            assert (await engine.state("device-0")).running
            await engine.signal("device-0", "CONT")
            await works()
            await engine.signal("device-0", "STOP")
            await engine.kill("device-0")
            state = await ended(engine, "device-0")
            assert (state.exit_code, state.oom_killed) == (128 + signal.SIGKILL, False)
            await engine.kill("device-0")  # again: nothing to do
            with pytest.raises(TestbedError, match="device-0: signal STOP cannot be sent"):
                await engine.signal("device-0", "STOP")

    asyncio.run(main())


def test_a_node_that_is_started_again_has_its_old_addresses() -> None:
    async def main() -> None:
        async with opened() as engine:
            first = await python(engine, "device-0", "raise SystemExit(3)")
            await python(engine, "device-1", SLEEP)
            assert (await ended(engine, "device-0")).exit_code == 3
            second = await python(engine, "device-0", LISTEN)
            assert second.id != first.id
            assert second.addresses == first.addresses
            await connected(second.addresses["data"], 5000)

    asyncio.run(main())


def test_a_node_is_told_apart_by_name_user_environment_and_devices() -> None:
    script = "import os, pathlib, socket; print(socket.gethostname(), os.environ['HELLO'], os.getuid(), os.getcwd())\n"
    script += "print(pathlib.Path('/dev/full').is_char_device(), pathlib.Path('/dev/kmsg').exists())"

    async def main() -> None:
        async with opened() as engine:
            await python(
                engine, "edge-0", script, env={"HELLO": "you"}, workdir=Path("/usr"), devices=[Path("/dev/kmsg")]
            )
            said = (await output(engine, "edge-0")).split()
            assert said == ["edge-0", "you", str(Path("/proc/self").stat().st_uid), "/usr", "True", "True"]
            await python(engine, "edge-1", script, env={"HELLO": "you"})
            assert (await output(engine, "edge-1")).split()[-1] == "False"

    asyncio.run(main())


def test_a_program_that_is_not_there_is_named_and_leaves_nothing() -> None:
    async def main() -> None:
        async with opened() as engine:
            with pytest.raises(TestbedError, match=r"device-0: its container does not start: .*no-such-program"):
                await engine.start("device-0", ["/no-such-program"], mounts=engine.image.mounts())
            assert [name for name in left_of(engine.run_id) if "device" in name] == []
            with pytest.raises(TestbedError, match="device-0 was not started"):
                await engine.state("device-0")

    asyncio.run(main())


def test_the_tail_of_what_a_node_wrote_can_be_read() -> None:
    async def main() -> None:
        async with opened() as engine:
            await python(engine, "device-0", "for i in range(9): print(i)")
            await python(engine, "device-1", "raise SystemExit('no more')")
            assert (await ended(engine, "device-0")).exit_code == 0
            assert (await engine.logs("device-0", 3)).split() == ["6", "7", "8"]
            assert (await ended(engine, "device-1")).exit_code == 1
            assert await engine.logs("device-1") == "no more\n"

    asyncio.run(main())


def test_one_run_of_an_id_at_a_time() -> None:
    async def main() -> None:
        async with opened() as engine:
            with pytest.raises(TestbedError, match=f"run {engine.run_id} has networks already.*testbed clean"):
                async with Engine(engine.run_id):
                    pass
            assert len(left_of(engine.run_id)) == 2  # the other's end took nothing of ours

    asyncio.run(main())


def test_ending_while_containers_start_leaves_nothing() -> None:
    async def main() -> None:
        run = run_id()
        engine = Engine(run)
        await engine.open()
        starts = [asyncio.ensure_future(python(engine, f"device-{i}", SLEEP)) for i in range(12)]
        while not any("device" in name for name in left_of(run)):
            await asyncio.sleep(0.01)
        for start in starts[:6]:
            start.cancel()
        await engine.close()
        await asyncio.gather(*starts, return_exceptions=True)
        assert left_of(run) == []
        await engine.close()
        with pytest.raises(TestbedError, match=f"run {run} is being ended"):
            await python(engine, "device-0", SLEEP)

    asyncio.run(main())


def test_what_cannot_be_removed_is_named_after_the_rest_is_gone() -> None:
    async def main() -> None:
        run, other = run_id(), run_id()
        async with opened(other) as foreign:
            engine = Engine(run)
            await engine.open()
            await python(engine, "device-0", SLEEP)
            guest = await python(foreign, "device-0", SLEEP)
            network = engine.client.networks.list(names=[f"ammeter-{run}-data"])[0]
            network.connect(guest.id)
            with pytest.raises(TestbedError, match=f"network ammeter-{run}-data could not be removed.*testbed clean"):
                await engine.close()
            assert left_of(run) == [f"ammeter-{run}-data"]
            foreign.client.networks.get(str(network.id)).disconnect(guest.id)
            await engine.close()
            assert left_of(run) == []

    asyncio.run(main())


def test_ctrl_c_removes_everything() -> None:
    run = run_id()
    with subprocess.Popen(
        [sys.executable, "-c", CONTROLLER, run], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as controller:
        assert controller.stdout is not None
        assert controller.stdout.readline() == "ready\n"
        assert len(left_of(run)) == 3
        controller.send_signal(signal.SIGINT)
        _, errors = controller.communicate(timeout=PATIENCE_S)
        assert "KeyboardInterrupt" in errors
    assert left_of(run) == []


@pytest.mark.slow
def test_sixteen_containers_start_together_and_leave_nothing() -> None:
    async def main() -> None:
        async with opened() as engine:
            names = [f"device-{i}" for i in range(16)]
            started = await asyncio.gather(*(python(engine, name, LISTEN) for name in names))
            for network in ("mgmt", "data"):
                assert len({node.addresses[network] for node in started}) == 16
            assert len({await engine.veth(name) for name in names}) == 16
            await asyncio.gather(*(connected(node.addresses["data"], 5000) for node in started))

    asyncio.run(main())


def test_a_run_id_that_cannot_be_part_of_a_name_is_refused() -> None:
    with pytest.raises(TestbedError, match="run id 'a b'"):
        Engine("a b")


def test_an_engine_that_is_not_open_says_so() -> None:
    engine = Engine("none")
    with pytest.raises(TestbedError, match="run none: the engine is not open"):
        _ = engine.image
    with contextlib.closing(asyncio.new_event_loop()) as loop:
        loop.run_until_complete(engine.close())

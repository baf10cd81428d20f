"""The kernel's counters against what was sent and against the wire model."""

from __future__ import annotations

import os
import threading

import pytest
from netns import cable, connection, namespaces_or_skip, transfer

from harness.errors import TestbedError
from harness.transport.wire import wire_bytes
from testbeds.docker.counters import Counters, ip_bytes, read
from testbeds.docker.shaping import Shape, Shaper

MB = 1_000_000


def test_what_came_between_and_what_of_it_was_ip() -> None:
    between = Counters(1500, 700, 10, 5) - Counters(1000, 300, 4, 2)
    assert between == Counters(500, 400, 6, 3)
    assert ip_bytes(between) == (500 - 6 * 14, 400 - 3 * 14)


def test_the_own_loopback_is_read_in_any_thread() -> None:
    found: list[Counters] = []
    thread = threading.Thread(target=lambda: found.append(read("lo")))
    thread.start()
    thread.join()
    assert found[0].rx_packets <= read("lo", os.getpid()).rx_packets


def test_an_unknown_interface_and_a_process_that_is_gone_are_named() -> None:
    with pytest.raises(TestbedError, match=r"no interface 'eth7'; it has .*lo"):
        read("eth7")
    with pytest.raises(TestbedError, match="is the container running"):
        read("eth1", 2**22 + 1)


@pytest.mark.parametrize("direction", ["up", "down"])
def test_both_ends_count_what_the_wire_model_says(direction: str) -> None:
    namespaces_or_skip()
    with cable() as made:
        Shaper(made.pid, made.inside, made.outside).apply(Shape(None), Shape(None))
        with connection(made) as flow:
            inside, outside = read(made.inside, made.pid), read(made.outside)
            transfer(flow, direction, MB)
            inside, outside = read(made.inside, made.pid) - inside, read(made.outside) - outside
    received, sent = ip_bytes(inside)
    there, back = (sent, received) if direction == "up" else (received, sent)
    assert there == pytest.approx(wire_bytes(MB, "tcp"), rel=0.01)
    assert back < 0.05 * there  # acknowledgements, which the model leaves out
    assert ip_bytes(outside) == pytest.approx((sent, received), rel=0.01)

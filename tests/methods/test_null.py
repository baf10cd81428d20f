"""Null: as many empty messages and computations of nothing as were asked for, and no time for anything else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from harness.message import HEADER_BYTES

Runner = Callable[..., Any]


@pytest.mark.parametrize("mode", ["learn", "timing"])
@pytest.mark.parametrize(("messages", "computes"), [(7, 5), (0, 3), (3, 0)])
def test_there_is_nothing_but_what_was_asked_for(run: Runner, mode: str, messages: int, computes: int) -> None:
    done = run({"name": "null", "messages": messages, "computes": computes}, mode=mode)
    assert done.payload_bytes("ping") == 3 * (messages + 1) * HEADER_BYTES  # one more ends the stream
    assert done.payload_bytes("pong") == 3 * messages * HEADER_BYTES
    assert done.tags() == ({"ping", "pong"} if messages else {"ping"})
    rows = done.rows("compute")
    assert len(rows) == 3 * computes
    assert (rows["end_s"] == rows["start_s"]).all()
    assert done.evaluated == []
    assert done.adds_up()


def test_a_device_that_dies_does_not_keep_the_server(run: Runner) -> None:
    healthy = run({"name": "null", "messages": 20})
    fault = {"node": "device-1", "at_s": healthy.outcome.end_s / 2}
    done = run({"name": "null", "messages": 20}, testbed={"faults": [fault]})
    assert len(done.rows("transfer", tag="pong", src="server", status=0)) < 60
    assert done.adds_up()

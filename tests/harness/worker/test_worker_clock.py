"""harness/worker/clock.py: one clock for all nodes, divided by the dilation."""

from __future__ import annotations

import time

import pytest

from harness.worker import clock as module
from harness.worker.clock import RunClock


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The host's clock, in seconds; set its only item."""
    now_s = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now_s[0])
    return now_s


def test_the_run_s_time_is_the_controller_s_since_the_origin_over_the_dilation(host: list[float]):
    clock = RunClock(4.0)
    clock.offset_s, clock.origin_s = -900.0, 105.0
    assert clock.now() == (1000.0 - 900.0 - 105.0) / 4
    assert clock.until_start_s() == 5.0
    host[0] += 13.0
    assert clock.now() == 2.0
    assert clock.until_start_s() == -8.0


def test_two_hosts_with_aligned_clocks_read_the_same(host: list[float]):
    one, other = RunClock(2.0), RunClock(2.0)
    one.origin_s = other.origin_s = 990.0
    host[0] = 1003.0
    mine = one.now()
    host[0] = 53.0  # the other's host began to count 950 s later
    other.offset_s = 950.0
    assert other.now() == mine == 6.5


def test_before_the_start_it_counts_from_its_making(host: list[float]):
    clock = RunClock()
    host[0] += 0.25
    assert clock.now() == 0.25


def test_a_second_of_the_run_really_takes_the_dilation():
    assert RunClock(3.0).real(2.0) == 6.0
    began = time.monotonic()
    clock = RunClock()
    assert clock.now() <= time.monotonic() - began

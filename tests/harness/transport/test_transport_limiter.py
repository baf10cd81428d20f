"""The bucket and the delay on a clock that the test turns, and once over a real connection."""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transport_ends import ends, message, run

from harness.transport.limiter import Delay, TokenBucket


class Clock:
    """Timers whose time passes when asked; each fires `late_s` late."""

    def __init__(self, late_s: float = 0.0) -> None:
        self.now_s = 100.0
        self.late_s = late_s
        self._due: list[list[Any]] = []
        self._count = 0

    def time(self) -> float:
        return self.now_s

    def call_later(self, delay: float, callback: Callable[[], None]) -> Any:
        self._count += 1
        entry = [self.now_s + delay + self.late_s, self._count, callback]
        heapq.heappush(self._due, entry)

        class Handle:
            def cancel(self) -> None:
                entry[2] = lambda: None

        return Handle()

    def run(self, until_s: float) -> None:
        while self._due and self._due[0][0] <= until_s:
            self.now_s, _, callback = heapq.heappop(self._due)
            callback()
        self.now_s = until_s


class Sender:
    """Asks for slice after slice, as long as there is time."""

    def __init__(self, bucket: TokenBucket, size: int) -> None:
        self.sent = 0
        self._bucket, self._size = bucket, size

    def go(self) -> None:
        while self._bucket.take(self._size, self.granted):
            self.sent += self._size

    def granted(self) -> None:
        self.sent += self._size
        self.go()


@pytest.mark.parametrize("late_s", [0.0, 0.003, 0.05])
@pytest.mark.parametrize("rate", [625e3, 2.5e6, 12.5e6, 1e9])
def test_the_mean_rate_is_kept_however_late_timers_are(rate: float, late_s: float) -> None:
    clock = Clock(late_s)
    bucket = TokenBucket(rate, timers=clock)
    sender = Sender(bucket, bucket.grain_bytes)
    sender.go()
    clock.run(clock.now_s + 20.0)
    assert sender.sent == pytest.approx(20.0 * rate, rel=0.01)


def test_those_who_share_a_bucket_get_even_shares() -> None:
    clock = Clock()
    bucket = TokenBucket(1e6, timers=clock)
    senders = [Sender(bucket, 5000) for _ in range(4)]
    for sender in senders:
        sender.go()
    clock.run(clock.now_s + 10.0)
    assert [sender.sent for sender in senders] == pytest.approx([2.5e6] * 4, rel=0.02)


def test_a_pause_earns_one_burst_and_no_more() -> None:
    clock = Clock()
    bucket = TokenBucket(1000.0, burst_bytes=50, timers=clock)
    clock.run(clock.now_s + 60.0)
    sender = Sender(bucket, 10)
    sender.go()
    assert sender.sent == 50


def test_without_a_burst_a_pause_earns_nothing() -> None:
    clock = Clock()
    bucket = TokenBucket(1000.0, timers=clock)
    clock.run(clock.now_s + 60.0)
    began_s, granted = clock.now_s, []
    assert not bucket.take(200, lambda: granted.append(clock.now_s))
    clock.run(clock.now_s + 1.0)
    assert granted == [pytest.approx(began_s + 0.2, abs=0.002)]


def test_the_rate_changes_while_somebody_waits_and_zero_is_an_outage() -> None:
    clock = Clock()
    bucket = TokenBucket(1000.0, burst_bytes=10, timers=clock)
    sender = Sender(bucket, 10)
    sender.go()
    clock.run(clock.now_s + 10.0)
    bucket.set_rate(0.0)
    before = sender.sent
    clock.run(clock.now_s + 100.0)
    assert sender.sent == before == pytest.approx(10_000, rel=0.01)
    bucket.set_rate(5000.0)
    clock.run(clock.now_s + 10.0)
    assert sender.sent - before == pytest.approx(50_000, rel=0.01)
    assert not TokenBucket(0.0, timers=clock).take(1, lambda: None)


def test_what_is_forgotten_costs_nothing() -> None:
    clock = Clock()
    bucket = TokenBucket(1000.0, burst_bytes=100, timers=clock)
    gone, here = Sender(bucket, 100), Sender(bucket, 100)
    gone.go()
    here.go()
    bucket.forget(gone.granted)
    clock.run(clock.now_s + 1.0)
    assert (gone.sent, here.sent) == (100, 1000)


@pytest.mark.parametrize("arguments", [(-1.0,), (1.0, -1.0)])
def test_impossible_buckets_are_refused(arguments: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="nothing pass"):
        TokenBucket(*arguments, timers=Clock())


def test_a_delay_keeps_the_order_and_its_seed() -> None:
    def times(seed: int) -> list[float]:
        delay = Delay(0.05, 0.05, seed)
        return [delay.release(number / 1000) for number in range(500)]

    assert times(1) == sorted(times(1)) == times(1) != times(2)
    assert all(now / 1000 <= due <= now / 1000 + 0.1 for now, due in enumerate(times(1)))
    assert Delay(0.02).release(1.0) == 1.02
    with pytest.raises(ValueError, match="impossible"):
        Delay(0.01, 0.02)


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["out", "in"])
def test_a_transfer_takes_what_its_rate_says(direction: str) -> None:
    """Generous on purpose: the machine may be busy; that the bucket is exact is shown above."""

    async def scenario() -> None:
        bucket = TokenBucket(4e6)
        options = {"outgoing": {"bucket": bucket}} if direction == "out" else {"incoming": {"bucket": bucket}}
        async with ends(**options) as pair:
            begun = time.monotonic()
            transfer = await pair.channel.post(message(torch.zeros(1_000_000))).settled
            took = time.monotonic() - begun
            assert 0.9 < took < 3.0
            assert transfer.arrived_s - transfer.started_s > 0.9
            assert torch.equal(pair.arrivals[0].message.payload, torch.zeros(1_000_000))

    run(scenario)


def test_a_delayed_channel_is_late_and_in_order() -> None:
    async def scenario() -> None:
        async with ends(outgoing={"delay": Delay(0.02, 0.01, 3)}) as pair:
            transfers = [pair.channel.post(message([number], number)) for number in range(5)]
            for transfer in transfers:
                await transfer.settled
                assert transfer.arrived_s - transfer.started_s >= 0.01
            assert [arrival.message.payload for arrival in pair.arrivals] == [[number] for number in range(5)]

    run(scenario)


def test_an_outage_holds_a_transfer_until_it_is_over() -> None:
    async def scenario() -> None:
        bucket = TokenBucket(0.0)
        async with ends(outgoing={"bucket": bucket, "stall_s": 0.01}) as pair:
            transfer = pair.channel.post(message(torch.zeros(100_000)))
            done, _ = await asyncio.wait([transfer.settled], timeout=0.1)
            assert not done
            assert not pair.arrivals
            bucket.set_rate(1e9)
            assert (await transfer.settled).error is None

    run(scenario)

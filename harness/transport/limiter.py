"""Pacing by the wall clock: a token bucket per direction of a node, and a delay per channel.

A bucket is shared by all connections of its direction; each asks for one slice at a time and they are served in turn,
so they share the rate evenly. A slice passes when its time at the rate is over, as on a wire: a pause saves nothing up
(unless a burst is asked for), or small messages would look instantaneous. While somebody waits, tokens pile up without
a bound: a timer that fires late, or a process that was not running, costs no rate, as it would not on a real interface,
which goes on sending meanwhile. What is counted are the bytes of frames; records of TLS and headers of TCP come on top.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

SLICE_BYTES = 2**20
_PACKET_BYTES = 1600
_CRUMB_BYTES = 1.0  # so much may be missing (and is owed): a clock cannot tell shorter waits from none
_GRAIN_S = 0.001


class Timers(Protocol):
    """What a bucket needs of an event loop."""

    def time(self) -> float: ...

    def call_later(self, delay: float, callback: Callable[[], None]) -> Any: ...


class TokenBucket:
    """Lets bytes pass at a rate.

    Args:
        rate_bytes_per_s: 0 lets nothing pass until `set_rate`.
        burst_bytes: what may pass at once after a pause.
        timers: the event loop; default: the running one.
    """

    def __init__(self, rate_bytes_per_s: float, burst_bytes: float = 0.0, timers: Timers | None = None) -> None:
        if rate_bytes_per_s < 0 or burst_bytes < 0:
            raise ValueError(f"a rate of {rate_bytes_per_s} and a burst of {burst_bytes} bytes let nothing pass")
        self._timers: Timers = timers or asyncio.get_running_loop()
        self._rate = rate_bytes_per_s
        self.burst_bytes = burst_bytes
        self._tokens = burst_bytes
        self._at_s = self._timers.time()
        self._waiting: deque[tuple[int, Callable[[], None]]] = deque()
        self._timer: Any = None
        self._serving = False

    @property
    def rate_bytes_per_s(self) -> float:
        return self._rate

    @property
    def grain_bytes(self) -> int:
        """How much to ask for at a time: 1 ms at the rate, at least a packet, at most a slice."""
        return int(min(SLICE_BYTES, max(_PACKET_BYTES, self._rate * _GRAIN_S)))

    def set_rate(self, rate_bytes_per_s: float) -> None:
        """Change the rate from now on; what waits goes on at the new one."""
        if rate_bytes_per_s < 0:
            raise ValueError(f"a rate of {rate_bytes_per_s} bytes per second is negative")
        self._refill(bounded=not self._waiting)
        self._rate = rate_bytes_per_s
        self._serve()

    def take(self, count: int, granted: Callable[[], None]) -> bool:
        """Ask for `count` bytes: True if they may pass now, else `granted` is called when they may."""
        if not self._waiting:
            if not self._serving:
                self._refill(bounded=True)
            if self._rate > 0 and self._tokens >= count - _CRUMB_BYTES:
                self._tokens -= count
                return True
        self._waiting.append((count, granted))
        if not self._serving:
            self._arm()
        return False

    def forget(self, granted: Callable[[], None]) -> None:
        """Withdraw what still waits under this callback."""
        self._waiting = deque(entry for entry in self._waiting if entry[1] != granted)

    def _refill(self, bounded: bool) -> None:
        now_s = self._timers.time()
        tokens = self._tokens + (now_s - self._at_s) * self._rate
        self._tokens = min(tokens, self.burst_bytes) if bounded else tokens
        self._at_s = now_s

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._waiting and self._rate > 0:
            missing = self._waiting[0][0] - self._tokens
            self._timer = self._timers.call_later(max(0.0, missing / self._rate), self._serve)

    def _serve(self) -> None:
        if self._waiting:
            self._refill(bounded=False)
        self._serving = True
        try:
            while self._waiting and self._rate > 0:
                count, granted = self._waiting[0]
                if self._tokens < count - _CRUMB_BYTES:
                    break
                self._waiting.popleft()
                self._tokens -= count
                granted()  # which may ask again
        finally:
            self._serving = False
            if not self._waiting:  # what nobody asked for in time is lost
                self._tokens = min(self._tokens, self.burst_bytes)
            self._arm()


class Delay:
    """When a slice that leaves now gets there: latency and even jitter, in seconds; the order is kept.

    Args:
        jitter_s: each slice takes between `latency_s - jitter_s` and `latency_s + jitter_s`, unless one before it
            gets there later.
        seed: of the jitter.
    """

    def __init__(self, latency_s: float, jitter_s: float = 0.0, seed: int = 0) -> None:
        if latency_s < 0 or jitter_s < 0 or jitter_s > latency_s:
            raise ValueError(f"a latency of {latency_s} s with a jitter of {jitter_s} s is impossible")
        self.latency_s = latency_s
        self.jitter_s = jitter_s
        self._random = random.Random(seed)
        self._last_s = 0.0

    def release(self, now_s: float) -> float:
        """Return when what leaves at `now_s` gets there."""
        jitter_s = self._random.uniform(-self.jitter_s, self.jitter_s) if self.jitter_s else 0.0
        self._last_s = max(self._last_s, now_s + self.latency_s + jitter_s)
        return self._last_s

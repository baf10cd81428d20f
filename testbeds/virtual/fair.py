"""Max-min fair sharing of links, in two ways that give the same rates.

`Hub` serves the star: every flow crosses its own leaf link (capacity c) and one hub link shared by all
(capacity C). Max-min fairness then gives each flow min(c, L), where the water level L is such that the rates
add up to C. Flows with the same cap always have the same rate, so they form one class with one service clock
(bytes served per flow); classes above the level share one more clock. A start or an end moves the level and
touches only the classes it passes: O(log flows) beside them, whatever the number of flows.

`water_fill` serves any set of paths by progressive filling, O(flows x links) at every start and end.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable
from heapq import heapify, heappop, heappush
from math import inf
from typing import Any, Protocol


class Clock(Protocol):
    """What sharing needs of the kernel."""

    now: float
    serial: int
    heap: list[tuple[float, int, Callable[[Any], Any], Any]]

    def at(self, time: float, call: Callable[[Any], Any], argument: Any = None) -> None: ...


class Link:
    """One direction of one interface.

    Attributes:
        rate: bytes per second (inf = never a bottleneck).
        degree: with how many peers it may talk; of two links on a path the one with more is the hub.
    """

    __slots__ = ("degree", "flows", "hub", "name", "rate")

    def __init__(self, name: str, rate: float, degree: int = 1) -> None:
        if not rate > 0:
            raise ValueError(f"link {name}: rate {rate} is not positive")
        self.name = name
        self.rate = rate
        self.degree = degree
        self.flows: list[Flow] = []  # as a leaf: the flows that cross it now
        self.hub: Hub | None = None  # as a leaf: the hub they all cross

    def __repr__(self) -> str:
        return f"Link({self.name}, {self.rate:g} B/s)"


class Flow:
    """One transfer in progress; `done(flow)` is called when its last byte has left."""

    __slots__ = ("done", "finish_at", "klass", "leaf", "path", "remaining", "size")

    def __init__(self, path: tuple[Link, ...], size: float, done: Callable[[Any], Any]) -> None:
        self.path = path
        self.size = size
        self.done = done
        self.remaining = size
        self.finish_at = 0.0  # service clock of its class at which it is finished
        self.klass: _Class | None = None
        self.leaf: Link | None = None


class _Class:
    """Flows with the same cap; `served` bytes per flow at time `since` (or at hub level clock `since_level`)."""

    __slots__ = ("alive", "cap", "flows", "level", "serial", "served", "since", "stamp")

    def __init__(self, cap: float) -> None:
        self.cap = cap
        self.flows: list[tuple[float, int, Flow]] = []  # heap by finish_at
        self.alive = 0
        self.level = False  # True: its rate is the water level, not its cap
        self.served = 0.0
        self.since = 0.0
        self.stamp = 0
        self.serial = 0

    def __lt__(self, other: _Class) -> bool:
        return self.cap < other.cap

    def first(self) -> Flow | None:
        """Return the flow that is finished first, dropping entries of flows that left."""
        flows = self.flows
        while flows:
            finish_at, _, flow = flows[0]
            if flow.klass is self and flow.finish_at == finish_at:
                return flow
            heappop(flows)
        return None


class Hub:
    """All flows through one shared link, each with a cap of its own."""

    __slots__ = (
        "_by_time",
        "_capped_rate",
        "_classes",
        "_clock",
        "_count",
        "_finished",
        "_level_alive",
        "_level_clock",
        "_level_heap",
        "_order",
        "_rate_since",
        "_scheduled",
        "_serial",
        "_solo",
        "_solo_rate",
        "_solo_since",
        "_solo_stamp",
        "_split",
        "level",
        "rate",
    )

    def __init__(self, clock: Clock, rate: float, finished: Callable[[Flow], None]) -> None:
        self.rate = rate
        self._finished = finished
        self._clock = clock
        self._count = 0
        self._serial = 0
        # one flow alone needs none of the rest
        self._solo: Flow | None = None
        self._solo_rate = 0.0
        self._solo_since = 0.0
        self._solo_stamp = 0
        self._reset()

    def _reset(self) -> None:
        self._classes: dict[float, _Class] = {}
        self._order: list[_Class] = []  # by cap; those before _split are capped, the rest run at the level
        self._split = 0
        self._capped_rate = 0.0  # sum of the rates of capped flows
        self._level_alive = 0  # number of flows at the level
        self.level = inf
        self._level_clock = 0.0  # bytes served per flow at the level
        self._rate_since = self._clock.now
        self._by_time: list[tuple[float, int, _Class]] = []  # capped classes by finishing time
        self._level_heap: list[tuple[float, int, _Class]] = []  # level classes by finishing level clock
        self._scheduled = inf

    def __len__(self) -> int:
        return self._count

    # ---- one flow alone -------------------------------------------------------------------------------------

    def start(self, flow: Flow, cap: float) -> None:
        """Begin to serve `flow` (its `remaining` bytes) at no more than `cap` bytes per second."""
        clock = self._clock
        if self._count == 0:
            self._count = 1
            self._solo = flow
            rate = self._solo_rate = cap if cap < self.rate else self.rate
            self._solo_since = clock.now
            self._solo_stamp += 1
            flow.finish_at = cap
            clock.serial += 1  # Kernel.at, written out
            heappush(
                clock.heap,
                (clock.now + flow.remaining / rate, clock.serial, self._solo_done, self._solo_stamp),
            )
            return
        if self._solo is not None:
            self._crowd()
        self._count += 1
        self._advance()
        self._join(flow, cap)
        self._rebalance()
        self._schedule()

    def _solo_done(self, stamp: int) -> None:
        flow = self._solo
        if stamp != self._solo_stamp or flow is None:
            return
        self._solo = None
        self._count = 0
        flow.remaining = 0.0
        self._finished(flow)

    def _crowd(self) -> None:
        """A second flow comes: give the one that was alone a class."""
        flow, self._solo = self._solo, None
        assert flow is not None
        self._solo_stamp += 1
        cap = flow.finish_at
        flow.remaining = max(0.0, flow.remaining - self._solo_rate * (self._clock.now - self._solo_since))
        self._reset()
        self._join(flow, cap)
        self._rebalance()

    # ---- many -----------------------------------------------------------------------------------------------

    def move(self, flow: Flow, cap: float) -> None:
        """Change the cap of a flow that is being served."""
        if self._solo is flow:
            self._crowd()
            self._schedule()
        self._advance()
        self._leave(flow)
        self._join(flow, cap)
        self._rebalance()
        self._schedule()

    def remove(self, flow: Flow) -> None:
        """Stop serving a flow; its `remaining` bytes are up to date afterwards."""
        if self._solo is flow:
            flow.remaining = max(0.0, flow.remaining - self._solo_rate * (self._clock.now - self._solo_since))
            self._solo = None
            self._solo_stamp += 1
            self._count = 0
            return
        self._count -= 1
        self._advance()
        self._leave(flow)
        self._rebalance()
        self._schedule()

    def rate_of(self, flow: Flow) -> float:
        """Return the rate at which a flow is served now, in bytes per second."""
        if self._solo is flow:
            return self._solo_rate
        assert flow.klass is not None
        return self.level if flow.klass.level else flow.klass.cap

    def _advance(self) -> None:
        """Bring the level clock up to now."""
        now = self._clock.now
        if self._level_alive:
            self._level_clock += self.level * (now - self._rate_since)
        self._rate_since = now

    def _served(self, klass: _Class) -> float:
        """Bytes served per flow of a class until now."""
        if klass.level:
            return klass.served + (self._level_clock - klass.since)
        return klass.served + klass.cap * (self._clock.now - klass.since)

    def _join(self, flow: Flow, cap: float) -> None:
        klass = self._classes.get(cap)
        if klass is None:
            klass = self._classes[cap] = _Class(cap)
            at = bisect_left(self._order, klass)
            self._order.insert(at, klass)
            klass.level = at > self._split or (at == self._split and cap > self.level)
            if not klass.level:
                self._split += 1
            klass.since = self._level_clock if klass.level else self._clock.now
        flow.finish_at = self._served(klass) + flow.remaining
        flow.klass = klass
        self._serial += 1
        heappush(klass.flows, (flow.finish_at, self._serial, flow))
        klass.alive += 1
        if klass.level:
            self._level_alive += 1
        else:
            self._capped_rate += cap
        if klass.flows[0][2] is flow:
            self._announce(klass)

    def _leave(self, flow: Flow) -> None:
        klass = flow.klass
        assert klass is not None
        flow.remaining = max(0.0, flow.finish_at - self._served(klass))
        flow.klass = None
        klass.alive -= 1
        if klass.level:
            self._level_alive -= 1
        else:
            self._capped_rate -= klass.cap
        if klass.alive == 0:
            at = bisect_left(self._order, klass)
            del self._order[at]
            if at < self._split:
                self._split -= 1
            del self._classes[klass.cap]
            klass.stamp += 1
            if not self._order:
                self._capped_rate = 0.0  # forget rounding errors whenever the hub is empty
                self._level_clock = 0.0
        else:
            self._announce(klass)

    def _rebalance(self) -> None:
        """Find the level, moving the classes that it passes."""
        order = self._order
        while True:
            if self._level_alive:
                level = (self.rate - self._capped_rate) / self._level_alive
            else:
                level = inf
                if self._capped_rate > self.rate * (1 + 1e-12):
                    level = 0.0  # too much is promised: the largest cap must give way
            # the slack keeps a cap that equals the level, up to rounding, from being moved to and fro
            if self._split and order[self._split - 1].cap > level * (1 + 1e-12):
                self._split -= 1
                self._switch(order[self._split], to_level=True)
            elif self._split < len(order) and order[self._split].cap <= level:
                self._switch(order[self._split], to_level=False)
                self._split += 1
            else:
                break
        self.level = level

    def _switch(self, klass: _Class, to_level: bool) -> None:
        klass.served = self._served(klass)
        klass.level = to_level
        if to_level:
            klass.since = self._level_clock
            self._capped_rate = self._capped_rate - klass.cap * klass.alive if self._split else 0.0
            self._level_alive += klass.alive
        else:
            klass.since = self._clock.now
            self._capped_rate += klass.cap * klass.alive
            self._level_alive -= klass.alive
        self._announce(klass)

    def _announce(self, klass: _Class) -> None:
        """Put a class where its next finisher belongs; an older announcement becomes void."""
        flow = klass.first()
        klass.stamp += 1
        if flow is None:
            return
        left = flow.finish_at - klass.served
        if klass.level:
            heappush(self._level_heap, (klass.since + left, klass.stamp, klass))
        else:
            heappush(self._by_time, (klass.since + left / klass.cap, klass.stamp, klass))

    def _next(self) -> tuple[float, _Class | None]:
        """Return when the next flow is finished and its class."""
        by_time, level_heap = self._by_time, self._level_heap
        while by_time and (by_time[0][1] != by_time[0][2].stamp or by_time[0][2].level):
            heappop(by_time)
        while level_heap and (level_heap[0][1] != level_heap[0][2].stamp or not level_heap[0][2].level):
            heappop(level_heap)
        time, klass = (by_time[0][0], by_time[0][2]) if by_time else (inf, None)
        if level_heap and self.level > 0:
            at = self._rate_since + max(0.0, level_heap[0][0] - self._level_clock) / self.level
            if at < time:
                time, klass = at, level_heap[0][2]
        return time, klass

    def _schedule(self) -> None:
        time, _ = self._next()
        if len(self._by_time) + len(self._level_heap) > 64 + 4 * len(self._order):
            self._compact()
        if time < self._scheduled:
            self._scheduled = time
            self._clock.at(max(time, self._clock.now), self._fire, time)

    def _compact(self) -> None:
        for heap, level in ((self._by_time, False), (self._level_heap, True)):
            heap[:] = [entry for entry in heap if entry[1] == entry[2].stamp and entry[2].level is level]
            heapify(heap)

    def _fire(self, scheduled: float) -> None:
        if scheduled != self._scheduled:
            return
        self._scheduled = inf
        finished: list[Flow] = []
        self._advance()
        now = self._clock.now
        while True:
            time, klass = self._next()
            if klass is None or time > now:
                break
            flow = klass.first()
            assert flow is not None
            self._count -= 1
            self._leave(flow)
            flow.remaining = 0.0
            finished.append(flow)
            # flows that started together and are equally long end together
            while klass.alive and (other := klass.first()) is not None and other.finish_at <= flow.finish_at:
                self._count -= 1
                self._leave(other)
                other.remaining = 0.0
                finished.append(other)
            self._rebalance()
        self._schedule()
        for flow in finished:
            self._finished(flow)

    def drain(self) -> list[Flow]:
        """Stop serving every flow and return them, in order of their starts, `remaining` up to date."""
        flows = [entry[2] for klass in self._classes.values() for entry in klass.flows if entry[2].klass is klass]
        if self._solo is not None:
            flows = [self._solo]
        for flow in flows:
            self.remove(flow)
        return flows


def water_fill(paths: Iterable[tuple[Link, ...]]) -> list[float]:
    """Return the max-min fair rate of each path (bytes per second) by progressive filling.

    Flows with equal paths have equal rates, so paths are counted first. O(distinct paths x links).
    """
    flows = list(paths)
    count: dict[tuple[Link, ...], int] = {}
    for path in flows:
        count[path] = count.get(path, 0) + 1
    left: dict[Link, float] = {}
    users: dict[Link, int] = {}
    for path, number in count.items():
        for link in path:
            left[link] = link.rate
            users[link] = users.get(link, 0) + number
    rates: dict[tuple[Link, ...], float] = {path: inf for path in count if not path}
    open_paths = [path for path in count if path]
    while open_paths:
        tightest = min((link for link in left if users[link]), key=lambda link: left[link] / users[link])
        rate = left[tightest] / users[tightest]
        still_open = []
        for path in open_paths:
            if tightest not in path:
                still_open.append(path)
                continue
            rates[path] = rate
            for link in path:
                left[link] = max(0.0, left[link] - rate * count[path])
                users[link] -= count[path]
        open_paths = still_open
    return [rates[path] for path in flows]

"""Max-min fair sharing of links, in two ways that give the same rates.

`Hub` serves the star: every flow crosses its own leaf link (capacity c) and one hub link shared by all
(capacity C). Max-min fairness then gives each flow min(c, L), where the water level L is such that the rates
add up to C. Flows of one leaf form a bundle (cap c / flows); bundles with the same cap always have the same rate
and form a class with one service clock (bytes served per flow); classes above the level share one more clock. A
start or an end moves one bundle, moves the level, and touches only the classes it passes: O(log flows) beside
them, whatever the number of flows.

`water_fill` serves any set of paths by progressive filling, O(flows x links) at every start and end.

Rates may change while flows are on a link, down to 0 (an outage: its flows stand still). A new rate of the hub
moves the level, a new rate of a leaf moves its bundle to another class: both cost what a start costs.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable
from heapq import heapify, heappop, heappush
from math import inf
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from testbeds._fleet.schedule import Schedule

ROUNDING = 1e-9
"""A flow of which less than this share is left when a rate changes has its last byte at that moment."""


class Clock(Protocol):
    """What sharing needs of the kernel."""

    now: float
    serial: int
    heap: list[tuple[float, int, Callable[[Any], Any], Any]]

    def at(self, time: float, call: Callable[[Any], Any], argument: Any = None) -> None: ...


class Link:
    """One direction of one interface, or a medium that several share.

    Attributes:
        rate: bytes per second now (inf = never a bottleneck, 0 = an outage); `Network.set_rate` changes it.
        degree: with how many peers it may talk; of two links on a path the one with more is the hub.
        role: "hub" or "leaf", by its first use; a link that would have to be both ends the star pattern.
        bundle: as a leaf, the flows that cross it.
        schedule: how its rate changes by itself, None if it does not.
    """

    __slots__ = ("bundle", "degree", "name", "rate", "role", "schedule")

    def __init__(self, name: str, rate: float, degree: int = 1) -> None:
        if not rate > 0:
            raise ValueError(f"link {name}: rate {rate} is not positive")
        self.name = name
        self.rate = rate
        self.degree = degree
        self.role = ""
        self.bundle: Bundle | None = None
        self.schedule: Schedule | None = None

    def __repr__(self) -> str:
        return f"Link({self.name}, {self.rate:g} B/s)"


class Flow:
    """One transfer in progress; `done(flow)` is called when its last byte has left."""

    __slots__ = ("bundle", "done", "finish_at", "path", "remaining", "size")

    def __init__(self, path: tuple[Link, ...], size: float, done: Callable[[Any], Any]) -> None:
        self.path = path
        self.size = size
        self.done = done
        self.remaining = size
        self.finish_at = 0.0  # service clock of its bundle at which it is finished
        self.bundle: Bundle | None = None


class Bundle:
    """Flows that share one leaf and one hub: they always have the same rate.

    `served` is the bytes served per flow of the bundle when its class's clock stood at `base`.
    """

    __slots__ = ("alive", "base", "capacity", "flows", "hub", "klass", "served", "stamp")

    def __init__(self, hub: Hub, capacity: float) -> None:
        self.hub = hub
        self.capacity = capacity  # of the leaf; inf without one
        self.flows: list[tuple[float, int, Flow]] = []  # heap by finish_at
        self.alive = 0
        self.klass: _Class | None = None
        self.served = 0.0
        self.base = 0.0
        self.stamp = 0

    @property
    def cap(self) -> float:
        """The most one of its flows can have."""
        return self.capacity / self.alive

    def first(self) -> Flow:
        """Return the flow that is finished first, dropping entries of flows that left."""
        flows = self.flows
        while True:
            finish_at, _, flow = flows[0]
            if flow.bundle is self and flow.finish_at == finish_at:
                return flow
            heappop(flows)


class _Class:
    """Bundles whose flows have the same cap: one service clock for all of them."""

    __slots__ = ("alive", "bundles", "cap", "level", "served", "since", "stamp")

    def __init__(self, cap: float) -> None:
        self.cap = cap
        self.bundles: list[tuple[float, int, Bundle]] = []  # heap by the class clock of their next end
        self.alive = 0  # flows
        self.level = False  # True: their rate is the water level, not the cap
        self.served = 0.0  # the class clock at time `since` (at hub level clock `since` if at the level)
        self.since = 0.0
        self.stamp = 0

    def __lt__(self, other: _Class) -> bool:
        return self.cap < other.cap

    def first(self) -> tuple[float, Bundle]:
        """Return the class clock of the next end and its bundle, dropping void entries."""
        bundles = self.bundles
        while True:
            at, stamp, bundle = bundles[0]
            if bundle.stamp == stamp and bundle.klass is self:
                return at, bundle
            heappop(bundles)


class Hub:
    """All flows through one shared link, each with a cap of its own."""

    __slots__ = (
        "_by_time",
        "_capped_rate",
        "_classes",
        "_clock",
        "_count",
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
        "_uncapped",
        "level",
        "rate",
        "redirect",
    )

    def __init__(self, clock: Clock, rate: float) -> None:
        self.rate = rate
        self.redirect: Callable[[Flow], None] | None = None  # where flows go once the star pattern has ended
        self._clock = clock
        self._count = 0
        self._serial = 0
        self._uncapped = Bundle(self, inf)
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
        self._by_time: list[tuple[float, int, _Class]] = []  # capped classes by the time of their next end
        self._level_heap: list[tuple[float, int, _Class]] = []  # level classes by the level clock of their next
        self._scheduled = inf

    def __len__(self) -> int:
        return self._count

    # ---- one flow alone ------------------------------------------------------------------------------------

    def start(self, flow: Flow, bundle: Bundle | None = None) -> None:
        """Begin to serve the `remaining` bytes of a flow, as one of `bundle` (None: it has no cap)."""
        if self.redirect is not None:
            self.redirect(flow)
            return
        if bundle is None:
            bundle = self._uncapped
        flow.bundle = bundle
        if self._count == 0:
            self._count = bundle.alive = 1
            self._solo = flow
            clock = self._clock
            rate = self._solo_rate = bundle.capacity if bundle.capacity < self.rate else self.rate
            self._solo_since = clock.now
            self._solo_stamp += 1
            try:
                ends = clock.now + flow.remaining / rate
            except ZeroDivisionError:  # an outage: the next change of a rate goes on
                return
            clock.serial += 1  # Kernel.at, written out
            heappush(clock.heap, (ends, clock.serial, self._solo_done, self._solo_stamp))
            return
        if self._solo is not None:
            self._crowd(self._solo)
        self._count += 1
        self._advance()
        klass = None if bundle.alive else self._classes.get(bundle.capacity)
        if klass is None:
            self._add(flow, bundle)
            self._rebalance()
            self._schedule()
            return
        # the one flow of its leaf, and there are others with the same cap: `_add`, written out
        serial = self._serial = self._serial + 2
        bundle.alive = 1
        bundle.served = 0.0
        ends = flow.finish_at = flow.remaining
        bundle.flows = [(ends, serial - 1, flow)]
        if klass.level:
            base = klass.served + (self._level_clock - klass.since)
            self._level_alive += 1
        else:
            base = klass.served + klass.cap * (self._clock.now - klass.since)
            self._capped_rate += klass.cap
        bundle.klass = klass
        bundle.base = base
        bundle.stamp = serial
        klass.alive += 1
        bundles = klass.bundles
        heappush(bundles, (base + ends, serial, bundle))
        first = bundles[0][1] == serial
        if first:
            self._announce(klass)
        self._rebalance()
        if first or self._scheduled == inf:  # else another ends first, and one flow more lets nobody end earlier
            self._schedule()

    def _solo_done(self, stamp: int) -> None:
        flow = self._solo
        if stamp != self._solo_stamp or flow is None:
            return
        self._solo = None
        self._count = 0
        assert flow.bundle is not None
        flow.bundle.alive = 0
        flow.bundle = None
        flow.remaining = 0.0
        flow.done(flow)

    def _crowd(self, flow: Flow) -> None:
        """A second flow comes: give the one that was alone a class."""
        bundle = flow.bundle
        assert bundle is not None
        self._solo = None
        self._solo_stamp += 1
        flow.remaining = max(0.0, flow.remaining - self._solo_rate * (self._clock.now - self._solo_since))
        self._reset()
        bundle.alive = 0
        bundle.flows.clear()
        self._add(flow, bundle)
        self._rebalance()

    # ---- rates that change ---------------------------------------------------------------------------------

    def set_rate(self, rate: float) -> None:
        """Give the hub another rate from now on, bytes per second; 0 = an outage."""
        if self._solo is not None or self._count == 0:
            self.rate = rate
            self._set_solo()
            return
        finished = self._settle()
        self.rate = rate
        self._resume(finished)

    def set_capacity(self, bundle: Bundle, capacity: float) -> None:
        """Give the leaf of a bundle of this hub another rate from now on, bytes per second; 0 = an outage."""
        if self._solo is not None or not bundle.alive:
            bundle.capacity = capacity
            if self._solo is not None and self._solo.bundle is bundle:
                self._set_solo()
            return
        finished = self._settle()
        if bundle.alive:
            self._exit(bundle)
            bundle.capacity = capacity
            self._enter(bundle)
        else:
            bundle.capacity = capacity
        self._resume(finished)

    def _set_solo(self) -> None:
        """The rate of the flow that is alone may have changed."""
        flow = self._solo
        if flow is None:
            return
        bundle, clock = flow.bundle, self._clock
        assert bundle is not None
        rate = min(bundle.capacity, self.rate)
        if rate == self._solo_rate:
            return
        flow.remaining -= self._solo_rate * (clock.now - self._solo_since)
        self._solo_rate, self._solo_since = rate, clock.now
        if flow.remaining <= ROUNDING * flow.size:
            self._solo_done(self._solo_stamp)
            return
        self._solo_stamp += 1
        if rate > 0:
            clock.at(clock.now + flow.remaining / rate, self._solo_done, self._solo_stamp)

    def _settle(self) -> list[Flow]:
        """Bring the clocks up to now, before a rate changes, and take the flows out whose last byte leaves now.

        Left in, a flow that ends when an outage begins would wait for the outage's end, for a rounding error.
        """
        self._advance()
        finished: list[Flow] = []
        while True:
            _, klass = self._next()
            if klass is None:
                return finished
            ends_at, bundle = klass.first()
            flow = bundle.first()
            if ends_at - self._class_clock(klass) > ROUNDING * flow.size:
                return finished
            self._count -= 1
            self._take(flow)
            flow.remaining = 0.0
            finished.append(flow)
            self._rebalance()

    def _resume(self, finished: list[Flow]) -> None:
        """A rate has changed: share anew, then tell the flows that were finished."""
        self._rebalance()
        self._schedule()
        for flow in finished:
            flow.done(flow)

    # ---- many ----------------------------------------------------------------------------------------------

    def remove(self, flow: Flow) -> None:
        """Stop serving a flow; its `remaining` bytes are up to date afterwards."""
        self._count -= 1
        if self._solo is flow:
            flow.remaining = max(0.0, flow.remaining - self._solo_rate * (self._clock.now - self._solo_since))
            self._solo = None
            self._solo_stamp += 1
            assert flow.bundle is not None
            flow.bundle.alive = 0
            flow.bundle = None
            return
        self._advance()
        self._take(flow)
        self._rebalance()
        self._schedule()

    def drain(self) -> list[Flow]:
        """Stop serving every flow and return them, in order of their starts, `remaining` up to date."""
        found: dict[int, Flow] = {}
        for klass in self._classes.values():
            for _, _, bundle in klass.bundles:
                if bundle.klass is klass:
                    found |= {serial: flow for _, serial, flow in bundle.flows if flow.bundle is bundle}
        flows = [found[serial] for serial in sorted(found)]
        if self._solo is not None:
            flows = [self._solo]
        for flow in flows:
            self.remove(flow)
        return flows

    def _advance(self) -> None:
        """Bring the level clock up to now."""
        now = self._clock.now
        if self._level_alive:
            self._level_clock += self.level * (now - self._rate_since)
        self._rate_since = now

    def _class_clock(self, klass: _Class) -> float:
        if klass.level:
            return klass.served + (self._level_clock - klass.since)
        return klass.served + klass.cap * (self._clock.now - klass.since)

    def _add(self, flow: Flow, bundle: Bundle) -> None:
        """Put a flow into its bundle."""
        if bundle.alive:
            self._exit(bundle)
        else:
            bundle.flows.clear()
            bundle.served = 0.0
        bundle.alive += 1
        flow.bundle = bundle
        flow.finish_at = bundle.served + flow.remaining
        self._serial += 1
        heappush(bundle.flows, (flow.finish_at, self._serial, flow))
        self._enter(bundle)

    def _take(self, flow: Flow) -> None:
        """Take a flow out of its bundle."""
        bundle = flow.bundle
        assert bundle is not None
        self._exit(bundle)
        flow.remaining = max(0.0, flow.finish_at - bundle.served)
        flow.bundle = None
        bundle.alive -= 1
        if bundle.alive:
            self._enter(bundle)

    def _enter(self, bundle: Bundle) -> None:
        """Put a bundle into the class of its cap."""
        cap = bundle.cap
        klass = self._classes.get(cap)
        if klass is None:
            klass = self._classes[cap] = _Class(cap)
            at = bisect_left(self._order, klass)
            self._order.insert(at, klass)
            klass.level = cap == inf or at > self._split or (at == self._split and cap > self.level)
            if not klass.level:
                self._split += 1
            klass.since = self._level_clock if klass.level else self._clock.now
        bundle.klass = klass
        bundle.base = self._class_clock(klass)
        self._serial += 1
        bundle.stamp = self._serial
        ends = bundle.base + (bundle.first().finish_at - bundle.served)
        heappush(klass.bundles, (ends, bundle.stamp, bundle))
        klass.alive += bundle.alive
        if klass.level:
            self._level_alive += bundle.alive
        else:
            self._capped_rate += cap * bundle.alive
        if klass.first()[1] is bundle:
            self._announce(klass)

    def _exit(self, bundle: Bundle) -> None:
        """Take a bundle out of its class, its service clock up to date."""
        klass = bundle.klass
        assert klass is not None
        bundle.served += self._class_clock(klass) - bundle.base
        bundle.klass = None
        klass.alive -= bundle.alive
        if klass.level:
            self._level_alive -= bundle.alive
        else:
            self._capped_rate -= klass.cap * bundle.alive
        if klass.alive:
            self._announce(klass)
            return
        at = bisect_left(self._order, klass)
        del self._order[at]
        if at < self._split:
            self._split -= 1
            if self._split == 0:
                self._capped_rate = 0.0  # no class is capped: forget rounding errors
        del self._classes[klass.cap]
        klass.stamp += 1
        if not self._order:
            self._level_clock = 0.0

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
        klass.served = self._class_clock(klass)
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
        """Put a class where its next end belongs; an older announcement becomes void."""
        klass.stamp += 1
        left = klass.first()[0] - klass.served
        if klass.level:
            heappush(self._level_heap, (klass.since + left, klass.stamp, klass))
        elif klass.cap:  # its next end is never while its leaf has an outage
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
            left = level_heap[0][0] - self._level_clock
            at = self._rate_since + (left / self.level if left > 0.0 else 0.0)
            if at < time:
                time, klass = at, level_heap[0][2]
        return time, klass

    def _schedule(self) -> None:
        time, _ = self._next()
        if len(self._by_time) + len(self._level_heap) > 64 + 4 * len(self._order):
            self._compact()
        if time < self._scheduled:
            self._scheduled = time
            clock = self._clock
            clock.serial += 1  # Kernel.at, written out
            heappush(clock.heap, (time if time > clock.now else clock.now, clock.serial, self._fire, time))

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
            bundle = klass.first()[1]
            flow = bundle.first()
            if bundle.alive == 1 and klass.alive > 1:  # `_take` of its leaf's one flow, written out
                self._count -= 1
                bundle.alive = 0
                bundle.klass = flow.bundle = None
                flow.remaining = 0.0
                klass.alive -= 1
                if klass.level:
                    self._level_alive -= 1
                else:
                    self._capped_rate -= klass.cap
                heappop(klass.bundles)
                self._announce(klass)
                finished.append(flow)
                self._rebalance()
                continue
            finish_at = flow.finish_at
            # flows that started together and are equally long end together
            while True:
                self._count -= 1
                self._take(flow)
                flow.remaining = 0.0
                finished.append(flow)
                if not bundle.alive or bundle.first().finish_at > finish_at:
                    break
                flow = bundle.first()
            self._rebalance()
        self._schedule()
        for flow in finished:
            flow.done(flow)


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

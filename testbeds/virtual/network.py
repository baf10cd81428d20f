"""Flows on links: who shares what, and when the last byte has left.

A path from one node to another crosses the sender's uplink and the receiver's downlink. As long as every flow
has at most two limited links, and each leaf link (the one with fewer peers) feeds one hub at a time, a `Hub`
shares in O(log flows). The first flow that breaks this pattern (a device that sends to its edge and to the
server at once) turns the network to general progressive filling, for the rest of the run: same rates, dearer.

A link with a `schedule` changes its rate by itself while flows are on it: `starter` knows, and so do channels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import inf
from typing import Any

from testbeds.virtual.fair import ROUNDING, Bundle, Flow, Hub, Link, water_fill
from testbeds.virtual.kernel import Kernel
from testbeds.virtual.playback import Playback


class Network:
    """Starts flows and calls `flow.done(flow)` when they are finished.

    Attributes:
        playback_events: entries that schedules have put into the kernel's heap so far: changes of rates, and ends
            of flows reckoned anew after them. They come while flows are under way, without anybody doing anything.
    """

    def __init__(self, kernel: Kernel) -> None:
        self.playback_events = 0
        self._kernel = kernel
        self._hubs: dict[Link, Hub] = {}
        self._general: _General | None = None
        self._playbacks: dict[Link, Playback] = {}
        self._played: dict[Flow, tuple[list[Playback], Callable[[Any], Any]]] = {}  # flows on links with a schedule

    @property
    def general(self) -> bool:
        """Whether the network has left the star pattern."""
        return self._general is not None

    def starter(self, path: tuple[Link, ...]) -> Callable[[Flow], None]:
        """Return what starts flows on that path: `start`, something shorter, or what also plays schedules of links."""
        if any(link.schedule is not None for link in path):
            playbacks = [self._playback(link) for link in dict.fromkeys(path) if link.schedule is not None]
            return partial(self._start_played, playbacks)
        if len(path) == 1 and self._general is None and path[0].role != "leaf":
            return self._hub(path[0]).start
        return self._spoke(path) if len(path) == 2 else self.start

    def _spoke(self, path: tuple[Link, ...]) -> Callable[[Flow], None]:
        """Return `start` for a path of two links that remembers which leaf feeds which hub, while that stays so."""
        leaf: Link | None = None
        bundle: Bundle | None = None

        def start(flow: Flow) -> None:
            nonlocal leaf, bundle
            if bundle is not None and leaf is not None and leaf.bundle is bundle:
                bundle.hub.start(flow, bundle)
                return
            self.start(flow)
            bundle = flow.bundle
            leaf = next((link for link in path if link.bundle is bundle), None)

        return start

    def start(self, flow: Flow) -> None:
        """Begin a transfer of `flow.size` bytes over `flow.path` (limited links only, schedules are not played)."""
        path = flow.path
        if not path:
            self._kernel.at(self._kernel.now, flow.done, flow)
        elif self._general is not None or not self._start_in_star(flow, path):
            self._generalise().start(flow)

    def _hub(self, link: Link) -> Hub:
        hub = self._hubs.get(link)
        if hub is None:
            link.role = "hub"
            hub = self._hubs[link] = Hub(self._kernel, link.rate)
        return hub

    def _start_in_star(self, flow: Flow, path: tuple[Link, ...]) -> bool:
        """Serve the flow by a hub if the star pattern allows it."""
        if len(path) == 1:
            if path[0].role == "leaf":
                return False
            self._hub(path[0]).start(flow)
            return True
        if len(path) > 2:
            return False
        first, second = path
        if first is second:  # there and back through one medium
            return False
        link, leaf = (second, first) if second.degree >= first.degree else (first, second)
        if link.role == "leaf" or leaf.role == "hub":
            return False
        hub = self._hub(link)
        bundle = leaf.bundle
        if bundle is None or (bundle.hub is not hub and not bundle.alive):
            leaf.role = "leaf"
            bundle = leaf.bundle = Bundle(hub, leaf.rate)
        elif bundle.hub is not hub:
            return False
        hub.start(flow, bundle)
        return True

    def stop(self, flow: Flow) -> None:
        """Abandon a transfer."""
        if flow in self._played:
            self._leave(flow)
        if self._general is not None:
            self._general.stop(flow)
        elif flow.bundle is not None:
            flow.bundle.hub.remove(flow)

    def set_rate(self, link: Link, rate: float) -> None:
        """Give a link another rate from now on (bytes per second); flows on it go on with what they then share.

        Raises:
            ValueError: the rate is negative, or not a number, or infinite (a link without a limit is on no path).
        """
        if not 0 <= rate < inf:
            raise ValueError(f"link {link.name}: rate {rate} is neither positive nor 0")
        if self._general is not None:
            self._general.set_rate(link, rate)
            return
        link.rate = rate
        hub = self._hubs.get(link)
        if hub is not None:
            hub.set_rate(rate)
        elif link.bundle is not None:
            link.bundle.hub.set_capacity(link.bundle, rate)

    def _playback(self, link: Link) -> Playback:
        playback = self._playbacks.get(link)
        if playback is None:
            assert link.schedule is not None
            playback = self._playbacks[link] = Playback(self._kernel, link.schedule, partial(self._change, link))
        return playback

    def _change(self, link: Link, rate: float) -> None:
        """A schedule says so."""
        before = self._kernel.serial
        if rate != link.rate:
            self.set_rate(link, rate)
        self.playback_events += 1 + self._kernel.serial - before

    def _start_played(self, playbacks: list[Playback], flow: Flow) -> None:
        """Begin a transfer over links of which these play their schedules while flows are on them."""
        self._played[flow] = (playbacks, flow.done)
        flow.done = self._over
        for playback in playbacks:
            playback.enter()
        self.start(flow)

    def _over(self, flow: Flow) -> None:
        self._leave(flow)
        flow.done(flow)

    def _leave(self, flow: Flow) -> None:
        playbacks, flow.done = self._played.pop(flow)
        for playback in playbacks:
            playback.leave()

    def _generalise(self) -> _General:
        """Hand every flow in progress to the general solver."""
        if self._general is None:
            self._general = _General(self._kernel)
            for hub in self._hubs.values():
                for flow in hub.drain():
                    self._general.add(flow)
                hub.redirect = self._general.start
        return self._general


class _General:
    """Progressive filling over all flows at every start and end."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._flows: dict[Flow, float] = {}  # rate of each flow in progress
        self._since = 0.0
        self._stamp = 0

    def add(self, flow: Flow) -> None:
        self._flows[flow] = 0.0

    def start(self, flow: Flow) -> None:
        self._advance()
        self.add(flow)
        self._share()

    def stop(self, flow: Flow) -> None:
        if flow in self._flows:
            self._advance()
            del self._flows[flow]
            self._share()

    def set_rate(self, link: Link, rate: float) -> None:
        """Change the rate of a link and share anew, after taking out the flows whose last byte leaves now."""
        self._advance()
        link.rate = rate
        self._finish()

    def _advance(self) -> None:
        elapsed = self._kernel.now - self._since
        self._since = self._kernel.now
        if elapsed > 0:
            for flow, rate in self._flows.items():
                flow.remaining = max(0.0, flow.remaining - rate * elapsed)

    def _share(self) -> None:
        flows = list(self._flows)
        for flow, rate in zip(flows, water_fill(flow.path for flow in flows), strict=True):
            self._flows[flow] = rate
        self._stamp += 1
        left_s, first = min(
            ((flow.remaining / self._flows[flow], i) for i, flow in enumerate(flows) if self._flows[flow]),
            default=(inf, -1),
        )
        if left_s < inf:  # else all stand still in an outage
            self._kernel.at(self._kernel.now + left_s, self._fire, (self._stamp, flows[first]))

    def _fire(self, due: tuple[int, Flow]) -> None:
        stamp, first = due
        if stamp != self._stamp:
            return
        self._advance()
        first.remaining = 0.0
        self._finish()

    def _finish(self) -> None:
        """Take out the flows that have ended, share what they had, and tell them."""
        finished = [flow for flow in self._flows if flow.remaining <= ROUNDING * flow.size]
        for flow in finished:
            del self._flows[flow]
        self._share()
        for flow in finished:
            flow.done(flow)

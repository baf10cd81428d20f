"""Flows on links: who shares what, and when the last byte has left.

A path from one node to another crosses the sender's uplink and the receiver's downlink. As long as every flow
has at most two limited links, and each leaf link (the one with fewer peers) feeds one hub at a time, a `Hub`
shares in O(log flows). The first flow that breaks this pattern (a device that sends to its edge and to the
server at once) turns the network to general progressive filling, for the rest of the run: same rates, dearer.
"""

from __future__ import annotations

from collections.abc import Callable

from testbeds.virtual.fair import Bundle, Flow, Hub, Link, water_fill
from testbeds.virtual.kernel import Kernel


class Network:
    """Starts flows and calls `flow.done(flow)` when they are finished."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._hubs: dict[Link, Hub] = {}
        self._general: _General | None = None

    @property
    def general(self) -> bool:
        """Whether the network has left the star pattern."""
        return self._general is not None

    def starter(self, path: tuple[Link, ...]) -> Callable[[Flow], None]:
        """Return what starts flows on that path: `start`, or something shorter that does the same."""
        if len(path) == 1 and self._general is None and path[0].role != "leaf":
            return self._hub(path[0]).start
        return self.start

    def start(self, flow: Flow) -> None:
        """Begin a transfer of `flow.size` bytes over `flow.path` (limited links only)."""
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
        if self._general is not None:
            self._general.stop(flow)
        elif flow.bundle is not None:
            flow.bundle.hub.remove(flow)

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
        if flows:
            left_s, first = min(
                ((flow.remaining / self._flows[flow], i) for i, flow in enumerate(flows)),
                key=lambda pair: pair,
            )
            self._kernel.at(self._kernel.now + left_s, self._fire, (self._stamp, flows[first]))

    def _fire(self, due: tuple[int, Flow]) -> None:
        stamp, first = due
        if stamp != self._stamp:
            return
        self._advance()
        first.remaining = 0.0
        finished = [flow for flow in self._flows if flow.remaining <= 1e-9 * flow.size]
        for flow in finished:
            del self._flows[flow]
        self._share()
        for flow in finished:
            flow.done(flow)

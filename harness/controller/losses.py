"""Who is to blame when two nodes cannot reach each other."""

from __future__ import annotations

from collections.abc import Mapping

_RANK = {"device": 0, "edge": 1, "server": 2}


class Blame:
    """Collects who cannot reach whom.

    The link of a pair is the device's: of a device and a server that lose each other the device is lost. A node that
    more than half of the others cannot reach, and at least two, is itself the cause.

    Args:
        roles: of all nodes.
    """

    def __init__(self, roles: Mapping[str, str]) -> None:
        self._roles = roles
        self._complaints: dict[str, set[str]] = {}

    def blame(self, reporter: str, peer: str) -> str:
        """Return who is lost, now that `reporter` cannot reach `peer`."""
        pair = (reporter, peer)
        for one, other in (pair, pair[::-1]):
            self._complaints.setdefault(one, set()).add(other)
        others = sum(self._roles[name] == "device" for name in self._roles)
        high = max(pair, key=lambda name: _RANK[self._roles[name]])
        low = peer if high == reporter else reporter
        complaints = len(self._complaints[high])
        if self._roles[high] != "device" and complaints >= 2 and complaints * 2 > others:
            return high
        return low

    def forget(self, name: str) -> None:
        """A node is back: what was said of it before does not count."""
        self._complaints.pop(name, None)
        for complaints in self._complaints.values():
            complaints.discard(name)

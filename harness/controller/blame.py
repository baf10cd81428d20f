"""Who is to blame when two nodes cannot reach each other."""

from __future__ import annotations

from collections.abc import Mapping

_RANK = {"device": 0, "edge": 1, "server": 2}


class Blame:
    """Collects who cannot reach whom.

    The link of a pair is the device's: of a device and a server that lose each other the device is lost. An edge or a
    server that more than half of the devices cannot reach within `window_s`, and at least two, is itself the cause.

    Args:
        roles: of all nodes.
        window_s: losses further apart than this have nothing to do with each other.
    """

    def __init__(self, roles: Mapping[str, str], window_s: float) -> None:
        self._roles = roles
        self._window_s = window_s
        self._devices = sum(role == "device" for role in roles.values())
        self._complaints: dict[str, dict[str, float]] = {}  # whom who could not reach, or was not reached by; when

    def blame(self, reporter: str, peer: str, at_s: float) -> str:
        """Return who is lost, now that `reporter` cannot reach `peer`; `at_s` on any clock, the same for all."""
        pair = (reporter, peer)
        for one, other in (pair, pair[::-1]):
            self._complaints.setdefault(one, {})[other] = at_s
        high = max(pair, key=lambda name: _RANK[self._roles[name]])
        low = peer if high == reporter else reporter
        recent = sum(at_s - when_s <= self._window_s for when_s in self._complaints[high].values())
        if self._roles[high] != "device" and recent >= 2 and recent * 2 > self._devices:
            return high
        return low

    def forget(self, name: str) -> None:
        """A node is back: what was said of it before does not count."""
        self._complaints.pop(name, None)
        for complaints in self._complaints.values():
            complaints.pop(name, None)

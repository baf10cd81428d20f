"""Whether anything moves: nodes that all wait for each other are told apart from nodes that compute for long."""

from __future__ import annotations

import time
from collections.abc import Iterable

from harness.controller.members import Member
from harness.errors import DeadlockError

_MOST_LINES = 8


class Progress:
    """Looks at heartbeats.

    Args:
        patience_s: real seconds after which nodes that have not moved never will.
    """

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._seen: tuple[tuple[str, int], ...] = ()
        self._since_s = time.monotonic()

    def forget(self) -> None:
        """Begin to wait anew."""
        self._since_s = time.monotonic()

    def check(self, members: Iterable[Member], at_s: float) -> None:
        """Look at what the nodes that are there have said last.

        Args:
            at_s: time of the run.

        Raises:
            DeadlockError: they have not moved for too long; it says who waits for what.
        """
        present = [member for member in members if member.present]
        seen = tuple((member.name, member.moved) for member in present)
        if seen != self._seen or not all(member.stuck for member in present):
            self._seen = seen
            self._since_s = time.monotonic()
            return
        unfinished = [member for member in present if not member.over]
        if not unfinished or time.monotonic() - self._since_s < self._patience_s:
            return
        lines = [member.wants for member in unfinished]
        shown = lines[:_MOST_LINES] + ([f"and {len(lines) - _MOST_LINES} more nodes"] if lines[_MOST_LINES:] else [])
        raise DeadlockError(
            f"nobody has moved for {self._patience_s:g} s, at {at_s:.6g} s of the run, and {len(lines)} roles are "
            "unfinished:\n  " + "\n  ".join(shown)
        )

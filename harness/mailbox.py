"""Who waits for which message: matching of deliveries with `recv`, `stream` and `gather`."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from harness.driver import Future, Timer
from harness.errors import EndOfStream, PeerLost, QuorumError
from harness.message import Message


@dataclass(frozen=True)
class Gathered:
    """What a gather returned.

    Attributes:
        messages: at most one per peer, in the order of `from_` (device order), never in arrival order.
        missing: peers of `from_` that are not in `messages`.
        late: messages of earlier rounds that arrived after their own gather; counted, payload dropped.
    """

    messages: list[Message]
    missing: list[str]
    late: list[Message]

    @property
    def payloads(self) -> list[Any]:
        return [message.payload for message in self.messages]


def _is_late(meta: dict[str, Any], match: dict[str, Any]) -> bool:
    """Whether some matched number is smaller than the one waited for: an earlier round's straggler."""
    for key, wanted in match.items():
        value = meta.get(key)
        if isinstance(value, (int, float)) and isinstance(wanted, (int, float)) and value < wanted:
            return True
    return False


class Waiter:
    """One `recv`: the first message of its tags that matches completes `future`."""

    __slots__ = ("from_", "future", "match", "serial", "streaming", "tags", "timer")

    def __init__(
        self, future: Future, tags: tuple[str, ...], from_: str | None, match: dict[str, Any], streaming: bool
    ) -> None:
        self.future = future
        self.tags = tags
        self.from_ = from_
        self.match = match
        self.streaming = streaming
        self.timer: Timer | None = None
        self.serial = 0  # of the wait in its mailbox

    def matches(self, message: Message) -> bool:
        """Whether the meta values are those waited for; the end of a stream always matches."""
        if not message.ends_stream:
            meta = message.meta
            for key, value in self.match.items():
                if meta.get(key) != value:
                    return False
        return True

    def offer(self, message: Message) -> tuple[bool, bool]:
        """Return (taken, finished)."""
        if (self.from_ is not None and message.src != self.from_) or (self.match and not self.matches(message)):
            return False, False
        if self.future.done():
            return False, True
        if self.timer is not None:
            self.timer.cancel()
        if message.ends_stream:
            self.future.set_exception(end_of_stream(message, self.streaming))
        else:
            self.future.set_result(message, message.serial)
        return True, True

    def lose(self, peer: str, error: PeerLost) -> bool:
        """A peer is gone; return whether that finished the wait."""
        if self.from_ == peer and not self.future.done():
            if self.timer is not None:
                self.timer.cancel()
            self.future.set_exception(error)
        return self.future.done()

    def wants(self) -> str:
        source = f" from {self.from_}" if self.from_ else ""
        matching = f" with {self.match}" if self.match else ""
        return " or ".join(repr(tag) for tag in self.tags) + source + matching


class Collector:
    """One `gather`: collects at most one matching message per peer until it has enough."""

    from_: str | None = None

    __slots__ = (
        "at_least",
        "expected",
        "future",
        "got",
        "has_deadline",
        "late",
        "match",
        "on_done",
        "peers",
        "serial",
        "tags",
        "timer",
    )

    def __init__(
        self,
        future: Future,
        tag: str,
        peers: list[str],
        lost: set[str],
        at_least: int | None,
        match: dict[str, Any],
    ) -> None:
        self.future = future
        self.serial = 0
        self.tags = (tag,)
        self.peers = peers
        self.expected = {peer for peer in peers if peer not in lost}
        self.at_least = at_least
        self.match = match
        self.got: dict[str, Message] = {}
        self.late: list[Message] = []
        self.has_deadline = False
        self.timer: Timer | None = None
        self.on_done: Any = None

    def offer(self, message: Message) -> tuple[bool, bool]:
        """Return (taken, finished)."""
        if self.future.done() or message.ends_stream:
            return False, self.future.done()
        meta = message.meta
        if any(meta.get(key) != value for key, value in self.match.items()):
            if _is_late(meta, self.match):  # of whoever took part in an earlier round
                message.payload = None
                self.late.append(message)
                return True, False
            return False, False
        if message.src not in self.expected or message.src in self.got:
            return False, False
        self.got[message.src] = message
        return True, self.settle(message.serial)

    def settle(self, cause: int = -1) -> bool:
        """Finish if there is enough; return whether it did."""
        possible = len(self.expected)
        wanted = possible if self.has_deadline or self.at_least is None else min(self.at_least, possible)
        if len(self.got) >= wanted and len(self.got) >= (self.at_least or 0):
            self._finish(cause)
        elif self.at_least is not None and possible < self.at_least:
            self._fail(f"only {possible} of its peers are left")
        return self.future.done()

    def deadline(self) -> None:
        """The deadline has passed."""
        if self.future.done():
            return
        if self.at_least is not None and len(self.got) >= self.at_least:
            self._finish(-1)
        else:
            self._fail(f"its deadline passed with {len(self.got)} of them")

    def _finish(self, cause: int) -> None:
        if self.timer is not None:
            self.timer.cancel()
        messages = [self.got[peer] for peer in self.peers if peer in self.got]
        missing = [peer for peer in self.peers if peer not in self.got]
        self.on_done(messages)
        self.future.set_result(Gathered(messages, missing, self.late), cause)

    def _fail(self, why: str) -> None:
        if self.timer is not None:
            self.timer.cancel()
        needed = len(self.peers) if self.at_least is None else self.at_least
        self.future.set_exception(
            QuorumError(
                f"gather({self.tags[0]!r}) needs {needed} messages matching {self.match} but {why}; "
                "lower at_least, give a longer deadline_s, or catch QuorumError"
            )
        )

    def lose(self, peer: str, error: PeerLost) -> bool:  # noqa: ARG002 - the same shape as Waiter.lose
        """A peer is gone: the gather goes on with those left; return whether that finished it."""
        if peer in self.expected and peer not in self.got and not self.future.done():
            self.expected.discard(peer)
            self.settle()
        return self.future.done()

    def wants(self) -> str:
        waiting = [peer for peer in self.peers if peer in self.expected and peer not in self.got]
        shown = ", ".join(waiting[:4]) + (f" and {len(waiting) - 4} more" if len(waiting) > 4 else "")
        return f"{self.tags[0]!r} with {self.match} from {shown}" if self.match else f"{self.tags[0]!r} from {shown}"


def end_of_stream(message: Message, streaming: bool) -> BaseException:
    """Return what a reader sees when the stream is over: a quiet end for `stream`, an error for `recv`."""
    if streaming:
        return StopAsyncIteration()
    return EndOfStream(f"{message.src} has closed the stream {message.tag!r}; read it with node.stream(...)")


def _nobody_asks(message: Message) -> None:
    """Default of Mailbox.on_take."""


Wait = Waiter | Collector


class Mailbox:
    """Messages that arrived before anybody asked, and the waits that came before their message.

    Waits of one tag are served in the order in which they were made; unread messages in arrival order.

    Attributes:
        waiting: waits by tag and by the one peer whose message they wait for, None for those that take anybody's.
        consumed: how many messages have been read.
        on_take: called with each message that is read after it lay unread (a driver counts memory).
    """

    __slots__ = ("_serial", "consumed", "num_unread", "on_take", "unread", "waiting")

    def __init__(self) -> None:
        self.on_take: Callable[[Message], None] = _nobody_asks
        self.unread: dict[str, deque[Message]] = {}
        self.waiting: dict[str, dict[str | None, list[Wait]]] = {}
        self.consumed = 0
        self.num_unread = 0
        self._serial = 0

    def deliver(self, message: Message) -> bool:
        """Hand a message to the first wait that takes it, else keep it unread; return whether it was taken."""
        line = self.waiting.get(message.tag)
        if line is not None:
            waiting, anybodys = line.get(message.src), line.get(None)
            if anybodys:
                waiting = sorted(waiting + anybodys, key=_serial) if waiting else anybodys
            if waiting:
                for waiter in waiting:
                    taken, finished = waiter.offer(message)
                    if finished:
                        self.forget(waiter)
                    if taken:
                        self.consumed += 1
                        return True
        box = self.unread.get(message.tag)
        if box is None:
            box = self.unread[message.tag] = deque()
        box.append(message)
        self.num_unread += 1
        return False

    def take(self, tags: tuple[str, ...], from_: str | None, match: dict[str, Any]) -> Message | None:
        """Remove and return the first unread message that matches; the tags' order is their priority."""
        for tag in tags:
            box = self.unread.get(tag)
            if not box:
                continue
            for index, message in enumerate(box):
                if from_ is not None and message.src != from_:
                    continue
                if match and not message.ends_stream:
                    meta = message.meta
                    if any(meta.get(key) != value for key, value in match.items()):
                        continue
                del box[index]
                self.consumed += 1
                self.num_unread -= 1
                self.on_take(message)
                return message
        return None

    def collect(self, collector: Collector) -> None:
        """Offer every unread message of the collector's tag to it."""
        box = self.unread.get(collector.tags[0])
        if not box:
            return
        left: deque[Message] = deque()
        for message in box:
            if collector.offer(message)[0]:
                self.consumed += 1
                self.num_unread -= 1
                self.on_take(message)
            else:
                left.append(message)
        self.unread[collector.tags[0]] = left

    def wait(self, waiter: Wait) -> None:
        """Register a wait."""
        self._serial += 1
        waiter.serial = self._serial
        for tag in waiter.tags:
            line = self.waiting.get(tag)
            if line is None:
                line = self.waiting[tag] = {}
            waiting = line.get(waiter.from_)
            if waiting:
                waiting.append(waiter)
            else:
                line[waiter.from_] = [waiter]

    def forget(self, waiter: Wait) -> None:
        """Remove a wait that is over."""
        for tag in waiter.tags:
            line = self.waiting.get(tag)
            waiting = line.get(waiter.from_) if line is not None else None
            if line is None or not waiting:
                continue
            # a new list: `deliver` may be walking the old one
            line[waiter.from_] = waiting[1:] if waiting[0] is waiter else [w for w in waiting if w is not waiter]

    def waits(self) -> list[Wait]:
        """Return every wait that is registered, those of several tags once for each."""
        return [waiter for line in self.waiting.values() for waiting in line.values() for waiter in waiting]

    def lose(self, peer: str, error: PeerLost) -> None:
        """A peer is gone: whoever waits for it in particular learns so."""
        for waiter in self.waits():
            if waiter.lose(peer, error):
                self.forget(waiter)


def _serial(waiter: Wait) -> int:
    return waiter.serial

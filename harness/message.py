"""Messages between nodes, how many bytes a payload has, and the check that it stays frozen.

A payload is a tree of tensors, numbers, strings, None, lists, tuples and dicts with string keys: what any
testbed can carry without pickling. Its payload bytes are what the method meant to send: every tensor once
(numel x element size, whatever its strides), 8 bytes per number, UTF-8 bytes of strings, plus a header of
fixed size, so that bytes never depend on the value of a round number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from harness.errors import ProtocolError

HEADER_BYTES = 64
"""Bytes of every message's header (source, tag, round, ...): fixed, see the module docstring."""

LANES = ("data", "control")
"""Connections between a pair of nodes; messages on one lane are FIFO, one in flight."""


class Message:
    """One message: `payload` and `meta` as posted, and when it did what (seconds on the testbed's clock).

    Attributes:
        src, dst, tag, lane: who, to whom, what, on which connection.
        payload: a tree of tensors and plain values.
        meta: what `gather` and `recv` can match on, e.g. {"round": 3}.
        payload_bytes: see the module docstring.  wire_bytes: what crosses the link (framing included).
        posted_s, started_s, arrived_s: the post, the first byte leaving, the last byte arriving.
        posted_by: the activity (lane number) that posted it.
        serial: unique in the run, in posting order.  incarnation: how often `src` had restarted.
        ends_stream: it closes the stream of its tag instead of carrying a payload.
    """

    __slots__ = (
        "arrived_s",
        "dst",
        "ends_stream",
        "handle",
        "incarnation",
        "lane",
        "meta",
        "payload",
        "payload_bytes",
        "posted_by",
        "posted_s",
        "serial",
        "src",
        "started_s",
        "tag",
        "versions",
        "wire_bytes",
    )

    def __init__(
        self,
        src: str,
        dst: str,
        tag: str,
        payload: Any,
        meta: dict[str, Any],
        lane: str,
        payload_bytes: int,
        incarnation: int = 0,
        ends_stream: bool = False,
    ) -> None:
        self.src = src
        self.dst = dst
        self.tag = tag
        self.payload = payload
        self.meta = meta
        self.lane = lane
        self.payload_bytes = payload_bytes
        self.wire_bytes = payload_bytes
        self.posted_s = self.started_s = self.arrived_s = -1.0
        self.serial = -1
        self.posted_by = 0
        self.incarnation = incarnation
        self.ends_stream = ends_stream
        self.versions: list[tuple[torch.Tensor, int]] | None = None
        self.handle: Any = None

    @property
    def round(self) -> int:
        """The round this message belongs to, 0 if its sender named none."""
        return int(self.meta.get("round", 0))

    def __repr__(self) -> str:
        return f"<{self.tag} {self.src} -> {self.dst} {self.meta} {self.payload_bytes} B>"


def tensors(tree: Any) -> Iterator[torch.Tensor]:
    """Yield every tensor of a payload tree, in a fixed order."""
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, dict):
        for value in tree.values():
            yield from tensors(value)
    elif isinstance(tree, (list, tuple)):
        for value in tree:
            yield from tensors(value)


def _tensor_bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _sequence_bytes(sequence: Any) -> int:
    return sum(map(tree_bytes, sequence))


_SIZES: dict[type, Callable[[Any], int]] = {
    torch.Tensor: _tensor_bytes,
    torch.nn.Parameter: _tensor_bytes,
    type(None): lambda _: 0,
    bool: lambda _: 8,
    int: lambda _: 8,
    float: lambda _: 8,
    str: lambda text: len(text.encode()),
    bytes: len,
    tuple: _sequence_bytes,
    list: _sequence_bytes,
    dict: lambda mapping: _sequence_bytes(mapping.values()),
}


def tree_bytes(tree: Any) -> int:
    """Return the bytes of a payload tree without its header.

    Raises:
        ProtocolError: it holds something no testbed can carry (an object, a set, a numpy array, ...).
    """
    try:
        size = _SIZES[type(tree)]
    except KeyError:
        raise ProtocolError(
            f"a payload cannot hold {type(tree).__name__!r}: send tensors, numbers, strings, lists, tuples and "
            "dicts of them (convert arrays with torch.from_numpy inside compute)"
        ) from None
    return size(tree)


def freeze(message: Message) -> None:
    """Remember the version of every tensor of the payload, to be held against it on delivery."""
    message.versions = [(t, t._version) for t in tensors(message.payload) if not t.is_inference()]


def check_frozen(message: Message) -> None:
    """Raise ProtocolError if the payload was written to between its post and its delivery."""
    for tensor, version in message.versions or ():
        if tensor._version != version:
            raise ProtocolError(
                f"{message.src}: the payload of {message.tag!r} to {message.dst} was changed after it was posted; "
                "send a copy (Trainer.weights() returns one) or do not write to it until handle.done()"
            )
    message.versions = None

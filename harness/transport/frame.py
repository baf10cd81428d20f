"""A message as bytes and back.

    prefix   24 bytes: magic, version (4), length of the header (8), length of the body (8); big-endian
    header   msgpack values one after the other, none of them a container: tag, source, destination, lane, serial,
             incarnation, whether it ends a stream, then `meta` and the payload in pre-order
    body     the tensors' buffers in the order of the header, little-endian, nothing between them

A container is an extension with the number of its items, which follow it; a dict's are key, value, key, value. A
tensor is an extension with its dtype and shape. So msgpack itself never nests and never allocates for a claim: what
a header may cost is bounded by its length, and tensors are made only when the whole header has been checked.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import msgpack
import torch

from harness.errors import ProtocolError, TransportError
from harness.message import HEADER_BYTES, LANES, Message, tree_bytes

PREFIX = struct.Struct("!4sIQQ")
MAGIC = b"AMTR"
VERSION = 1

_LIST, _TUPLE, _DICT, _TENSOR = 1, 2, 3, 4
_COUNT = struct.Struct("!Q")
_MOST_DIMENSIONS = 64
_MOST_ELEMENTS = 2**63 - 1
_DTYPES: dict[int, torch.dtype] = {
    1: torch.float32,
    2: torch.float64,
    3: torch.float16,
    4: torch.bfloat16,
    5: torch.uint8,
    6: torch.int8,
    7: torch.int16,
    8: torch.int32,
    9: torch.int64,
    10: torch.bool,
    11: torch.complex64,
    12: torch.complex128,
    13: torch.uint16,
    14: torch.uint32,
    15: torch.uint64,
    16: torch.float8_e4m3fn,
    17: torch.float8_e5m2,
}
"""Numbers on the wire: never reused for another dtype."""
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
_FIELDS = (("tag", str), ("source", str), ("destination", str), ("lane", str))
_NUMBERS = (("serial", int), ("incarnation", int), ("end of stream", bool))
_PLAIN = frozenset((type(None), bool, int, float, str, bytes))


@dataclass(frozen=True)
class Limits:
    """What a node accepts and sends.

    Attributes:
        frame_bytes: prefix, header and body together.  header_bytes: of the header alone; decoding one takes at
            most some hundred times as much for a moment.
        depth: how deep lists, tuples and dicts may nest.
    """

    frame_bytes: int = 2**40
    header_bytes: int = 2**20
    depth: int = 64


DEFAULT = Limits()


@dataclass(frozen=True)
class Frame:
    """A message ready to be sent: `parts` are the prefix with the header, then views of the tensors' memory."""

    parts: list[memoryview]
    frame_bytes: int


@dataclass(frozen=True)
class Opened:
    """A message whose header is known and whose tensors have their memory, but not yet their values.

    Attributes:
        buffers: where the body goes, in order; empty tensors have none.
    """

    message: Message
    buffers: list[memoryview]


def raw(tensor: torch.Tensor) -> memoryview:
    """Return the bytes of a tensor: its own memory if it is contiguous and on the CPU, else of a copy."""
    flat = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous().view(-1).view(torch.uint8)
    return flat.numpy().data


# ---- out --------------------------------------------------------------------------------------------------------


class _Writer:
    """Packs one header and collects the buffers of its tensors."""

    def __init__(self, limits: Limits) -> None:
        self.packer = msgpack.Packer(autoreset=False, buf_size=512)
        self.buffers: list[memoryview] = []
        self.body_bytes = 0
        self._limits = limits

    def tree(self, value: Any, depth: int = 0) -> None:
        kind = type(value)
        if kind in _PLAIN:
            try:
                self.packer.pack(value)
            except (OverflowError, ValueError) as error:
                raise TransportError(
                    f"no frame for {str(value)[:40]!r} ({error}); send integers of at most 64 bits and text that is "
                    "valid Unicode"
                ) from None
        elif isinstance(value, torch.Tensor):
            self._tensor(value)
        elif depth >= self._limits.depth:
            raise TransportError(f"no frame for a payload nested deeper than {self._limits.depth} levels; flatten it")
        elif kind is dict:
            self.packer.pack_ext_type(_DICT, _COUNT.pack(len(value)))
            for key, item in value.items():
                if type(key) is not str:
                    raise TransportError(f"no frame for a dict with the key {key!r}; keys must be strings")
                self.packer.pack(key)
                self.tree(item, depth + 1)
        elif kind is list or kind is tuple:
            self.packer.pack_ext_type(_LIST if kind is list else _TUPLE, _COUNT.pack(len(value)))
            for item in value:
                self.tree(item, depth + 1)
        else:
            raise TransportError(
                f"no frame for {kind.__name__!r}; send tensors, plain values, lists, tuples and dicts of them"
            )

    def _tensor(self, tensor: torch.Tensor) -> None:
        code = _CODES.get(tensor.dtype)
        if code is None or tensor.layout is not torch.strided or tensor.is_meta:
            raise TransportError(
                f"no frame for a tensor of {tensor.dtype}, {tensor.layout} on {tensor.device}; send a dense one with "
                "values and a plain dtype"
            )
        if tensor.dim() > _MOST_DIMENSIONS:
            raise TransportError(f"no frame for a tensor of {tensor.dim()} dimensions, above {_MOST_DIMENSIONS}")
        self.packer.pack_ext_type(_TENSOR, struct.pack(f"!B{tensor.dim()}q", code, *tensor.shape))
        if tensor.numel():
            self.buffers.append(raw(tensor))
            self.body_bytes += self.buffers[-1].nbytes


def encode(message: Message, limits: Limits = DEFAULT) -> Frame:
    """Return the frame of a message. Its parts are views of the payload's memory, which must not change until sent.

    Raises:
        TransportError: the payload holds what no frame can carry, or the frame would be above a limit.
    """
    if sys.byteorder != "little":
        raise TransportError("tensors travel little-endian; this machine is big-endian and cannot take part")
    writer = _Writer(limits)
    try:
        for value in (message.tag, message.src, message.dst, message.lane, message.serial, message.incarnation):
            writer.packer.pack(value)
        writer.packer.pack(message.ends_stream)
        writer.tree(message.meta)
        if writer.buffers:
            raise TransportError("meta cannot hold tensors; put them into the payload")
        writer.tree(message.payload)
        header = writer.packer.bytes()
    except TransportError as error:
        raise TransportError(f"{message.src}: {message.tag!r} to {message.dst}: {error}") from None
    size = PREFIX.size + len(header) + writer.body_bytes
    for what, amount, most in (("header", len(header), limits.header_bytes), ("frame", size, limits.frame_bytes)):
        if amount > most:
            raise TransportError(
                f"{message.src}: {message.tag!r} to {message.dst}: a {what} of {amount:,} bytes is above the limit of "
                f"{most:,}; send many numbers as one tensor, or raise the limit on both sides"
            )
    first = PREFIX.pack(MAGIC, VERSION, len(header), writer.body_bytes) + header
    return Frame([memoryview(first), *writer.buffers], size)


# ---- in ---------------------------------------------------------------------------------------------------------


def open_prefix(data: bytes | bytearray | memoryview, limits: Limits = DEFAULT) -> tuple[int, int]:
    """Return the lengths of header and body that a prefix claims.

    Raises:
        TransportError: it is no frame, of another version, or claims more than the limits allow.
    """
    magic, version, header_bytes, body_bytes = PREFIX.unpack(data)
    if magic != MAGIC:
        raise TransportError(f"frame refused: it begins with {bytes(magic)!r}, not {MAGIC!r}; this is another protocol")
    if version != VERSION:
        raise TransportError(
            f"frame refused: version {version}, this node speaks {VERSION}; use one Ammeter on all nodes"
        )
    if header_bytes > limits.header_bytes:
        raise TransportError(
            f"frame refused: a header of {header_bytes:,} bytes is above the limit of {limits.header_bytes:,}"
        )
    size = PREFIX.size + header_bytes + body_bytes
    if size > limits.frame_bytes:
        raise TransportError(f"frame refused: {size:,} bytes are above the limit of {limits.frame_bytes:,}")
    return header_bytes, body_bytes


def _specification(data: bytes) -> tuple[torch.dtype, tuple[int, ...], int]:
    """Return dtype, shape and bytes of a tensor as a header claims it, checked."""
    dimensions, rest = divmod(len(data) - 1, 8)
    if rest or dimensions < 0 or dimensions > _MOST_DIMENSIONS:
        raise TransportError(f"frame refused: {len(data)} bytes do not describe a tensor")
    code, *shape = struct.unpack(f"!B{dimensions}q", data)
    dtype = _DTYPES.get(code)
    if dtype is None:
        raise TransportError(f"frame refused: unknown dtype {code}; known are 1 to {max(_DTYPES)}")
    if any(size < 0 for size in shape):
        raise TransportError(f"frame refused: a negative size in the shape {shape}")
    if prod(max(size, 1) for size in shape) * dtype.itemsize > _MOST_ELEMENTS:
        raise TransportError(f"frame refused: the shape {shape} is too large for any machine")
    return dtype, tuple(shape), prod(shape) * dtype.itemsize


class _Tree:
    """Builds trees from tokens; every item takes a token, so no count can make it allocate ahead of them."""

    def __init__(self, tokens: Iterator[Any], tensors: Iterator[torch.Tensor], limits: Limits) -> None:
        self._tokens = tokens
        self._tensors = tensors
        self._limits = limits

    def next(self) -> Any:
        try:
            return next(self._tokens)
        except StopIteration:
            raise TransportError("frame refused: its header ends too early") from None

    def build(self, depth: int = 0) -> Any:
        token = self.next()
        kind = type(token)
        if kind in _PLAIN:
            return token
        if kind is not msgpack.ExtType:
            raise TransportError(f"frame refused: a value of type {kind.__name__!r} in its header")
        if token.code == _TENSOR:
            try:
                return next(self._tensors)
            except StopIteration:
                raise TransportError("frame refused: a tensor in its meta") from None
        if token.code not in (_LIST, _TUPLE, _DICT) or len(token.data) != _COUNT.size:
            raise TransportError(f"frame refused: an unknown extension {token.code} in its header")
        if depth >= self._limits.depth:
            raise TransportError(f"frame refused: nested deeper than {self._limits.depth} levels")
        (count,) = _COUNT.unpack(token.data)
        if token.code != _DICT:
            items: list[Any] = []
            while len(items) < count:
                items.append(self.build(depth + 1))
            return items if token.code == _LIST else tuple(items)
        mapping: dict[str, Any] = {}
        while len(mapping) < count:
            key = self.next()
            if type(key) is not str or key in mapping:
                raise TransportError(f"frame refused: {str(key)[:40]!r} is no key, or there twice, in its header")
            mapping[key] = self.build(depth + 1)
        return mapping


def _tokens(data: bytes | bytearray | memoryview) -> list[Any]:
    size = len(data)
    unpacker = msgpack.Unpacker(
        max_buffer_size=max(size, 1), max_array_len=0, max_map_len=0, max_ext_len=1 + 8 * _MOST_DIMENSIONS
    )
    unpacker.feed(data)
    try:
        tokens = list(unpacker)
    except (ValueError, msgpack.UnpackException) as error:
        raise TransportError(f"frame refused: its header is not valid ({str(error)[:80]})") from None
    if unpacker.tell() != size:
        raise TransportError("frame refused: its header ends within a value")
    return tokens


def open_header(data: bytes | bytearray | memoryview, body_bytes: int, limits: Limits = DEFAULT) -> Opened:
    """Return the message of a header, its tensors' memory allocated once everything else has been checked.

    Raises:
        TransportError: anything about it is wrong, or this machine has no memory for the tensors.
    """
    tokens = _tokens(data)
    claims = [_specification(t.data) for t in tokens if type(t) is msgpack.ExtType and t.code == _TENSOR]
    if sum(size for _, _, size in claims) != body_bytes:
        raise TransportError(
            f"frame refused: its tensors take {sum(size for _, _, size in claims):,} bytes, its body {body_bytes:,}"
        )
    iterator = iter(tokens)
    head = _Tree(iterator, iter(()), limits)
    values: list[Any] = []
    for name, kind in (*_FIELDS, *_NUMBERS):
        values.append(head.next())
        if type(values[-1]) is not kind:
            raise TransportError(f"frame refused: its {name} is a {type(values[-1]).__name__}, not a {kind.__name__}")
    tag, src, dst, lane, serial, incarnation, ends = values
    if lane not in LANES or not -1 <= serial < 2**63 or not 0 <= incarnation < 2**63:
        raise TransportError(f"frame refused: lane {lane[:40]!r}, serial {serial}, incarnation {incarnation}")
    meta = head.build()
    if type(meta) is not dict or type(meta.get("round", 0)) is not int:
        raise TransportError("frame refused: its meta is no dict, or its round no integer")
    # the payload's structure is checked with stand-ins before any memory is taken
    rest = list(iterator)
    nothing = torch.empty(0)
    check = iter(rest)
    _Tree(check, iter([nothing] * len(claims)), limits).build()
    if next(check, check) is not check:
        raise TransportError("frame refused: its header goes on after the payload")
    try:
        tensors = [torch.empty(shape, dtype=dtype) for dtype, shape, _ in claims]
    except (RuntimeError, MemoryError):
        raise TransportError(f"frame refused: no memory here for its {body_bytes:,} bytes") from None
    payload = _Tree(iter(rest), iter(tensors), limits).build()
    try:
        size = HEADER_BYTES + tree_bytes(payload)
    except (ProtocolError, UnicodeError) as error:
        raise TransportError(f"frame refused: {error}") from None
    message = Message(src, dst, tag, payload, meta, lane, size, incarnation, ends)
    message.serial = serial
    return Opened(message, [raw(tensor) for tensor in tensors if tensor.numel()])

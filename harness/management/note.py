"""A note as bytes and back.

    prefix   16 bytes: magic (4), version (4), length of the body (8); big-endian
    body     msgpack: an array of the kind (a string) and the fields (a map with strings as keys)

A frame without a body is a mark: a stream is a mark, notes, a mark. Extensions, timestamps and 32-bit floats are not
part of it. Reading is done here and not by msgpack, which makes room for as many items as an array claims to have: here
a value is made when its bytes are there.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import msgpack

from harness.errors import TransportError

PREFIX = struct.Struct("!4sIQ")
MAGIC = b"AMNT"
VERSION = 1
MOST_BYTES = 64 * 2**20
"""Of one note; more is sent as several."""
MOST_VALUES = 2**20
"""In one note, keys among them: what a note takes in memory is bounded by its bytes and this. Many numbers are sent as
`bytes`."""
MOST_DEPTH = 32
"""So deep lists and dicts may nest in a field."""
MARK = PREFIX.pack(MAGIC, VERSION, 0)
"""Begins and ends a stream."""

_T = TypeVar("_T")
_PLAIN = frozenset((type(None), bool, float, bytes))


@dataclass(frozen=True)
class Note:
    """What one end tells the other: a kind and named values (None, bool, int, float, str, bytes, lists, dicts).

    Attributes:
        frame_bytes: what it took on the wire, without TLS; 0 if it has not travelled.
    """

    kind: str
    fields: dict[str, Any]
    frame_bytes: int = field(default=0, compare=False)

    def __contains__(self, name: str) -> bool:
        return name in self.fields

    def __getitem__(self, name: str) -> Any:
        try:
            return self.fields[name]
        except KeyError:
            raise TransportError(
                f"a note {self.kind[:40]!r} came without its field {name!r}; use one Ammeter on all nodes"
            ) from None

    def get(self, name: str, kind: type[_T]) -> _T:
        """Return the field `name`, which must be of the type `kind`; a float may have been sent as an integer.

        Raises:
            TransportError: it is not there, or of another type.
        """
        value = self[name]
        if type(value) is kind:
            return value
        if kind is float and type(value) is int:
            return float(value)  # type: ignore[return-value]  # kind is float here
        raise TransportError(
            f"the field {name!r} of a note {self.kind[:40]!r} is a {type(value).__name__}, not a {kind.__name__}; "
            "use one Ammeter on all nodes"
        )


# ---- out --------------------------------------------------------------------------------------------------------


def _count(value: Any, depth: int = 0) -> int:
    """Check that a value is plain; return how many values it holds, with itself."""
    kind = type(value)
    if kind in _PLAIN or kind is str:  # msgpack checks that text can be encoded
        return 1
    if kind is int:
        if not -(2**63) <= value < 2**64:
            raise TransportError(f"{str(value)[:40]} needs more than 64 bits")
        return 1
    if kind is not list and kind is not dict:
        raise TransportError(
            f"a {kind.__name__!r} is no plain value; send None, bool, int, float, str, bytes, list, dict"
        )
    if depth >= MOST_DEPTH:
        raise TransportError(f"it is nested deeper than {MOST_DEPTH} levels")
    if kind is list:
        return 1 + sum(_count(item, depth + 1) for item in value)
    for key in value:
        if type(key) is not str:
            raise TransportError(f"a dict with the key {str(key)[:40]!r}; keys must be strings")
    return 1 + len(value) + sum(_count(item, depth + 1) for item in value.values())


def pack(kind: str, fields: dict[str, Any]) -> bytes:
    """Return the frame of a note.

    Raises:
        TransportError: a field is not plain, or the note is above a limit.
    """
    try:
        if type(kind) is not str or type(fields) is not dict:
            raise TransportError("a note is a string and a dict")
        values = 2 + _count(fields, -1)
        if values > MOST_VALUES:
            raise TransportError(f"{values:,} values are above {MOST_VALUES:,}; send many numbers as bytes")
        try:
            body: bytes = msgpack.packb([kind, fields])
        except (ValueError, OverflowError) as error:  # text that is not valid Unicode; more than 4 GiB
            raise TransportError(f"{str(error)[:80]}; send text that is valid Unicode") from None
        if len(body) + PREFIX.size > MOST_BYTES:
            raise TransportError(f"{len(body):,} bytes are above {MOST_BYTES:,}; send it as several notes")
    except TransportError as error:
        raise TransportError(f"no note {str(kind)[:40]!r}: {error}") from None
    return PREFIX.pack(MAGIC, VERSION, len(body)) + body


# ---- in ---------------------------------------------------------------------------------------------------------


class _Token(NamedTuple):
    """What a first byte means.

    Attributes:
        kind: list, dict, str or bytes: with a number of items or bytes; object: a value by itself.
        form: of the number or value in the bytes that follow; None: it is `given`.
    """

    kind: type
    form: struct.Struct | None
    given: Any = None


def _tokens() -> list[_Token | None]:
    """Return the meaning of each first byte; None: not part of a note."""
    found: list[_Token | None] = [None] * 256
    for number in range(128):
        found[number] = _Token(object, None, number)
    for number in range(32):
        found[0xE0 + number] = _Token(object, None, number - 32)
        found[0xA0 + number] = _Token(str, None, number)
    for number in range(16):
        found[0x80 + number] = _Token(dict, None, number)
        found[0x90 + number] = _Token(list, None, number)
    for first, value in ((0xC0, None), (0xC2, False), (0xC3, True)):
        found[first] = _Token(object, None, value)
    forms = (
        (object, 0xCB, "d"),
        (object, 0xCC, "BHIQbhiq"),
        (bytes, 0xC4, "BHI"),
        (str, 0xD9, "BHI"),
        (list, 0xDC, "HI"),
        (dict, 0xDE, "HI"),
    )
    for kind, first, letters in forms:
        for number, letter in enumerate(letters):
            found[first + number] = _Token(kind, struct.Struct(f"!{letter}"))
    return found


_TOKENS = _tokens()


class _Body:
    """Reads the values of one body."""

    def __init__(self, data: bytes) -> None:
        self.at = 0
        self._data = data
        self._values = 0

    def value(self, depth: int) -> Any:
        """Return the next value; `depth`: how many lists and dicts it may not nest in any more."""
        token = _TOKENS[self._data[self.at]] if self.at < len(self._data) else None
        if token is None:
            raise TransportError("it ends too early" if self.at >= len(self._data) else self._unknown())
        self._values += 1
        if self._values > MOST_VALUES:
            raise TransportError(f"it holds more than {MOST_VALUES:,} values")
        self.at += 1
        kind, form, number = token
        if form is not None:
            if len(self._data) - self.at < form.size:
                raise TransportError("it ends within a value")
            (number,) = form.unpack_from(self._data, self.at)
            self.at += form.size
        if kind is object:
            return number
        if number > len(self._data) - self.at:  # every item takes a byte or more
            raise TransportError("it ends within a value")
        if kind is bytes or kind is str:
            self.at += number
            return self._text(number) if kind is str else self._data[self.at - number : self.at]
        if depth <= 0:
            raise TransportError(f"it is nested deeper than {MOST_DEPTH} levels")
        return self._list(number, depth - 1) if kind is list else self._dict(number, depth - 1)

    def _unknown(self) -> str:
        return f"a value of the unknown type 0x{self._data[self.at]:02x} in it"

    def _text(self, size: int) -> str:
        try:
            return self._data[self.at - size : self.at].decode()
        except UnicodeDecodeError:
            raise TransportError("text in it is not valid Unicode") from None

    def _list(self, count: int, depth: int) -> list[Any]:
        return [self.value(depth) for _ in range(count)]

    def _dict(self, count: int, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for _ in range(count):
            key = self.value(0)
            if type(key) is not str or key in found:
                raise TransportError(f"{str(key)[:40]!r} is no key, or there twice, in it")
            found[key] = self.value(depth)
        return found


def _unpack(body: bytes) -> Note:
    reading = _Body(body)
    found = reading.value(MOST_DEPTH + 2)
    if reading.at != len(body):
        raise TransportError(f"{len(body) - reading.at:,} bytes follow its end")
    if type(found) is not list or len(found) != 2 or type(found[0]) is not str or type(found[1]) is not dict:
        raise TransportError("it is not a kind with its fields")
    return Note(found[0], found[1], PREFIX.size + len(body))


class Reader:
    """Notes out of a stream of bytes; of no more use once it has raised. It holds what has come of one note.

    Attributes:
        begun, ended: the stream's first and last mark have come.
    """

    def __init__(self) -> None:
        self.begun = False
        self.ended = False
        self._data = bytearray()
        self._length: int | None = None  # of the body that comes, once its prefix has

    @property
    def middle(self) -> bool:
        """A note has come in part."""
        return self._length is not None or bool(self._data)

    def feed(self, data: bytes) -> list[Note]:
        """Take what has come; return the notes that are whole now.

        Raises:
            TransportError: it is no stream of notes; those before in `data` are lost with it.
        """
        self._data += data
        found: list[Note] = []
        try:
            while (note := self._next()) is not None:
                found.append(note)
        except TransportError as error:
            self._data = bytearray()
            raise TransportError(f"note refused: {error}") from None
        return found

    def _next(self) -> Note | None:
        """Take one note off what has come; marks on the way."""
        while True:
            if self.ended and self._data:
                raise TransportError("it follows the end")
            if self._length is None:
                if len(self._data) < PREFIX.size:
                    return None
                self._length = self._open(self._data)
                del self._data[: PREFIX.size]
            if self._length:
                break
            self.begun, self.ended = True, self.begun
            self._length = None
        if len(self._data) < self._length:
            return None
        body = bytes(memoryview(self._data)[: self._length])
        del self._data[: self._length]
        self._length = None
        return _unpack(body)

    def _open(self, data: bytearray) -> int:
        length: int
        magic, version, length = PREFIX.unpack_from(data)
        if magic != MAGIC:
            raise TransportError(f"it begins with {magic!r}, not {MAGIC!r}; this is another protocol")
        if version != VERSION:
            raise TransportError(f"version {version}, this node speaks {VERSION}; use one Ammeter on all nodes")
        if length + PREFIX.size > MOST_BYTES:
            raise TransportError(f"{length:,} bytes are above {MOST_BYTES:,}")
        if length and not self.begun:
            raise TransportError("it comes before the beginning")
        return length

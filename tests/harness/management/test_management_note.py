"""Notes: whatever they may hold comes back; what is no note is refused by a sentence, at no cost."""

from __future__ import annotations

import contextlib
import math
import os
import random
import struct
import tracemalloc
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import TransportError
from harness.management.note import (
    MAGIC,
    MARK,
    MOST_BYTES,
    MOST_DEPTH,
    MOST_VALUES,
    PREFIX,
    VERSION,
    Note,
    Reader,
    pack,
)

FUZZED = int(os.environ.get("AMMETER_FUZZED_NOTES", "20000"))


def framed(body: bytes) -> bytes:
    return PREFIX.pack(MAGIC, VERSION, len(body)) + body


def read(data: bytes) -> list[Note]:
    return Reader().feed(MARK + data)


def same(a: Any, b: Any) -> bool:
    """Equal in structure, types and bits."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float):
        return struct.pack("d", a) == struct.pack("d", b)
    return bool(a == b)


def nested(levels: int) -> Any:
    value: Any = 1
    for level in range(levels):
        value = [value] if level % 2 else {"x": value}
    return value


plain = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary()
values = st.recursive(
    plain, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner, max_size=5)
)
fields = st.dictionaries(st.text(max_size=8), values, max_size=5)

EVERY_LENGTH = [0, 1, 15, 16, 31, 32, 255, 256, 65535, 65536]
EVERY_INTEGER = [
    sign * 2**bits + by for sign in (1, -1) for bits in (0, 5, 7, 8, 15, 16, 31, 32, 63) for by in (-1, 0, 1)
]


@settings(max_examples=500, deadline=None)
@given(st.text(max_size=40), fields)
def test_whatever_a_note_may_hold_comes_back(kind: str, sent: dict[str, Any]) -> None:
    frame = pack(kind, sent)
    (got,) = read(frame)
    assert got.kind == kind
    assert same(got.fields, sent)
    assert got.frame_bytes == len(frame)


@pytest.mark.parametrize(
    "value",
    [
        [True, False, None, math.inf, -0.0, 1e-310],
        [value for value in EVERY_INTEGER if value >= -(2**63)],
        [b"x" * size for size in EVERY_LENGTH],
        ["é" * (size // 2) + "x" * (size % 2) for size in EVERY_LENGTH],
        [[0] * size for size in EVERY_LENGTH],
        [{str(number): number for number in range(size)} for size in EVERY_LENGTH],
        nested(MOST_DEPTH),
    ],
)
def test_every_length_and_range_that_has_a_form_of_its_own_comes_back(value: Any) -> None:
    (got,) = read(pack("values", {"value": value}))
    assert same(got.fields, {"value": value})


@settings(max_examples=200, deadline=None)
@given(st.lists(fields, min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_notes_come_back_however_reads_cut_them(sent: list[dict[str, Any]], rng: random.Random) -> None:
    data = MARK + b"".join(pack(str(number), one) for number, one in enumerate(sent)) + MARK
    reader = Reader()
    got = []
    at = 0
    while at < len(data):
        assert not reader.ended
        size = rng.randint(1, 50)
        got += reader.feed(data[at : at + size])
        at += size
    assert reader.ended
    assert not reader.middle
    assert [note.kind for note in got] == [str(number) for number in range(len(sent))]
    assert same([note.fields for note in got], sent)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ((1, 2), "'tuple' is no plain value"),
        ({1: 2}, "the key '1'; keys must be strings"),
        ({b"x": 2}, "keys must be strings"),
        ([{"x": {1}}], "'set' is no plain value"),
        (bytearray(3), "'bytearray' is no plain value"),
        (2**64, "more than 64 bits"),
        (-(2**63) - 1, "more than 64 bits"),
        (["\ud800"], "send text that is valid Unicode"),
        (nested(MOST_DEPTH + 1), "deeper than 32 levels"),
        ([0] * MOST_VALUES, "send many numbers as bytes"),
        (bytes(MOST_BYTES), "send it as several notes"),
        (print, "'builtin_function_or_method' is no plain value"),
    ],
)
def test_what_no_note_can_carry_is_refused_by_who_sends_it(value: Any, why: str) -> None:
    with pytest.raises(TransportError, match=f"no note 'job': .*{why}"):
        pack("job", {"value": value})


def test_the_largest_note_comes_back() -> None:
    room = MOST_BYTES - len(pack("bulk", {"data": bytes(2**16)})) + 2**16
    (got,) = read(pack("bulk", {"data": bytes(room)}))
    assert len(got.get("data", bytes)) == room
    assert got.frame_bytes == MOST_BYTES
    with pytest.raises(TransportError, match="several notes"):
        pack("bulk", {"data": bytes(room + 1)})
    most = [0] * (MOST_VALUES - 5)  # with the note, its kind, its fields, the key and the list itself
    assert len(read(pack("bulk", {"data": most}))[0].get("data", list)) == len(most)
    with pytest.raises(TransportError, match="values are above"):
        pack("bulk", {"data": [0, *most]})


def test_a_field_is_asked_for_by_its_type() -> None:
    note = Note("rate", {"bits": 5, "rate": 2.5, "on": True, "who": None})
    assert note.get("bits", int) == 5
    assert note.get("on", bool) is True
    assert note.get("rate", float) == 2.5
    whole = note.get("bits", float)
    assert type(whole) is float
    assert whole == 5.0
    assert note["who"] is None
    assert "bits" in note
    assert "bytes" not in note
    for name, kind, had in (
        ("on", int, "bool"),
        ("on", float, "bool"),
        ("rate", int, "float"),
        ("who", str, "NoneType"),
    ):
        with pytest.raises(
            TransportError, match=rf"the field '{name}' of a note 'rate' is a {had}, not a {kind.__name__}"
        ):
            note.get(name, kind)
    for ask in (lambda: note["bytes"], lambda: note.get("bytes", int)):
        with pytest.raises(TransportError, match="a note 'rate' came without its field 'bytes'"):
            ask()


def feed_in_steps(data: bytes, step: int) -> None:
    reader = Reader()
    for at in range(0, len(data), step):
        reader.feed(data[at : at + step])


def body(kind: Any, value: Any) -> bytes:
    return framed(bytes(msgpack.packb([kind, value])))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"GET / HTTP/1.1\r\nHost: server\r\n\r\n", "b'GET ', not b'AMNT'; this is another protocol"),
        (PREFIX.pack(MAGIC, 2, 9), "version 2, this node speaks 1"),
        (PREFIX.pack(MAGIC, VERSION, 2**64 - 1), "bytes are above"),
        (PREFIX.pack(MAGIC, VERSION, MOST_BYTES - PREFIX.size + 1), "bytes are above"),
        (body(1, {}), "not a kind with its fields"),
        (body("x", []), "not a kind with its fields"),
        (framed(msgpack.packb(["x", {}, 1])), "not a kind with its fields"),
        (framed(msgpack.packb({"x": 1})), "not a kind with its fields"),
        (body("x", {1: 2}), "'1' is no key"),
        (body("x", {b"x": 2}), "is no key"),
        (framed(b"\x92\xa1x\x82\xa1a\x01\xa1a\x02"), "'a' is no key, or there twice"),
        (framed(b"\x92\xa1x\x81\x90\x01"), "nested deeper"),
        (framed(msgpack.packb(["x", {}]) + b"\xc0"), "1 bytes follow its end"),
        (framed(b"\x92\xa1x\x81\xa1a"), "ends too early"),
        (framed(b"\x92\xa1x\x81\xa1a\xcb\x00"), "ends within a value"),
        (framed(b"\x92\xa1x\x81\xa1a\xc6\x00\x00\x00\x02x"), "ends within a value"),
        (framed(b"\x92\xa1x\x81\xa1a\xdd\xff\xff\xff\xff\x00"), "ends within a value"),
        (framed(b"\x92\xa1x\xdf\xff\xff\xff\xff\xa1a\x00"), "ends within a value"),
        (framed(b"\x92\xa1x\x81\xa1a\xa2\xc3\x28"), "not valid Unicode"),
        (framed(b"\x92\xa1x\x81\xa1a\xca\x00\x00\x00\x00"), "unknown type 0xca"),
        (framed(b"\x92\xa1x\x81\xa1a\xc1"), "unknown type 0xc1"),
        (body("x", {"a": msgpack.ExtType(5, b"x")}), "unknown type 0xd4"),
        (body("x", {"a": msgpack.Timestamp(5, 0)}), "unknown type 0xd6"),
        (body("x", {"a": nested(MOST_DEPTH + 1)}), "deeper than 32 levels"),
        (framed(b"\x91" * 2**20), "deeper than 32 levels"),
        (body("x", {"a": [[]] * MOST_VALUES}), "more than 1,048,576 values"),
        (MARK + pack("x", {}), "follows the end"),
        (MARK + b"\x00", "follows the end"),
        (MARK + MARK, "follows the end"),
    ],
)
def test_what_is_no_note_is_refused_by_who_receives_it(data: bytes, why: str) -> None:
    for step in (len(data), 7 if len(data) < 1000 else 2**16):
        with pytest.raises(TransportError, match=f"^note refused: .*{why}"):
            feed_in_steps(MARK + data, step)


def test_a_note_before_the_beginning_is_refused() -> None:
    with pytest.raises(TransportError, match="before the beginning"):
        Reader().feed(pack("x", {}))


@settings(max_examples=200, deadline=None)
@given(fields, st.data())
def test_a_note_that_is_cut_off_never_arrives(sent: dict[str, Any], data: st.DataObject) -> None:
    frame = pack("kind", sent)
    short = data.draw(st.integers(1, len(frame) - 1))
    reader = Reader()
    assert reader.feed(MARK + frame[:short]) == []
    assert reader.begun
    assert reader.middle
    with pytest.raises(TransportError):  # its prefix mended: its body says too little
        read(framed(frame[PREFIX.size : max(short, PREFIX.size + 1)]))


def test_claims_take_no_memory() -> None:
    many = b"\xdd" + struct.pack("!I", 50_000)  # arrays of 50,000 items in one another, and 50,000 bytes to back them
    hostile = [
        MARK + PREFIX.pack(MAGIC, VERSION, MOST_BYTES - PREFIX.size) + b"\x92",
        MARK + framed(b"\x92\xa1x\x81\xa1a" + many * 10_000),
        MARK + framed(b"\x92\xa1x\x81\xa1a\xdd\xff\xff\xff\xff" + b"\xc0" * 1000),
    ]
    tracemalloc.start()
    try:
        for data in hostile:
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            with contextlib.suppress(TransportError):
                assert Reader().feed(data) == []
            assert tracemalloc.get_traced_memory()[1] - before < 3 * len(data) + 50_000
    finally:
        tracemalloc.stop()


# ---- hostile bytes ----------------------------------------------------------------------------------------------


def survives(data: bytes) -> bool:
    """Feed it; whether it was taken for notes. Anything but notes or a TransportError is a failure."""
    notes: list[Note] = []
    with contextlib.suppress(TransportError):
        notes = Reader().feed(data)
    for note in notes:
        (again,) = read(pack(note.kind, note.fields))  # what is taken is a note that could have been sent
        assert same(again.fields, note.fields)
    return bool(notes)


@settings(max_examples=3000, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_notes_or_refused(data: bytes) -> None:
    survives(data)
    survives(MARK + data)
    survives(MARK + framed(data or b"\x00"))
    survives(MARK + framed(b"\x92\xa1x\x81\xa1a" + data))


@settings(max_examples=1000, deadline=None)
@given(fields, st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), min_size=1, max_size=6))
def test_notes_with_some_bytes_changed_are_notes_or_refused(
    sent: dict[str, Any], changes: list[tuple[int, int]]
) -> None:
    frame = bytearray(pack("kind", sent))
    for at, value in changes:
        frame[at % len(frame)] = value
    survives(MARK + bytes(frame))


@settings(max_examples=1000, deadline=None)
@given(st.binary(max_size=60))
def test_what_is_read_is_what_msgpack_reads(data: bytes) -> None:
    """The oracle: msgpack itself reads the same from every body that is taken."""
    body = b"\x92\xa1x\x81\xa1a" + data
    try:
        (note,) = read(framed(body))
    except TransportError:
        return
    kind, found = msgpack.unpackb(body)
    assert note.kind == kind
    assert same(note.fields, found)


def test_fuzzed_notes_are_refused_or_are_notes() -> None:
    rng = random.Random(1)
    good = pack("job", {"n": [1, 2.5, None, {"deep": [True, -5, 2**40]}], "data": b"x" * 40, "text": "é" * 20})
    refused = 0
    for number in range(FUZZED):
        data = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(data)) if data else 0
            kind = rng.random()
            if kind < 0.5 and data:
                data[at] ^= 1 << rng.randrange(8)
            elif kind < 0.7:
                data[at:at] = rng.randbytes(rng.randint(1, 9))
            elif kind < 0.85:
                del data[at : at + rng.randint(1, 9)]
            else:
                data[at : at + 4] = rng.choice([b"\xff" * 4, bytes(4), b"\xdd\xff\xff\xff", rng.randbytes(4)])
        if number % 3:  # a prefix that fits, so that the body is looked at
            data[: PREFIX.size] = PREFIX.pack(MAGIC, VERSION, max(len(data) - PREFIX.size, 0))
        refused += not survives(MARK + bytes(data))
    assert FUZZED // 3 < refused < FUZZED

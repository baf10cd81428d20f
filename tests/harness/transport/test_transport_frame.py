"""Frames: whatever a payload may hold comes back bit for bit; what is no frame is refused by name, at no cost."""

from __future__ import annotations

import os
import random
import tracemalloc
from typing import Any

import msgpack
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transport_ends import message

from harness.errors import TransportError
from harness.message import Message
from harness.transport.assembler import DIRECT_BYTES, Arrival, Assembler, decode
from harness.transport.frame import _DTYPES, MAGIC, PREFIX, VERSION, Limits, encode, raw

FUZZED = int(os.environ.get("AMMETER_FUZZED_FRAMES", "20000"))
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def joined(of: Message) -> bytes:
    return b"".join(encode(of).parts)


def same(a: Any, b: Any) -> bool:
    """Equal in structure, types, dtypes, shapes and bits."""
    if isinstance(a, torch.Tensor):
        bits = (
            isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.shape == b.shape and bytes(raw(a)) == bytes(raw(b))
        )
        return bool(bits)
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float):
        return a.hex() == b.hex()
    return bool(a == b)


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    dtype = draw(st.sampled_from(list(_DTYPES.values())))
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    tensor = torch.zeros(shape, dtype=dtype)
    if tensor.numel():
        values = random.Random(draw(st.integers(0, 2**32))).randbytes(raw(tensor).nbytes)
        raw(tensor)[:] = bytes(byte & 1 for byte in values) if dtype is torch.bool else values
    return tensor.transpose(0, -1) if len(shape) > 1 and draw(st.booleans()) else tensor


plain = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary()
trees = st.recursive(
    plain | tensors(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(trees, st.dictionaries(st.text(max_size=8).filter(lambda key: key != "round"), plain, max_size=3))
def test_whatever_a_payload_may_hold_comes_back(payload: Any, meta: dict[str, Any]) -> None:
    sent = message(payload, 7)
    sent.meta = meta
    (got,) = decode(joined(sent))
    assert same(got.payload, payload)
    assert same(got.meta, meta)
    assert (got.src, got.dst, got.tag, got.lane, got.serial) == ("device-0", "server", "tag", "data", 7)
    assert got.payload_bytes == sent.payload_bytes


@settings(max_examples=100, deadline=None)
@given(st.lists(trees, min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_frames_come_back_however_reads_cut_them(payloads: list[Any], rng: random.Random) -> None:
    data = b"".join(joined(message(payload, i)) for i, payload in enumerate(payloads))
    got: list[Arrival] = []
    assembler = Assembler(got.append)
    position = 0
    while position < len(data):
        target = assembler.buffer()
        size = min(len(target), len(data) - position, rng.randint(1, 50))
        target[:size] = data[position : position + size]
        assembler.filled(size, float(position))
        position += size
    assert all(map(same, [arrival.message.payload for arrival in got], payloads))
    assert len(got) == len(payloads)
    assert sum(arrival.frame_bytes for arrival in got) == len(data)
    assert not assembler.middle


@pytest.mark.parametrize("device", DEVICES)
def test_strided_and_foreign_memory_is_sent_as_its_values(device: str) -> None:
    base = torch.arange(24.0, device=device).reshape(4, 6)
    parameter = torch.nn.Parameter(base.clone())
    (got,) = decode(joined(message([base.T, base[::2, 1:], base.to(torch.complex64).conj(), parameter])))
    assert torch.equal(got.payload[0], base.T.cpu())
    assert torch.equal(got.payload[1], base[::2, 1:].cpu())
    assert torch.equal(got.payload[2], base.to(torch.complex64).cpu())
    assert torch.equal(got.payload[3], base.cpu())


def test_a_contiguous_tensor_is_not_copied_on_its_way_out() -> None:
    tensor = torch.zeros(1000)
    frame = encode(message({"weights": tensor}))
    tensor[3] = 1.0
    assert bytes(frame.parts[1]) == bytes(raw(tensor))


def test_a_large_tensor_is_read_into_the_memory_that_becomes_it() -> None:
    sent = torch.randn(DIRECT_BYTES)
    frame = encode(message(sent))
    got: list[Arrival] = []
    assembler = Assembler(got.append)
    target = assembler.buffer()
    target[: frame.parts[0].nbytes] = frame.parts[0]
    assembler.filled(frame.parts[0].nbytes, 1.0)
    direct = assembler.buffer()
    assert direct.nbytes == frame.parts[1].nbytes
    direct[:] = frame.parts[1]
    assembler.filled(direct.nbytes, 2.0)
    assert torch.equal(got[0].message.payload, sent)
    direct[0] ^= 1
    assert not torch.equal(got[0].message.payload, sent)
    assert (got[0].first_byte_s, got[0].last_byte_s) == (1.0, 2.0)


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        (2**64, "64 bits"),
        ({1: 2}, "keys must be strings"),
        ({"a": {3}}, "'set'"),
        (torch.zeros(2, device="meta"), "on meta"),
        (torch.eye(2).to_sparse(), "sparse"),
        ("\ud800", "Unicode"),
    ],
)
def test_what_no_frame_can_carry_is_refused_where_it_is_sent(payload: Any, why: str) -> None:
    sent = Message("device-0", "server", "tag", payload, {}, "data", 64)
    with pytest.raises(TransportError, match=f"device-0: 'tag' to server: .*{why}"):
        encode(sent)


def test_limits_hold_on_the_way_out() -> None:
    nested: Any = 1
    for _ in range(65):
        nested = [nested]
    with pytest.raises(TransportError, match="nested deeper than 64"):
        encode(message(nested))
    with pytest.raises(TransportError, match=r"header of .* above the limit"):
        encode(message([1] * 2000), Limits(header_bytes=1000))
    with pytest.raises(TransportError, match=r"frame of .* above the limit"):
        encode(message(torch.zeros(2000)), Limits(frame_bytes=8000))
    assert Limits().frame_bytes >= 2**40
    with pytest.raises(TransportError, match="meta cannot hold tensors"):
        encode(message(None, 0, a=torch.zeros(1)))


# ---- hostile ----------------------------------------------------------------------------------------------------

HEAD = ["tag", "device-0", "server", "data", 0, 0, False]
EMPTY = msgpack.ExtType(3, (0).to_bytes(8, "big"))


def shaped(code: int, *shape: int) -> msgpack.ExtType:
    return msgpack.ExtType(4, bytes([code]) + b"".join(size.to_bytes(8, "big", signed=True) for size in shape))


def forged(tokens: list[Any], body: int = 0, header: bytes | None = None, version: int = VERSION) -> bytes:
    packed = b"".join(map(msgpack.packb, tokens)) if header is None else header
    return PREFIX.pack(MAGIC, version, len(packed), body) + packed


def container(code: int, count: int) -> msgpack.ExtType:
    return msgpack.ExtType(code, count.to_bytes(8, "big"))


HOSTILE = [
    (b"GET / HTTP/1.1\r\nHost: server\r\n\r\n", "another protocol"),
    (forged([], version=9), "version 9"),
    (PREFIX.pack(MAGIC, VERSION, 2**40, 0), "header of .* above the limit"),
    (PREFIX.pack(MAGIC, VERSION, 10, 2**63), "above the limit"),
    (forged([]), "no header"),
    (forged([*HEAD[:3]]), "ends too early"),
    (forged(["tag", 3, *HEAD[2:], EMPTY, None]), "source is a int"),
    (forged([*HEAD[:3], "mail", *HEAD[4:], EMPTY, None]), "lane 'mail'"),
    (forged([*HEAD[:4], -5, *HEAD[5:], EMPTY, None]), "serial -5"),
    (forged([*HEAD, 3, None]), "meta is no dict"),
    (forged([*HEAD, container(3, 1), "round", "x", None]), "round no integer"),
    (forged([*HEAD, EMPTY]), "ends too early"),
    (forged([*HEAD, EMPTY, 1, 2]), "goes on"),
    (forged([*HEAD, EMPTY, shaped(99, 2)], 8), "unknown dtype 99"),
    (forged([*HEAD, EMPTY, shaped(1, -2)], 8), "negative"),
    (forged([*HEAD, EMPTY, shaped(1, -2, -2)], 16), "negative"),
    (forged([*HEAD, EMPTY, shaped(1, 3)], 8), "tensors take 12 bytes, its body 8"),
    (forged([*HEAD, EMPTY, shaped(1, 2**40)], 8), "tensors take"),
    (forged([*HEAD, EMPTY, shaped(1, 0, 2**62, 2**62)]), "too large for any machine"),
    (forged([*HEAD, EMPTY, shaped(5, *[2] * 65)], 8), "not valid|do not describe"),
    (forged([*HEAD, EMPTY, msgpack.ExtType(4, b"")]), "do not describe"),
    (forged([*HEAD, EMPTY, msgpack.ExtType(4, b"\x01\x02")]), "do not describe"),
    (forged([*HEAD, EMPTY, msgpack.ExtType(9, b"12345678")]), "unknown extension 9"),
    (forged([*HEAD, EMPTY, msgpack.Timestamp(1)]), "'Timestamp'"),
    (forged([*HEAD, EMPTY, container(1, 2**60), 1]), "ends too early"),
    (forged([*HEAD, EMPTY, *[container(1, 1)] * 70, 1]), "nested deeper"),
    (forged([*HEAD, EMPTY, container(3, 2), "a", 1, "a", 2]), "there twice"),
    (forged([*HEAD, EMPTY, container(3, 1), 4, 1]), "no key"),
    (forged([*HEAD, container(3, 1), "a", shaped(1), None], 4), "tensor in its meta"),
    (forged([*HEAD, EMPTY, [1]]), "not valid"),
    (forged([], header=b"\xdd\xff\xff\xff\xff" * 1000), "not valid"),
    (forged([], header=b"\xdf\xff\xff\xff\xff"), "not valid"),
    (forged([], header=b"\xc1"), "not valid"),
    (forged([], header=b"\xa2\xff\xff"), "not valid"),
    (forged([*HEAD, EMPTY, shaped(1, 2**37)], 2**39), "no memory|middle"),
    (joined(message(torch.zeros(10)))[:-1], "in the middle"),
    (joined(message(torch.zeros(10)))[:10], "in the middle"),
]


@pytest.mark.parametrize(("data", "why"), HOSTILE, ids=[why.replace(" ", "-") for _, why in HOSTILE])
def test_a_hostile_frame_is_refused_by_name_and_allocates_nothing(data: bytes, why: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(TransportError, match=why):
            decode(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**21


def test_the_tensors_of_a_refused_frame_are_never_made(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[Any] = []
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *args, **options: (sizes.append(args[0]), empty(*args, **options))[1])
    claim = [shaped(1, 2**30)]
    for tokens in ([*HEAD, EMPTY, *claim, 1], [*HEAD, 3, *claim], [*HEAD, EMPTY, container(1, 2), *claim]):
        with pytest.raises(TransportError):
            decode(forged(tokens, 2**32))
    assert all(size == 0 for size in sizes)


def test_a_header_costs_no_more_than_its_length_allows() -> None:
    most = 2**20
    overhead = len(forged([*HEAD, EMPTY])) + 10
    items = (most - overhead) // 10
    lists = msgpack.packb(container(1, 0))
    data = forged([], header=b"".join(map(msgpack.packb, [*HEAD, EMPTY, container(1, items)])) + lists * items)
    tracemalloc.start()
    try:
        decode(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 200 * most


def test_fuzzed_frames_are_refused_or_are_messages() -> None:
    rng = random.Random(1)
    payload = {
        "w": torch.randn(5, 3),
        "n": [1, (2.5, "x", None)],
        "b": torch.zeros(0, 4),
        "i": torch.ones((), dtype=torch.int64),
    }
    good = joined(message(payload, 3, round=2))
    refused = 0
    limits = Limits(frame_bytes=2**20, header_bytes=2**16)
    for number in range(FUZZED):
        data = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            kind = rng.random()
            at = rng.randrange(min(len(data), 260)) if data else 0
            if kind < 0.5 and data:
                data[at] ^= 1 << rng.randrange(8)
            elif kind < 0.7:
                data[at:at] = rng.randbytes(rng.randint(1, 9))
            elif kind < 0.85:
                del data[at : at + rng.randint(1, 9)]
            else:
                data[at : at + 8] = rng.choice([b"\xff" * 8, bytes(8), b"\x7f" + b"\xff" * 7, rng.randbytes(8)])
        if number % 7 == 0:
            del data[rng.randrange(len(data) + 1) :]
        try:
            for got in decode(data, limits):
                assert isinstance(got, Message)
        except TransportError:
            refused += 1
    assert refused > FUZZED // 3

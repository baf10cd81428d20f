"""harness/message.py: bytes of payloads, and the freeze check."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import ProtocolError
from harness.message import HEADER_BYTES, Message, check_frozen, freeze, tensors, tree_bytes


def message(payload: Any = None, **meta: Any) -> Message:
    return Message("device-0", "server", "update", payload, meta, "data", HEADER_BYTES + tree_bytes(payload))


@pytest.mark.parametrize(
    ("payload", "size"),
    [
        (None, 0),
        (True, 8),
        (7, 8),
        (10**30, 8),
        (0.5, 8),
        ("abc", 3),
        ("ä€", 5),
        (b"raw", 3),
        (torch.zeros(3, 5), 60),
        (torch.zeros(3, 5, dtype=torch.float16), 30),
        (torch.zeros(3, 5, dtype=torch.int64), 120),
        (torch.zeros((), dtype=torch.bool), 1),
        (torch.nn.Parameter(torch.zeros(4)), 16),
        ((torch.zeros(2), [1, "a", None], {"w": torch.zeros(1), "deep": {"b": 0.5}}), 8 + 9 + 4 + 8),
        ([], 0),
        ({}, 0),
    ],
)
def test_bytes_by_hand(payload: Any, size: int):
    assert tree_bytes(payload) == size


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_tensor_counts_its_elements_whatever_its_strides(device: str):
    base = torch.zeros(10, 10, device=device)
    assert tree_bytes(base.t()) == 400
    assert tree_bytes(base[:, ::2]) == 200
    assert tree_bytes(base[:1].expand(50, 10)) == 2000
    assert tree_bytes([base, base]) == 800


@given(st.integers(-(2**62), 2**62), st.integers(-(2**62), 2**62))
def test_bytes_never_depend_on_the_value_of_a_number(a: int, b: int):
    assert tree_bytes({"round": a}) == tree_bytes({"round": b}) == 8


@pytest.mark.parametrize("payload", [np.zeros(3), {1, 2}, object(), 1j, [np.float32(1)], {"a": range(3)}])
def test_what_no_testbed_can_carry_is_refused(payload: Any):
    with pytest.raises(ProtocolError, match="a payload cannot hold"):
        tree_bytes(payload)


def test_tensors_come_in_a_fixed_order():
    a, b, c = torch.zeros(1), torch.zeros(2), torch.zeros(3)
    found = list(tensors({"x": (a, 1, [b]), "y": "text", "z": c}))
    assert [t is wanted for t, wanted in zip(found, (a, b, c), strict=True)] == [True] * 3


def test_the_round_is_what_the_sender_said():
    assert message(round=3).round == 3
    assert message().round == 0
    assert repr(message(round=3)) == "<update device-0 -> server {'round': 3} 64 B>"


def test_a_frozen_payload_may_be_delivered_once_and_be_written_to_afterwards():
    weights = torch.zeros(2)
    posted = message({"w": [weights]})
    freeze(posted)
    check_frozen(posted)
    weights.add_(1)
    check_frozen(posted)


@pytest.mark.parametrize("through", ["itself", "view", "out", "resize"])
def test_any_write_between_post_and_delivery_is_seen(through: str):
    weights, other = torch.zeros(4), torch.zeros(4)
    posted = message([other, (weights,)])
    freeze(posted)
    if through == "itself":
        weights[0] = 1
    elif through == "view":
        weights[:2].mul_(2)
    elif through == "out":
        torch.add(other, 1, out=weights)
    else:
        weights.resize_(8)
    with pytest.raises(ProtocolError, match="device-0: the payload of 'update' to server was changed"):
        check_frozen(posted)


def test_reading_is_no_write():
    weights = torch.zeros(4, requires_grad=True)
    posted = message(weights)
    freeze(posted)
    (weights * 2).sum().backward()
    weights.detach().clone().add_(1)
    check_frozen(posted)


def test_inference_tensors_can_be_posted():
    with torch.inference_mode():
        activation = torch.ones(2) * 2
    posted = message((activation, torch.zeros(1)))
    freeze(posted)
    check_frozen(posted)

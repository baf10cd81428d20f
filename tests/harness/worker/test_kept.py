"""harness/worker/kept.py: states come back bit for bit, in order, whether they stayed in memory or not."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import torch

from harness.worker import kept as module
from harness.worker.kept import Evaluation, Kept


def states(number: int) -> tuple[Any, ...]:
    """Return 1,280 bytes of tensors, and what is none."""
    generator = torch.Generator().manual_seed(number)
    block = torch.randn(16, 16, generator=generator)
    return {"block": block, "half": torch.randn(4, 32, generator=generator).half().T}, [torch.arange(0), number, "x"]


def evaluation(number: int) -> Evaluation:
    return Evaluation("global", "scorer", states(number), number, float(number))


def same(one: Any, other: Any) -> bool:
    (a, rest), (b, more) = one, other
    tensors = all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a) and a.keys() == b.keys()
    return tensors and torch.equal(rest[0], more[0]) and rest[0].dtype == more[0].dtype and rest[1:] == more[1:]


def round_trip(memory_bytes: int, count: int) -> tuple[list[Evaluation], int]:
    async def scenario() -> tuple[list[Evaluation], int]:
        kept = Kept(memory_bytes)
        for number in range(count):
            kept.add(evaluation(number))
            await asyncio.sleep(0)
        await kept.settle()
        in_memory_bytes = kept.in_memory_bytes
        assert len(kept) == count
        found = []
        while (one := kept.take()) is not None:
            found.append(one)
        return found, in_memory_bytes

    return asyncio.run(scenario())


@pytest.mark.parametrize(("memory_bytes", "stay"), [(10**6, 6), (2 * 1280, 2), (0, 0)])
def test_states_come_back_as_they_were_and_memory_is_bounded(memory_bytes: int, stay: int):
    found, in_memory_bytes = round_trip(memory_bytes, 6)
    assert in_memory_bytes == stay * 1280
    assert [one.round for one in found] == list(range(6))
    assert all(same(one.states, states(one.round)) for one in found)


def test_what_is_written_later_does_not_change_what_is_kept():
    async def scenario() -> None:
        kept = Kept(0)
        weights = torch.zeros(64)
        kept.add(Evaluation("global", None, (torch._lazy_clone(weights),), 1, 0.0))
        weights.add_(1.0)
        await kept.settle()
        found = kept.take()
        assert found is not None
        assert torch.equal(found.states[0], torch.zeros(64))

    asyncio.run(scenario())


def test_without_room_on_the_disk_it_stays_in_memory(monkeypatch: pytest.MonkeyPatch):
    def full(**options: Any) -> None:  # noqa: ARG001
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.tempfile, "TemporaryFile", full)
    found, in_memory_bytes = round_trip(0, 3)
    assert in_memory_bytes == 3 * 1280
    assert all(same(one.states, states(one.round)) for one in found)


def test_nothing_is_kept_of_what_is_taken():
    found, _ = round_trip(0, 0)
    assert found == []

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np
import pytest
import torch
from torch import Tensor

from harness.task.batch import Batch, Shard, batch_size, samples_in


class Rows:
    """A source whose samples are their own numbers, so that a batch says which samples it holds."""

    def fetch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        return index.to(torch.float32), index


def shard(
    samples: int = 20,
    client: int | str = 0,
    seed: int = 1,
    batch_size: int = 8,
    drop_last: bool = False,
    timing: bool = False,
    first: int = 100,
) -> Shard:
    return Shard(Rows(), np.arange(first, first + samples), client, seed, batch_size, drop_last, "rows", timing)


def rows(batches: Iterable[Batch]) -> list[list[int]]:
    return [batch.load()[1].tolist() for batch in batches]


def test_a_pass_has_every_sample_once() -> None:
    batches = rows(shard().epoch(0))
    assert [len(batch) for batch in batches] == [8, 8, 4]
    assert sorted(itertools.chain(*batches)) == list(range(100, 120))
    assert list(itertools.chain(*batches)) != list(range(100, 120))


def test_without_shuffling_the_order_is_that_of_the_index() -> None:
    assert rows(shard().epoch(3, shuffle=False)) == [
        list(range(100, 108)),
        list(range(108, 116)),
        list(range(116, 120)),
    ]


def test_the_order_depends_on_seed_client_and_epoch() -> None:
    base = rows(shard().epoch(0))
    assert rows(shard().epoch(0)) == base
    assert rows(shard().epoch(1)) != base
    assert rows(shard(client=1).epoch(0)) != base
    assert rows(shard(client="pool").epoch(0)) != base
    assert rows(shard(seed=2).epoch(0)) != base


def test_the_order_depends_on_nothing_else() -> None:
    """Neither on the batch size, nor on global random state, nor on what was drawn before."""
    base = list(itertools.chain(*rows(shard().epoch(2))))
    assert list(itertools.chain(*rows(shard(batch_size=3).epoch(2)))) == base
    used = shard()
    rows(used.epoch(0))
    np.random.seed(3)
    torch.manual_seed(4)
    assert list(itertools.chain(*rows(used.epoch(2)))) == base


def test_drawing_batches_leaves_global_random_state_alone() -> None:
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    rows(shard().epoch(0))
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()


@pytest.mark.parametrize(
    ("samples", "drop_last", "sizes"),
    [
        (20, False, [8, 8, 4]),
        (20, True, [8, 8]),
        (16, False, [8, 8]),
        (16, True, [8, 8]),
        (5, False, [5]),
        (5, True, [5]),  # a client with less than one batch would otherwise learn nothing
        (1, False, [1]),
    ],
)
@pytest.mark.parametrize("timing", [False, True])
def test_batch_sizes_in_both_modes(samples: int, drop_last: bool, sizes: list[int], timing: bool) -> None:
    made = shard(samples, drop_last=drop_last, timing=timing)
    assert [batch.samples for batch in made.epoch(0)] == sizes
    assert made.batches_per_epoch == len(sizes)
    assert made.samples == samples


def test_epochs_are_passes_behind_each_other() -> None:
    made = shard()
    assert rows(made.epochs(2, 2)) == rows(made.epoch(2)) + rows(made.epoch(3))
    assert rows(made.epochs(2, 0)) == []


@pytest.mark.parametrize("timing", [False, True])
@pytest.mark.parametrize("per_call", [1, 2, 3, 4, 7])
def test_steps_go_on_across_calls_and_passes(per_call: int, timing: bool) -> None:
    """Calls of `per_call` steps each, together, are the endless series of passes, cut anywhere."""
    made = shard(timing=timing)
    whole = [batch.samples for batch in made.epochs(0, 5)] if timing else rows(made.epochs(0, 5))
    got: list[object] = []
    for first in range(0, 14, per_call):
        batches = list(made.steps(first, per_call))
        assert len(batches) == per_call
        got += [batch.samples for batch in batches] if timing else rows(batches)
    assert got[:14] == whole[:14]


def test_steps_with_dropped_batches_skip_them() -> None:
    made = shard(drop_last=True)
    assert rows(made.steps(0, 4)) == rows(made.epochs(0, 2))
    assert [len(batch) for batch in rows(made.steps(1, 3))] == [8, 8, 8]


def test_a_batch_is_loaded_when_asked_and_again_the_same() -> None:
    loaded: list[int] = []

    class Counting(Rows):
        def fetch(self, index: Tensor) -> tuple[Tensor, Tensor]:
            loaded.append(len(index))
            return super().fetch(index)

    made = Shard(Counting(), np.arange(20), 0, 1, 8, False, "rows", False)
    batches = list(made.epoch(0))
    assert loaded == []
    assert torch.equal(batches[0].load()[0], batches[0].load()[0])
    assert loaded == [8, 8]


def test_the_signature_is_the_name_and_the_size() -> None:
    whole, _, last = shard().epoch(0)
    assert whole.signature == shard(client=7, seed=9).epoch(4).__next__().signature
    assert whole.signature != last.signature
    assert "rows" in whole.signature


def test_timing_batches_are_shapes_and_shared() -> None:
    made = shard(timing=True)
    first, second, last = made.epoch(0)
    assert first is second
    assert first is next(made.epoch(5))
    inputs, labels = last.load()
    assert inputs.is_meta
    assert labels.shape == (4,)


def test_the_samples_of_a_computation_are_those_of_its_mini_batches_or_of_its_first_tensor():
    batches = list(shard(10, batch_size=4).epoch(0))
    weights, bias = torch.zeros(7, 3), torch.zeros(5)
    assert samples_in((batches[0], weights, batches[2])) == batch_size((batches[0], weights, batches[2])) == 6
    assert (samples_in((bias, {"w": weights})), batch_size((bias, {"w": weights}))) == (0, 7)
    assert (samples_in((bias, 3)), batch_size((bias, 3))) == (0, 0)

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from harness.errors import ConfigError
from harness.task.partition import PartitionConfig, label_histogram, partition

LABELS = np.repeat(np.arange(10), 600)


def deal(
    labels: np.ndarray, clients: int, seed: int = 0, owners: np.ndarray | None = None, **settings: object
) -> list[np.ndarray]:
    config = PartitionConfig(**settings)  # type: ignore[arg-type]
    return partition(labels, owners, clients, config, np.random.default_rng(seed))


@st.composite
def problems(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int, PartitionConfig]:
    total = draw(st.integers(1, 300))
    clients = draw(st.integers(1, min(total, 12)))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    labels = rng.integers(0, draw(st.integers(1, 12)), total)
    owners = rng.permutation(np.arange(total) % draw(st.integers(clients, total)))
    samples = draw(st.none() | st.integers(clients, total))
    config = PartitionConfig(
        kind=draw(st.sampled_from(["iid", "dirichlet", "shards", "natural"])),
        alpha=draw(st.sampled_from([1e-300, 0.01, 0.1, 0.5, 10.0, 1e6])),
        min_samples=draw(st.integers(1, max(1, (samples or total) // clients))),
        shards_per_client=draw(st.integers(1, 3)),
        samples=samples,
    )
    return labels, owners, clients, config


@settings(max_examples=150, deadline=None, derandomize=True)
@given(problem=problems(), seed=st.integers(0, 2**32))
def test_parts_are_disjoint_complete_sorted_large_enough_and_repeatable(
    problem: tuple[np.ndarray, np.ndarray, int, PartitionConfig], seed: int
) -> None:
    labels, owners, clients, config = problem
    try:
        parts = partition(labels, owners, clients, config, np.random.default_rng(seed))
    except ConfigError:
        assume(False)
    together = np.concatenate(parts)
    assert len(parts) == clients
    assert len(np.unique(together)) == len(together) == (config.samples or len(labels))
    assert together.min() >= 0
    assert together.max() < len(labels)
    for part in parts:
        assert part.dtype == np.int64
        assert len(part) >= config.min_samples
        assert (np.diff(part) > 0).all()
    again = partition(labels, owners, clients, config, np.random.default_rng(seed))
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))


def test_another_seed_gives_other_parts() -> None:
    for kind in ("iid", "dirichlet", "shards"):
        first, second = deal(LABELS, 5, 0, kind=kind), deal(LABELS, 5, 1, kind=kind)
        assert not np.array_equal(first[0], second[0])


def test_iid_parts_are_equal_in_size_and_mixed() -> None:
    counts = label_histogram(deal(LABELS, 7, kind="iid"), LABELS, 10)
    assert counts.sum() == 6000
    assert np.ptp(counts.sum(axis=1)) <= 1
    assert counts.min() > 40


def test_smaller_alpha_gives_fewer_classes_per_client() -> None:
    def classes_for_most(alpha: float) -> float:
        counts = np.sort(label_histogram(deal(LABELS, 10, kind="dirichlet", alpha=alpha), LABELS, 10))[:, ::-1]
        share = np.cumsum(counts, axis=1) / counts.sum(axis=1, keepdims=True)
        return float((share < 0.9).sum(axis=1).mean()) + 1

    assert classes_for_most(0.05) < 3
    assert classes_for_most(0.5) < 7
    assert classes_for_most(1000.0) > 8


def test_dirichlet_with_huge_alpha_is_nearly_even() -> None:
    counts = label_histogram(deal(LABELS, 10, kind="dirichlet", alpha=1e6), LABELS, 10)
    assert np.ptp(counts) <= 3


def test_dirichlet_does_not_hang_when_it_cannot_be_done() -> None:
    with pytest.raises(ConfigError, match=r"1000 draws with partition.alpha 1e-05 .* at most \d+ samples, fewer"):
        deal(LABELS, 20, kind="dirichlet", alpha=1e-5, min_samples=10)


def test_dirichlet_deals_to_very_many_clients() -> None:
    labels = np.repeat(np.arange(10), 5000)
    parts = deal(labels, 1000, kind="dirichlet", alpha=1.0, min_samples=1)
    assert sum(map(len, parts)) == 50_000


def test_shards_give_few_classes_per_client() -> None:
    parts = deal(LABELS, 10, kind="shards")
    assert [len(part) for part in parts] == [600] * 10
    assert ((label_histogram(parts, LABELS, 10) > 0).sum(axis=1) <= 2).all()


def test_shards_do_not_follow_file_order_inside_a_class() -> None:
    part = deal(np.zeros(100, dtype=np.int64), 2, kind="shards", shards_per_client=1)[0]
    assert part.tolist() not in (list(range(50)), list(range(50, 100)))


def test_natural_keeps_each_owner_whole() -> None:
    owners = np.repeat([5, 3, 9], [20, 30, 40])
    parts = deal(np.zeros(90, dtype=np.int64), 3, kind="natural", owners=owners)
    assert [sorted(set(owners[part])) for part in parts] == [[3], [5], [9]]


def test_natural_deals_many_owners_evenly() -> None:
    owners = np.repeat(np.arange(7), 20)
    parts = deal(np.zeros(140, dtype=np.int64), 3, kind="natural", owners=owners)
    people = [set(owners[part].tolist()) for part in parts]
    assert [len(group) for group in people] == [3, 2, 2]
    assert set().union(*people) == set(range(7))


def test_a_sub_sample_keeps_the_shares_of_the_classes() -> None:
    labels = np.repeat([0, 1, 2], [1000, 500, 7])
    parts = deal(labels, 2, kind="iid", samples=150)
    assert label_histogram(parts, labels, 3).sum(axis=0).tolist() == [99, 50, 1]
    assert not np.array_equal(np.concatenate(parts), np.concatenate(deal(labels, 2, 1, kind="iid", samples=150)))


def test_label_histogram_counts_by_client_and_class() -> None:
    labels = np.array([0, 2, 2, 1])
    counts = label_histogram([np.array([0, 1]), np.array([2, 3]), np.array([], dtype=np.int64)], labels, 4)
    assert counts.tolist() == [[1, 0, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    assert counts.dtype == np.int64


@pytest.mark.parametrize(
    ("clients", "settings", "message"),
    [
        (0, {}, "clients is 0; it must be at least 1"),
        (-3, {}, "clients is -3"),
        (101, {}, "101 clients for 100 training samples; use fewer"),
        (20, {}, "partition.min_samples 10 for 20 clients needs 200 training samples, there are 100"),
        (2, {"samples": 101}, "partition.samples is 101, the training split has 100"),
        (30, {"samples": 20}, "30 clients for 20 training samples"),
        (5, {"samples": 20}, "needs 50 training samples, there are 20"),
        (2, {"kind": "shards", "shards_per_client": 51}, "need 102 shards, there are 100"),
        (2, {"kind": "natural"}, "needs a data set that knows who produced each sample"),
    ],
)
def test_what_cannot_be_dealt_is_refused(clients: int, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        deal(np.repeat(np.arange(10), 10), clients, **settings)  # type: ignore[arg-type]


def test_natural_refuses_more_clients_than_owners_and_owners_with_too_little() -> None:
    owners = np.repeat([0, 1], [95, 5])
    labels = np.zeros(100, dtype=np.int64)
    with pytest.raises(ConfigError, match=r"3 clients, but .* from 2 owners; use at most 2 clients"):
        deal(labels, 3, kind="natural", owners=owners)
    with pytest.raises(ConfigError, match="natural partition: client 1 of 2 gets 5 samples, fewer than"):
        deal(labels, 2, kind="natural", owners=owners)


def test_arrays_of_another_shape_are_a_programming_error() -> None:
    with pytest.raises(ValueError, match="must both be"):
        deal(np.zeros(100, dtype=np.int64), 2, owners=np.zeros(99, dtype=np.int64))


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "random"},
        {"alpha": 0},
        {"alpha": float("nan")},
        {"alpha": float("inf")},
        {"min_samples": 0},
        {"shards_per_client": 0},
        {"samples": 0},
        {"seed": 1},
    ],
)
def test_the_configuration_is_checked(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        PartitionConfig(**settings)  # type: ignore[arg-type]


def test_the_configuration_is_frozen() -> None:
    config = PartitionConfig(kind="iid")
    with pytest.raises(ValidationError):
        config.alpha = 1.0  # type: ignore[misc]

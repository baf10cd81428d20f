"""Deal the training samples to the clients.

Works on labels alone, so that timing mode can partition a data set whose files are not there.

Sources: "dirichlet", Li et al., Federated Learning on Non-IID Data Silos (NIID-Bench), ICDE 2022; "shards",
McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data, AISTATS 2017.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from harness.errors import ConfigError

Indices = npt.NDArray[np.int64]

MAX_DRAWS = 1000
"""How many Dirichlet draws may miss `min_samples` before it is the user's move."""


class PartitionConfig(BaseModel):
    """How the training samples are dealt.

    - "iid": equal parts of a random order.
    - "dirichlet": each class is divided in proportions from a symmetric Dirichlet distribution with parameter
      `alpha`; the smaller, the fewer classes a client has.
    - "shards": samples sorted by class, cut into `shards_per_client` shards per client, dealt at random.
    - "natural": by the person who produced them; with more people than clients, several people per client.

    `min_samples` is the least any client gets. `samples`, if given, uses only that many training samples,
    drawn at random with the classes' shares kept.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: Literal["iid", "dirichlet", "shards", "natural"] = "iid"
    alpha: float = Field(default=0.5, gt=0, le=1e6)
    min_samples: int = Field(default=10, ge=1)
    shards_per_client: int = Field(default=2, ge=1)
    samples: int | None = Field(default=None, ge=1)


def partition(
    labels: npt.NDArray[np.integer],
    owners: npt.NDArray[np.integer] | None,
    clients: int,
    config: PartitionConfig,
    rng: np.random.Generator,
) -> list[Indices]:
    """Return, for each of `clients` clients, the sorted indices of its samples.

    `labels` [N] and `owners` [N] (None if the set knows no owners) are class and person of each training
    sample. The parts are disjoint; together they are 0..N-1, or the drawn `config.samples` of them. The same
    arguments and state of `rng` give the same parts.

    Raises ConfigError if the samples cannot be dealt so.
    """
    if labels.ndim != 1 or (owners is not None and owners.shape != labels.shape):
        raise ValueError(f"labels {labels.shape} and owners must both be [N]")
    if clients < 1:
        raise ConfigError(f"clients is {clients}; it must be at least 1")
    if config.samples is not None and config.samples > len(labels):
        raise ConfigError(
            f"partition.samples is {config.samples}, the training split has {len(labels)}; "
            f"use at most {len(labels)} or null"
        )
    chosen = stratified(labels, len(labels) if config.samples is None else config.samples, rng)
    total = len(chosen)
    if clients > total:
        raise ConfigError(f"{clients} clients for {total} training samples; use fewer clients or more samples")
    if config.min_samples * clients > total:
        raise ConfigError(
            f"partition.min_samples {config.min_samples} for {clients} clients needs "
            f"{config.min_samples * clients} training samples, there are {total}; "
            "lower partition.min_samples, use fewer clients or more samples"
        )
    used = labels[chosen]
    if config.kind == "iid":
        parts = np.array_split(rng.permutation(total), clients)
    elif config.kind == "dirichlet":
        parts = _dirichlet(used, clients, config.alpha, config.min_samples, rng)
    elif config.kind == "shards":
        parts = _shards(used, clients, config.shards_per_client, rng)
    else:
        parts = _natural(None if owners is None else owners[chosen], clients, rng)
    smallest = min(range(clients), key=lambda client: len(parts[client]))
    if len(parts[smallest]) < config.min_samples:
        raise ConfigError(
            f"{config.kind} partition: client {smallest} of {clients} gets {len(parts[smallest])} samples, "
            f"fewer than partition.min_samples {config.min_samples}; "
            "lower partition.min_samples or use fewer clients"
        )
    return [np.sort(chosen[part]) for part in parts]


def label_histogram(
    parts: Sequence[npt.NDArray[np.integer]], labels: npt.NDArray[np.integer], num_classes: int
) -> npt.NDArray[np.int64]:
    """Return the number of samples of each class at each client, int64 [clients, classes]."""
    counts = np.zeros((len(parts), num_classes), dtype=np.int64)
    for row, part in zip(counts, parts, strict=True):
        row[:] = np.bincount(np.asarray(labels)[part], minlength=num_classes)
    return counts


def stratified(labels: npt.NDArray[np.integer], samples: int, rng: np.random.Generator) -> Indices:
    """Return the sorted indices of `samples` samples, drawn with the classes' shares kept (largest remainder)."""
    total = len(labels)
    if samples == total:
        return np.arange(total, dtype=np.int64)
    classes, counts = np.unique(labels, return_counts=True)
    share, remainder = np.divmod(samples * counts.astype(np.int64), total)
    largest = np.argsort(-remainder, kind="stable")[: samples - int(share.sum())]
    share[largest] += 1
    drawn = [
        rng.choice(np.flatnonzero(labels == label), size=size, replace=False)
        for label, size in zip(classes, share, strict=True)
    ]
    return np.sort(np.concatenate(drawn)).astype(np.int64)


def _dirichlet(
    labels: npt.NDArray[np.integer],
    clients: int,
    alpha: float,
    min_samples: int,
    rng: np.random.Generator,
) -> list[Indices]:
    """Draw until every client has `min_samples`, sizes first: the samples are only dealt once, at the end.

    NIID-Bench draws proportions for all clients and zeroes those that already have N / clients samples or
    more; drawing for the others alone is the same distribution.
    """
    classes, counts = np.unique(labels, return_counts=True)
    best = 0
    for _ in range(MAX_DRAWS):
        shares = np.zeros((len(classes), clients), dtype=np.int64)
        had = np.zeros(clients, dtype=np.int64)
        for row, count in zip(shares, counts, strict=True):
            open_clients = np.flatnonzero(had * clients < len(labels))
            proportions = rng.dirichlet(np.full(len(open_clients), alpha))
            cuts = np.floor(np.cumsum(proportions)[:-1] * count).astype(np.int64).clip(0, count)
            row[open_clients] = np.diff(cuts, prepend=0, append=count)
            had += row
        best = max(best, int(had.min()))
        if had.min() >= min_samples:
            break
    else:
        raise ConfigError(
            f"dirichlet partition: in {MAX_DRAWS} draws with partition.alpha {alpha} the smallest of "
            f"{clients} clients had at most {best} samples, fewer than partition.min_samples {min_samples}; "
            "raise partition.alpha, lower partition.min_samples or use fewer clients"
        )
    pieces: list[list[Indices]] = [[] for _ in range(clients)]
    for label, row in zip(classes, shares, strict=True):
        members = rng.permutation(np.flatnonzero(labels == label))
        for client, piece in enumerate(np.split(members, np.cumsum(row)[:-1])):
            pieces[client].append(piece)
    return [np.concatenate(piece) for piece in pieces]


def _shards(
    labels: npt.NDArray[np.integer], clients: int, shards_per_client: int, rng: np.random.Generator
) -> list[Indices]:
    shards = clients * shards_per_client
    if shards > len(labels):
        raise ConfigError(
            f"shards partition: {clients} clients with partition.shards_per_client {shards_per_client} need "
            f"{shards} shards, there are {len(labels)} training samples; "
            "lower partition.shards_per_client, use fewer clients or more samples"
        )
    order = rng.permutation(len(labels))  # so that which samples of a class share a shard is chance
    by_label = order[np.argsort(labels[order], kind="stable")]
    pieces = np.array_split(by_label, shards)
    dealt = rng.permutation(shards).reshape(clients, shards_per_client)
    return [np.concatenate([pieces[shard] for shard in hand]) for hand in dealt]


def _natural(owners: npt.NDArray[np.integer] | None, clients: int, rng: np.random.Generator) -> list[Indices]:
    if owners is None:
        raise ConfigError(
            "partition.kind 'natural' needs a data set that knows who produced each sample; "
            "use 'iid', 'dirichlet' or 'shards', or another data set"
        )
    people = np.unique(owners)
    if len(people) < clients:
        raise ConfigError(
            f"natural partition: {clients} clients, but the training samples are from {len(people)} owners; "
            f"use at most {len(people)} clients"
        )
    if len(people) > clients:
        people = rng.permutation(people)
    return [np.flatnonzero(np.isin(owners, people[client::clients])) for client in range(clients)]

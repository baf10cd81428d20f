"""The server's average: ten ResNet-18 states, beside a list of layers and beside just reading the same memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from harness.allocator import keep_freed_memory
from harness.task import models
from harness.task.aggregate import State, shares, weighted_average
from harness.task.state import FlatState

STATES = 10
REPEATS = 15
SPEEDUP, SHARE = 3.0, 0.7

Layers = list[npt.NDArray[np.float32]]


def _by_layers(results: list[tuple[Layers, int]]) -> Layers:
    """Average as Flower's `flwr.server.strategy.aggregate.aggregate` does: a list of arrays per model."""
    total = sum(samples for _, samples in results)
    weighted = [[layer * samples for layer in layers] for layers, samples in results]
    return [reduce(np.add, layer) / total for layer in zip(*weighted, strict=True)]


def _read(states: list[State]) -> None:
    """Read every number once, with as many threads; torch's sum is the fastest reader at hand."""
    for state in states:
        state["block"].sum()


def _seconds(jobs: dict[str, Callable[[], Any]]) -> dict[str, list[float]]:
    """Return the seconds of each job, measured in turn."""
    found: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(REPEATS):
        for name, job in jobs.items():
            job()  # what the one before it left in the caches is not its merit
            began = time.perf_counter()
            job()
            found[name].append(time.perf_counter() - began)
    return found


def _rows(threads: int, states: list[State], layers: list[Layers], samples: list[int]) -> list[str]:
    torch.set_num_threads(threads)
    results = list(zip(layers, samples, strict=True))
    weights = shares(samples, "samples")
    took = _seconds(
        {
            "list of layers": lambda: _by_layers(results),
            "Ammeter": lambda: weighted_average(states, weights),
            "reading": lambda: _read(states),
        }
    )
    read_bytes = sum(4 * len(state["block"]) for state in states)
    speedup = statistics.median(a / b for a, b in zip(took["list of layers"], took["Ammeter"], strict=True))
    share = statistics.median(a / b for a, b in zip(took["reading"], took["Ammeter"], strict=True))
    verdicts = ["met" if value >= target else "missed" for value, target in ((speedup, SPEEDUP), (share, SHARE))]
    figures = [
        f"{statistics.median(took[name]) * 1e3:.1f} ({read_bytes / statistics.median(took[name]) / 1e9:.1f})"
        for name in took
    ]
    return [
        f"| {threads} | {' | '.join(figures)} | {speedup:.2f} (target {SPEEDUP:g}, {verdicts[0]}) "
        f"| {share:.0%} (target {SHARE:.0%}, {verdicts[1]}) |"
    ]


def report() -> str:
    """Measure and return the section; freed memory is kept from here on, as in every learn run."""
    keep_freed_memory()
    model = models.build("resnet-18", "image", (3, 32, 32), 10, 0, "batch")
    shapes = [tuple(t.shape) for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()]
    size = len(FlatState(model).flat)
    generator = torch.Generator().manual_seed(1)
    states: list[State] = [{"block": torch.randn(size, generator=generator)} for _ in range(STATES)]
    layers = [_cut(state["block"].numpy(), shapes) for state in states]
    samples = list(range(100, 100 + STATES))
    expected = np.concatenate([layer.ravel() for layer in _by_layers(list(zip(layers, samples, strict=True)))])
    found = weighted_average(states, shares(samples, "samples"))["block"].numpy()
    assert np.allclose(found, expected, rtol=1e-4, atol=1e-6), "the two averages differ"
    before = torch.get_num_threads()
    rows = [row for threads in sorted({1, before}) for row in _rows(threads, states, layers, samples)]
    torch.set_num_threads(before)
    return "\n".join(
        [
            "## The average",
            "",
            f"{STATES} ResNet-18 states of {4 * size / 1e6:.1f} MB (tests/bench/aggregate.py), median of {REPEATS}",
            "in turn: milliseconds (GB of states per second). The list of layers is what Flower's `aggregate` does,",
            "always on one thread; reading is torch's sum over the same memory. Freed memory is kept for all three, as",
            "in every learn run.",
            "",
            "| threads | list of layers | Ammeter | reading | times the list of layers | share of reading |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
        ]
    )


def _cut(flat: npt.NDArray[np.float32], shapes: list[tuple[int, ...]]) -> Layers:
    """Return copies of a flat state's layers."""
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
    return [part.reshape(shape).copy() for part, shape in zip(np.split(flat, ends[:-1]), shapes, strict=True)]

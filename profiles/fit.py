"""Fit a device's figures to published times, and say how far off the fit is for networks it has not seen.

The roofline of profiles.price is linear in the reciprocals of its rates (FLOPs of dense convolutions, of matrix
products, of depthwise convolutions forward and backward, bytes of all other operators) and in the time per operator
call, as long as it is known which products the memory's stream rate holds up. They are found by non-negative least
squares on relative errors. Three kinds of times are understood: of a training step, of a forward pass with all but
the last layer frozen (weighted less: such runs hold more than the forward pass), and of a forward pass in evaluation
mode, at several batch sizes.

Few networks leave the proportions of the rates open. A board of the same family with more of them may lend its
own: `like` pulls every rate towards the other board's times one common factor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import inf
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from harness.cost.work import Kind, Operators
from profiles.device import DeviceProfile
from profiles.price import seconds

Name = Literal[
    "conv_flops_per_s",
    "matmul_flops_per_s",
    "depthwise_flops_per_s",
    "depthwise_backward_flops_per_s",
    "memory_bytes_per_s",
    "operator_s",
]
"""A figure of a device profile that can be fitted."""

FIGURES: dict[Kind, Name] = {
    "conv": "conv_flops_per_s",
    "matmul": "matmul_flops_per_s",
    "depthwise": "depthwise_flops_per_s",
    "depthwise_backward": "depthwise_backward_flops_per_s",
    "memory": "memory_bytes_per_s",
}
"""The figure that holds the rate of each kind of operator."""

RATES: tuple[Name, ...] = tuple(FIGURES.values())
"""What is fitted where nothing else is asked for."""

FORWARD_WEIGHT = 0.2
"""How much the error of a step with frozen layers counts beside that of a training step."""
NOISE, SPREAD = 0.05, 0.125
"""Relative standard deviations: of a measured time, and of a rate around what a like board's would suggest."""
DETERMINED = 0.01
"""The least share of some sample's time at which a figure counts as determined by the samples."""
ROUNDS = 50
"""How often the fit asks anew which products the stream rate holds up."""

Fit = dict[Name, float]
"""Fitted figures: FLOP/s, B/s, and seconds per operator call."""

Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Sample:
    """One published time.

    Attributes:
        network: which; a network is left out with all of its samples.
        operators: traced, of one step.
        seconds: measured, of one step.
        what: step: forward, backward and update. frozen: forward, and training of the last layer. infer: forward in
            evaluation mode, without a graph.
        batch: samples in the mini-batch.
    """

    network: str
    operators: tuple[Operators, ...]
    seconds: float
    what: Literal["step", "frozen", "infer"] = "step"
    batch: int = 0


def fit(
    samples: Sequence[Sample],
    known: DeviceProfile,
    names: Sequence[Name] = RATES,
    like: Fit | None = None,
    roof: bool = False,
) -> Fit:
    """Return the figures that fit the samples best; those of kinds that no sample has are left out.

    Args:
        known: what is not fitted is taken from here.
        names: which figures to fit.
        like: figures of a board of the same family; their common factor is fitted first.
        roof: whether products and convolutions may be held up by `known.stream_bytes_per_s`.

    Raises:
        ValueError: no samples, or nothing of them is to be fitted.
    """
    if not samples:
        raise ValueError("no published time to fit to")
    amounts = np.array([[amount(sample, name) for name in get_args(Name)] for sample in samples])
    names = [name for name, column in zip(get_args(Name), amounts.T, strict=True) if name in names and column.any()]
    if not names:
        raise ValueError("none of the figures to fit has a part in these times")
    times = np.array([sample.seconds for sample in samples])
    weight = np.array([FORWARD_WEIGHT if sample.what == "frozen" else 1.0 for sample in samples]) / times / NOISE
    # what costs nothing in these samples is given the figure at which it would have cost a thousandth
    least = 1e-3 * times.max() / np.array([max(amount(sample, name) for sample in samples) for name in names])
    best: Fit = {}
    off = inf
    current: Fit = {}
    for _ in range(ROUNDS if roof else 1):
        features, constant = _equations(samples, known, names, current if roof else None)
        costs = _solve(features, times - constant, weight, names, like)
        previous, current = current, {name: _figure(name, c, m) for name, c, m in zip(names, costs, least, strict=True)}
        predicted = np.array([predict(current, known, sample) for sample in samples])
        error = float((((predicted - times) * weight) ** 2).sum())
        if not best or error < off:
            best, off = current, error
        if current == previous:
            break
    return best


def predict(figures: Fit, profile: DeviceProfile, sample: Sample) -> float:
    """Return what a profile with these figures says a sample takes, in seconds."""
    return seconds(sample.operators, replace(profile, **figures))  # type: ignore[arg-type]


def leave_one_out(
    samples: Sequence[Sample],
    profile: DeviceProfile,
    names: Sequence[Name] = RATES,
    like: tuple[Sequence[Sample], DeviceProfile] | None = None,
    roof: bool = False,
) -> dict[tuple[str, int], float]:
    """Return the relative errors of each network's times by (network, batch), as fits that have never seen it predict.

    Steps with frozen layers are not predicted; nor is a network with a kind of operators that takes less than a
    hundredth of every other network's time: they say nothing of its rate.

    Args:
        like: samples and profile of the board whose figures are lent; the network is left out there as well.
    """
    errors: dict[tuple[str, int], float] = {}
    for network in dict.fromkeys(sample.network for sample in samples):
        others = [sample for sample in samples if sample.network != network]
        lent = None
        if like is not None:
            lent = fit([sample for sample in like[0] if sample.network != network], like[1], names)
        if not others:
            continue
        figures = fit(others, profile, names, lent, roof)
        known = _determined(figures, others, profile, names, roof)
        for sample in samples:
            asked = {name for name in names if amount(sample, name)}
            if sample.network == network and sample.what != "frozen" and asked <= known:
                errors[network, sample.batch] = predict(figures, profile, sample) / sample.seconds - 1
    return errors


def _determined(
    figures: Fit, samples: Sequence[Sample], profile: DeviceProfile, names: Sequence[Name], roof: bool
) -> set[Name]:
    """Return the figures that these samples have something to say about."""
    fitted = [name for name in names if name in figures]
    features, _ = _equations(samples, profile, fitted, figures if roof else None)
    costs = np.array([figures[name] if name == "operator_s" else 1 / figures[name] for name in fitted])
    shares = features * costs / np.array([[sample.seconds] for sample in samples])
    return {name for name, share in zip(fitted, shares.max(axis=0), strict=True) if share >= DETERMINED}


def _equations(
    samples: Sequence[Sample], known: DeviceProfile, names: Sequence[Name], current: Fit | None
) -> tuple[Matrix, Matrix]:
    """Return what each sample has of each figure [samples, names], and the seconds that are known already [samples].

    Args:
        current: figures that say which products the stream rate holds up; None: none is.
    """
    features, constant = np.zeros((len(samples), len(names))), np.zeros(len(samples))
    column = {name: position for position, name in enumerate(names)}
    for row, sample in enumerate(samples):
        for group in sample.operators:
            name = FIGURES[group.kind]
            work = group.bytes if group.kind == "memory" else group.flops
            rate = (current or {}).get(name) or getattr(known, name) or inf
            stream_s = group.bytes / (known.stream_bytes_per_s or inf)
            if current and group.kind != "memory" and stream_s > work / rate:
                constant[row] += group.count * stream_s
            elif name in column:
                features[row, column[name]] += group.count * work
            else:
                constant[row] += group.count * work / rate
            if "operator_s" in column:
                features[row, column["operator_s"]] += group.count
            else:
                constant[row] += group.count * known.operator_s
    return features, constant


def _solve(features: Matrix, seconds: Matrix, weight: Matrix, names: Sequence[Name], like: Fit | None) -> Matrix:
    """Return the cost of one unit of each figure [names]: of a FLOP, a byte, a call."""
    left, right = features * weight[:, None], seconds * weight
    if like is not None:
        prior = np.array([like[name] if name == "operator_s" else 1 / like[name] for name in names])
        prior *= (left @ prior @ right) / (left @ prior @ left @ prior)
        left = np.vstack([left, np.diag(1 / prior / SPREAD)])
        right = np.append(right, np.full(len(names), 1 / SPREAD))
    return _non_negative(left, right)


def _figure(name: Name, cost: float, least: float) -> float:
    """Return the figure of a cost per unit."""
    return float(cost) if name == "operator_s" else float(1 / max(cost, least))


def amount(sample: Sample, name: Name) -> float:
    """Return how much a sample has of what a figure prices: FLOPs, bytes, calls."""
    if name == "operator_s":
        return sum(group.count for group in sample.operators)
    return sum(
        group.count * (group.bytes if group.kind == "memory" else group.flops)
        for group in sample.operators
        if FIGURES[group.kind] == name
    )


def _non_negative(left: Matrix, right: Matrix) -> Matrix:
    """Least squares of `left @ x = right` with x >= 0: the best of all subsets of columns (there are few)."""
    scale = np.abs(left).max(axis=0)
    used = [column for column in range(left.shape[1]) if scale[column] > 0]
    best, least = np.zeros(left.shape[1]), float(right @ right)
    for size in range(1, len(used) + 1):
        for columns in map(list, combinations(used, size)):
            some, *_ = np.linalg.lstsq(left[:, columns] / scale[columns], right, rcond=None)
            residual = left[:, columns] / scale[columns] @ some - right
            if (some >= 0).all() and float(residual @ residual) < least:
                least = float(residual @ residual)
                best = np.zeros(left.shape[1])
                best[columns] = some / scale[columns]
    return best

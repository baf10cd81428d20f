"""What a piece of work costs on a device.

Three tiers, the firmest first:

measured: the work is a part of a network whose training step somebody has timed on this device. It costs what
    the roofline says, scaled so that the whole timed step takes the time that was measured.
roofline: operator by operator. A convolution or matrix product takes its FLOPs over its kind's rate, or its bytes
    over the memory's stream rate if that is longer; every other operator its bytes over the memory rate; each
    `operator_s` more.
scalar: all FLOPs over the one rate that is known. Off by more than 20 x between networks: a last resort.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf, log
from typing import Literal, NamedTuple

from harness.cost.work import Operators, Phase, Work
from profiles.device import DeviceProfile, MeasuredStep

Tier = Literal["measured", "roofline", "scalar"]

_RATES = {
    "conv": "conv_flops_per_s",
    "matmul": "matmul_flops_per_s",
    "depthwise": "depthwise_flops_per_s",
    "depthwise_backward": "depthwise_backward_flops_per_s",
}


class Price(NamedTuple):
    """How long a device computes, how firm that is, and how much of it each phase takes."""

    seconds: float
    tier: Tier
    phases: dict[Phase, float]


def price(work: Work, profile: DeviceProfile, *, batch: int = 0) -> Price:
    """Return what `work` costs on `profile`.

    Args:
        batch: samples that the work is for; of several measured steps of its network the nearest in batch counts.
    """
    phases: dict[Phase, float] = {}
    for group in work.operators:
        phases[group.phase] = phases.get(group.phase, 0.0) + group.count * _operator_s(group, profile)
    tier: Tier = "roofline" if profile.flops_per_s is None else "scalar"
    step = basis(work, profile, batch)
    if step is not None:
        phases = {phase: seconds * step.step_s / step.roofline_s for phase, seconds in phases.items()}
        tier = "measured"
    return Price(sum(phases.values()), tier, phases)


def basis(work: Work, profile: DeviceProfile, batch: int = 0) -> MeasuredStep | None:
    """Return the measured step that the price of `work` on `profile` rests on, None for none."""
    if not work.network:
        return None
    return _nearest((step for step in profile.measured if step.network == work.network), batch)


def seconds(operators: Iterable[Operators], profile: DeviceProfile) -> float:
    """Return how long operators take by the roofline (or the scalar) alone."""
    return sum(group.count * _operator_s(group, profile) for group in operators)


def _operator_s(group: Operators, profile: DeviceProfile) -> float:
    if profile.flops_per_s is not None:
        return group.flops / profile.flops_per_s + profile.operator_s
    if group.kind == "memory":
        return group.bytes / (profile.memory_bytes_per_s or inf) + profile.operator_s
    rate: float = getattr(profile, _RATES[group.kind])
    return max(group.flops / rate, group.bytes / (profile.stream_bytes_per_s or inf)) + profile.operator_s


def _nearest(steps: Iterable[MeasuredStep], batch: int) -> MeasuredStep | None:
    return min(steps, key=lambda step: (abs(log(max(batch, 1) / step.batch)), step.batch), default=None)

"""When a run reached a target accuracy, from its summary alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def reached(curve: Sequence[Sequence[float]], target: float | None) -> float | None:
    """Return when a curve of [at_s, accuracy] first reached the target; None = never."""
    return next((at_s for at_s, value in curve if target is not None and value >= target), None)


def retarget(summary: Mapping[str, Any], target: float | None) -> dict[str, Any]:
    """Return a summary with another target accuracy."""
    found = reached(summary["accuracy_curve"], target)
    return {**summary, "target_accuracy": target, "time_to_accuracy_s": found}

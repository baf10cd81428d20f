"""Means over seeds and how sure they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import stdtrit

Floats = npt.NDArray[np.float64]


def half_width(deviation: Any, count: int) -> Any:
    """Return half the width of the 95 % confidence interval of a mean of `count` values (Student's t).

    Args:
        deviation: their sample standard deviation (ddof 1), a number or an array.
    """
    if count < 2:
        return np.zeros_like(deviation)
    return stdtrit(count - 1, 0.975) * deviation / np.sqrt(count)


def mean_of(frame: pd.DataFrame, column: str) -> tuple[float, float]:
    """Return mean and half width of the 95 % interval of a column's values that are not NaN."""
    values: Floats = frame[column].to_numpy(dtype=np.float64)
    values = values[~np.isnan(values)]
    if not len(values):
        return float("nan"), 0.0
    deviation = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    return float(values.mean()), float(half_width(deviation, len(values)))

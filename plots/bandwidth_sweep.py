"""Makespan and throughput against the bandwidth of the links: the network sensitivity figure."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from plots import style, units
from plots.selection import decoded, one_configuration
from plots.sweeps import draw_sweep
from plots.tables import SWEEP, Tables

TITLE = "Sensitivity to bandwidth"
NEEDS = "runs of a sweep over a key that ends in _bps (or over networks with an up_bps) with at least two values"

_LINKS = {"up_bps": "Uplink bandwidth", "down_bps": "Downlink bandwidth"}


def available(tables: Tables) -> bool:
    """Return whether the runs differ in a bandwidth."""
    return _axis(tables.summary) is not None


@style.styled
def draw(tables: Tables) -> Figure:
    """Draw makespan and throughput, one line per method, mean over seeds with 95 % whiskers.

    Where uplink and downlink are swept together, the axis is the uplink.
    """
    labels = tables.labels
    column = _axis(tables.summary)
    if column is None:
        raise ValueError(f"{TITLE}: nothing to draw, it needs {NEEDS}")
    tables, note = one_configuration(tables, along=column)
    summary = tables.summary
    x = summary[column].map(_bits_per_s).astype(float)
    unit = units.bandwidth(float(x.median()))
    drawn = draw_sweep(summary, x, labels, unit, note)
    kind = column.split(".")[-1]
    named = _LINKS.get(kind, "Bandwidth") if kind.endswith("_bps") else _LINKS["up_bps"]
    for axes in drawn.axes:
        axes.set_xlabel(f"{named} ({unit.symbol})")
    return drawn


def _axis(summary: pd.DataFrame) -> str | None:
    """Return the summary's column of the swept bandwidth, the uplink's first."""
    found = [
        column
        for column in map(str, summary.columns)
        if column.startswith(SWEEP) and summary[column].map(_bits_per_s).astype(float).nunique() > 1
    ]
    found = [column for column in found if column.endswith("_bps") or _holds_links(summary[column])]
    return min(found, key=lambda column: not column.endswith("up_bps"), default=None)


def _holds_links(values: pd.Series[Any]) -> bool:
    return bool(values.map(lambda value: isinstance(decoded(value), dict)).any())


def _bits_per_s(value: Any) -> float:
    """Return the bandwidth that a swept value stands for, NaN if none."""
    value = decoded(value)
    if isinstance(value, dict):
        value = value.get("up_bps")
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("nan")

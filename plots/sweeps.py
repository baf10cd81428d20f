"""Makespan and throughput against a swept number: what the sweep figures have in common."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from plots import style, units
from plots.statistics import mean_of
from plots.units import Unit

_LOG_FROM = 8.0


def draw_sweep(summary: pd.DataFrame, x: pd.Series[float], labels: list[str], x_unit: Unit, note: str) -> Figure:
    """Draw one line per method in both panels: mean over seeds, whiskers are the 95 % confidence interval.

    Args:
        summary: the runs to show.  x: the swept number of each of them, NaN for those without one.
        labels: of all methods, for their colours.  x_unit: of the ticks of x.
    """
    drawn = style.figure(style.PAGE_IN, 2.25, note)
    left, right = drawn.subplots(1, 2)
    places = sorted(set(x.dropna().tolist()))
    _panel(left, summary, x, labels, "makespan_s", "Makespan", units.seconds)
    _panel(right, summary, x, labels, "throughput_samples_per_s", "Throughput", _samples)
    for axes in (left, right):
        if places[0] > 0 and places[-1] / places[0] >= _LOG_FROM:
            axes.set_xscale("log")
        style.value_ticks(axes, places, x_unit)
    looks = style.series(labels)
    shown = [label for label in labels if (summary["label"] == label).any()]
    handles = [
        Line2D(
            [],
            [],
            color=looks[label].colour,
            linestyle=looks[label].line,
            marker=looks[label].marker,
            markeredgecolor="white",
        )
        for label in shown
    ]
    style.legend_below(drawn, handles, shown)
    return drawn


def _samples(value: float) -> Unit:
    return Unit(1, "samples/s") if value < 1e5 else Unit(1000, "1000 samples/s")


def _panel(
    axes: Axes,
    summary: pd.DataFrame,
    x: pd.Series[float],
    labels: list[str],
    column: str,
    title: str,
    unit_of: Callable[[float], Unit],
) -> None:
    values = summary[column].to_numpy(dtype=np.float64)
    values = values[np.isfinite(values)]
    largest = float(values.max()) if len(values) else 0.0
    smallest = float(values.min()) if len(values) else 0.0
    unit = unit_of(largest)
    for label, look in style.series(labels).items():
        mine = summary[summary["label"] == label]
        own = x[mine.index]
        places = sorted(set(own.dropna().tolist()))
        if not places:
            continue
        points = [mean_of(mine[own == place], column) for place in places]
        container = axes.errorbar(
            places,
            [mean / unit.size for mean, _ in points],
            yerr=[width / unit.size for _, width in points] if any(width > 0 for _, width in points) else None,
            color=look.colour,
            linestyle=look.line,
            marker=look.marker,
            markeredgecolor="white",
            markeredgewidth=0.4,
            elinewidth=0.8,
            label=label,
        )
        container.lines[0].set_label(label)
    if smallest > 0 and largest / smallest >= _LOG_FROM:
        style.log_ticks(axes, "y", smallest / unit.size, largest / unit.size)
    else:
        axes.set_ylim(bottom=0)
    axes.set_ylabel(f"{title} ({unit.symbol})")

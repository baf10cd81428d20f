"""Predicted against measured: how far the virtual clock's figures are from those of real runs (`ammeter validate`).

Not one of the gallery's figures, which are drawn for every run: it has no TITLE, and the verb draws it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from plots import style, units
from plots.units import Unit

COLUMNS = ("label", "seed", "node", "quantity", "unit", "predicted", "measured", "tolerance", "allowed", "met")
"""What is read of the table (results.validation.errors)."""

Floats = npt.NDArray[np.float64]

_PERCENT = Unit(0.01, "%")
_BAND = "#E8E8E8"
_HEIGHT_IN = 2.9
_MARGIN = 1.35
_LEAST_SHARE = 1e-4
_POINT: dict[str, Any] = {"markersize": 3.4, "markeredgecolor": "white", "markeredgewidth": 0.3, "zorder": 3}
_RING: dict[str, Any] = {
    "markersize": 7,
    "markerfacecolor": "none",
    "markeredgecolor": "black",
    "markeredgewidth": 0.8,
    "zorder": 4,
}


@dataclass(frozen=True)
class _Kind:
    """One pair of panels.

    Attributes:
        begins: with which its quantities' names begin.
        of_makespan: figures are shares of the makespan: what is small is told by how much of the run it is.
    """

    title: str
    begins: tuple[str, ...]
    unit_of: Callable[[float], Unit]
    of_makespan: bool = False


_KINDS = (
    _Kind("Makespan, rounds", ("makespan", "round time"), units.seconds),
    _Kind("Compute", ("compute",), units.seconds),
    _Kind("Transfer", ("transfer",), units.seconds),
    _Kind("Idle by cause", ("idle: ",), lambda _: _PERCENT, of_makespan=True),
    _Kind("Wire bytes", ("wire bytes", "interface bytes"), units.size),
)


@style.styled
def draw(errors: pd.DataFrame) -> Figure:
    """Draw a column per kind of quantity, a point per figure that is judged: above predicted against measured, below
    the error; grey is what its tolerance allows, a ring is a figure beyond it, the number is the largest error.

    Errors are in percent of what was measured, idle time's in percent of the makespan.

    Args:
        errors: COLUMNS, a row per figure of every method, seed and node.

    Raises:
        ValueError: nothing is judged.
    """
    judged = errors[errors["met"].notna()]
    makespan = judged[judged["quantity"] == "makespan"].set_index(["label", "seed"])["measured"].to_dict()
    kinds = [kind for kind in _KINDS if _of(judged, kind).any()]
    if not kinds:
        raise ValueError("validation: nothing to draw, it needs figures with tolerances")
    labels = list(dict.fromkeys(errors["label"].tolist()))
    drawn = style.figure(style.PAGE_IN, _HEIGHT_IN)
    grid = drawn.subplots(2, len(kinds), squeeze=False, sharex="col", height_ratios=(1.25, 1.0))
    for column, kind in enumerate(kinds):
        mine = judged[_of(judged, kind)]
        if kind.of_makespan:
            whole = np.array([makespan[key] for key in zip(mine["label"], mine["seed"], strict=True)], dtype=np.float64)
            mine = mine.assign(**{name: mine[name] / whole for name in ("predicted", "measured", "allowed")})
        _column(grid[0][column], grid[1][column], mine, kind, labels)
    grid[0][0].set_ylabel("Predicted")
    grid[1][0].set_ylabel("Error (%)")
    _legend(drawn, labels)
    return drawn


def _of(errors: pd.DataFrame, kind: _Kind) -> pd.Series[bool]:
    return errors["quantity"].str.startswith(kind.begins)


def _column(above: Axes, below: Axes, mine: pd.DataFrame, kind: _Kind, labels: Sequence[str]) -> None:
    measured, predicted, allowed = (
        mine[name].to_numpy(dtype=np.float64) for name in ("measured", "predicted", "allowed")
    )
    unit = kind.unit_of(float(max(measured.max(), predicted.max())))
    least = _LEAST_SHARE if kind.of_makespan else 0.0
    positive = np.concatenate([measured, predicted])
    positive = positive[positive > least]
    low, high = (float(positive.min()) / _MARGIN, float(positive.max()) * _MARGIN) if len(positive) else (0.1, 1.0)
    within = np.geomspace(low, high, 200)
    share, floor = _rule(measured, allowed)
    room = np.maximum(share * within, floor)
    if kind.of_makespan:
        error, band = 100 * (predicted - measured), 100 * room
    else:
        error = 100 * np.divide(predicted - measured, measured, out=np.zeros_like(measured), where=measured > 0)
        band = 100 * room / within
    for axes, middle, width, least_drawn, scale in (
        (above, within, room, low / 2, unit.size),
        (below, np.zeros_like(within), band, -np.inf, 1.0),
    ):
        bottom = np.maximum(middle - width, least_drawn)  # a logarithmic axis has no zero
        axes.fill_between(
            within / unit.size, bottom / scale, (middle + width) / scale, color=_BAND, linewidth=0, zorder=0
        )
        axes.plot(within / unit.size, middle / scale, color=style.GREY, linewidth=0.7, zorder=1)
    looks = style.series(labels)
    at = np.clip(measured, low, None) / unit.size  # what is next to nothing stands at the edge
    met = mine["met"].to_numpy(dtype=bool)
    for label, look in looks.items():
        own = (mine["label"] == label).to_numpy(dtype=bool)
        for axes, values in ((above, np.clip(predicted, low, None) / unit.size), (below, error)):
            _points(axes, at[own], values[own], label, marker=look.marker, color=look.colour, **_POINT)
            _points(axes, at[own & ~met], values[own & ~met], f"missed {label}", marker="o", **_RING)
    style.log_ticks(above, "y", low / unit.size, high / unit.size)
    style.log_ticks(below, "x", low / unit.size, high / unit.size)
    above.set_xlim(low / unit.size, high / unit.size)
    above.set_ylim(low / unit.size, high / unit.size)
    reach = 1.15 * max(float(np.abs(error).max()), float(np.median(band)), 0.1)
    below.set_ylim(-reach, reach)
    below.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    above.set_title(kind.title)
    below.set_xlabel(f"Measured ({'% of makespan' if kind.of_makespan else unit.symbol})")
    worst = float(error[int(np.argmax(np.abs(error)))])
    above.text(
        0.05,
        0.95,
        f"worst {worst:+.1f} %".replace("-", "−"),
        transform=above.transAxes,
        ha="left",
        va="top",
        fontsize=7,
        gid="worst",
    )


def _points(axes: Axes, x: Floats, y: Floats, name: str, **look: Any) -> None:
    """Draw points, also those on the edge; none would be laid out as one at the figure's corner."""
    if len(x):
        axes.plot(x, y, linestyle="none", gid=name, clip_on=False, **look)


def _rule(measured: Floats, allowed: Floats) -> tuple[float, float]:
    """Return the share of what was measured that is allowed, and the least, which explain what each figure is allowed.

    The smallest of what is allowed is the floor if several small figures share it.
    """
    known = measured > 0
    if not known.any():
        return 0.0, float(allowed.max(initial=0.0))
    share = float((allowed[known] / measured[known]).min())
    above = allowed > share * measured * (1 + 1e-9) + 1e-15
    return share, float(allowed[above].min()) if above.any() else 0.0


def _legend(drawn: Figure, labels: Sequence[str]) -> None:
    handles: list[Line2D | Patch] = [
        Line2D([], [], linestyle="none", marker=look.marker, color=look.colour, markersize=4)
        for look in style.series(labels).values()
    ]
    handles += [
        Patch(facecolor=_BAND),
        Line2D([], [], linestyle="none", marker="o", **_RING),
    ]
    style.legend_below(drawn, handles, [*labels, "within tolerance", "beyond it"])

"""Horizontal bars, one row per method: what the bar figures have in common."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from plots import style

THICKNESS = 0.68


def panels(count: int, rows: int, note: str) -> tuple[Figure, list[Axes]]:
    """Return a double-column figure with that many panels in a row that share their rows."""
    drawn = style.figure(style.PAGE_IN, 1.25 + 0.2 * max(rows, 3), note)
    grid = drawn.subplots(1, count, sharey=True, squeeze=False)
    return drawn, list(grid[0])


def name_rows(axes: Sequence[Axes], labels: Sequence[str]) -> None:
    """Write the methods' labels at the left of the first panel, the first method at the top."""
    for panel in axes:
        panel.grid(False, axis="y")
        panel.tick_params(axis="y", length=0)
    axes[0].set_yticks(range(len(labels)), list(labels))
    axes[0].set_ylim(len(labels) - 0.45, -0.55)


def stack(axes: Axes, row: int, left: float, width: float, colour: str, hatch: str) -> None:
    """Add one segment to the bar of a row."""
    axes.barh(
        row,
        width,
        THICKNESS,
        left=left,
        color=colour,
        hatch=hatch,
        edgecolor=(1, 1, 1, 0.75) if style.ink(colour) == "white" else (0.15, 0.15, 0.15, 0.55),
        linewidth=0.4,
    )


def write_at(axes: Axes, row: int, x: float, text: str) -> None:
    """Write a bar's value behind its end."""
    axes.annotate(
        text,
        (x, row),
        xytext=(2.5, 0),
        textcoords="offset points",
        va="center_baseline",
        ha="left",
        fontsize=7,
    )

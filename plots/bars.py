"""Horizontal bars, one row per method: what the bar figures have in common."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from plots import style

THICKNESS = 0.68


def panels(count: int, rows: int, note: str) -> tuple[Figure, list[Axes]]:
    """Return a double-column figure with that many panels in a row that share their rows."""
    drawn = style.figure(style.PAGE_IN, 0.85 + 0.2 * max(rows, 3), note)
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
        edgecolor=_edge(colour),
        linewidth=0.4,
    )


def legend(drawn: Figure, colours: dict[str, str], hatches: dict[str, str]) -> None:
    """Explain the segments' colours and hatches below the panels."""
    handles = [
        Patch(facecolor=colour, hatch=2 * hatches.get(name, ""), edgecolor=_edge(colour))
        for name, colour in colours.items()
    ]
    style.legend_below(drawn, handles, list(colours))


def _edge(colour: str) -> tuple[float, float, float, float]:
    return (1, 1, 1, 0.75) if style.ink(colour) == "white" else (0.15, 0.15, 0.15, 0.55)


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

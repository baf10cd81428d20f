"""What all figures look like: sizes, colours, markers, hatches, and how they are written to disk.

Colours are those of Okabe and Ito, told apart by colour-blind readers; markers and hatches tell them apart in
black and white. Figures are `matplotlib.figure.Figure` objects: no pyplot, no window, no global state.
"""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import matplotlib.style
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from harness.errors import StoreError
from plots.units import Unit, number

COLUMN_IN, PAGE_IN = 3.4, 7.0
"""Widths of a figure in inches: of one column, of two."""

BLUE, VERMILLION, GREEN, ORANGE = "#0072B2", "#D55E00", "#009E73", "#E69F00"
PURPLE, SKY, BLACK, YELLOW = "#CC79A7", "#56B4E9", "#000000", "#F0E442"
GREY, PALE = "#9A9A9A", "#DDDDDD"

CAUSES = {
    "compute": GREEN,
    "dependency": BLUE,
    "straggler": VERMILLION,
    "transfer": SKY,
    "unselected": YELLOW,
    "overhead": PURPLE,
    "done": PALE,
}
"""Colour of each thing a node's time goes to, in the order they are stacked."""

CAUSE_HATCHES = {
    "dependency": "////",
    "straggler": "xxxx",
    "transfer": "....",
    "unselected": "\\\\\\\\",
    "overhead": "||||",
}

KINDS = {"weights": BLUE, "update": SKY, "activation": ORANGE, "gradient": VERMILLION}
"""Colour of the kinds of message that the methods of the first release send."""

KIND_HATCHES = {"weights": "", "update": "////", "activation": "", "gradient": "\\\\\\\\"}

_COLOURS = (BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY, BLACK)
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "h")
_LINES: tuple[Any, ...] = ("-", "-.", (0, (5, 1, 1, 1, 1, 1)))  # dashed is for auxiliary models
_HATCHES = ("", "////", "....", "\\\\\\\\", "xxxx", "||||", "----", "oooo", "++++")
_SPARE = (GREEN, PURPLE, YELLOW, BLACK, GREY)

_LEGEND_ROW_IN = 0.15
_FILE = Path(__file__).with_name("ammeter.mplstyle")
_Drawing = TypeVar("_Drawing", bound=Callable[..., Any])


@dataclass(frozen=True)
class Series:
    """How one method is drawn in every figure."""

    colour: str
    marker: str
    line: Any
    hatch: str


def series(labels: Iterable[str]) -> dict[str, Series]:
    """Return the style of each method; a label's place in the order of appearance fixes it."""
    return {
        label: Series(
            _COLOURS[i % len(_COLOURS)],
            _MARKERS[i % len(_MARKERS)],
            _LINES[i // len(_COLOURS) % len(_LINES)],
            _HATCHES[i % len(_HATCHES)],
        )
        for i, label in enumerate(dict.fromkeys(labels))
    }


def cause_colours(names: Iterable[str]) -> dict[str, str]:
    """Return the colour of each cause of idle time, known ones in the order of CAUSES, then the others."""
    return _coloured(names, CAUSES)


def kind_colours(names: Iterable[str]) -> dict[str, str]:
    """Return the colour of each kind of message, known ones in the order of KINDS, then the others."""
    return _coloured(names, KINDS)


def _coloured(names: Iterable[str], known: dict[str, str]) -> dict[str, str]:
    names = list(dict.fromkeys(names))
    colours = {name: colour for name, colour in known.items() if name in names}
    others = [name for name in names if name not in known]
    return colours | {name: _SPARE[i % len(_SPARE)] for i, name in enumerate(others)}


def ink(colour: str) -> str:
    """Return black or white, whichever is read better on `colour`."""
    red, green, blue = to_rgb(colour)
    return "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.5 else "black"


def styled(draw: _Drawing) -> _Drawing:
    """Make a function draw in Ammeter's style and leave matplotlib's settings as they were."""

    @functools.wraps(draw)
    def inside(*args: Any, **kwargs: Any) -> Any:
        with matplotlib.style.context(["default", _FILE]):
            return draw(*args, **kwargs)

    return inside  # type: ignore[return-value]


def figure(width_in: float, height_in: float, note: str = "") -> Figure:
    """Return an empty figure; the note, if any, stands small at its top."""
    made = Figure(figsize=(width_in, height_in), layout="constrained")
    if note:
        made.suptitle(note, fontsize=7, color="#555555")
    return made


def legend_below(drawn: Figure, handles: Sequence[Artist], labels: Sequence[str]) -> Legend | None:
    """Put one legend below the axes, in as few rows as fit the figure's width; the figure grows by them."""
    if not handles:
        return None
    rows = next(rows for rows in range(1, len(labels) + 1) if _width_in(labels, rows) <= drawn.get_figwidth())
    drawn.set_figheight(drawn.get_figheight() + 0.05 + _LEGEND_ROW_IN * rows)
    return drawn.legend(handles, labels, loc="outside lower center", ncols=-(-len(labels) // rows))


def _width_in(labels: Sequence[str], rows: int) -> float:
    """Return about how wide a legend of that many rows is, 0 for one of a single column."""
    columns = -(-len(labels) // rows)
    if columns == 1:
        return 0.0
    long, extra = divmod(len(labels), columns)  # matplotlib's own split: the first columns take what is over
    ends = [i * long + min(i, extra) for i in range(columns + 1)]
    return sum(0.39 + 0.058 * max(map(len, labels[a:b])) for a, b in itertools.pairwise(ends))


def log_ticks(axes: Axes, which: str, low: float, high: float) -> None:
    """Make an axis logarithmic with plain numbers; `low` and `high` are the ends of the data."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high / low < 100 else (1.0,)))
    axis.set_minor_locator(NullLocator() if high / low < 100 else LogLocator(subs=(2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    axis.set_minor_formatter(FuncFormatter(lambda *_: ""))


def value_ticks(axes: Axes, values: Sequence[float], unit: Unit, most: int = 8) -> None:
    """Put the ticks of x at (at most that many of) the values themselves."""
    step = -(-len(values) // most)
    axes.xaxis.set_major_locator(FixedLocator(list(values)[::step]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: unit.show(value)))


@styled
def save(drawn: Figure, folder: str | Path, name: str) -> list[Path]:
    """Write a figure as `name`.pdf and `name`.png (300 dpi), then close it.

    The same figure gives the same bytes: the files hold neither a date nor the name of the software.

    Raises:
        StoreError: the folder or a file cannot be written.
    """
    folder = Path(folder)
    paths = [folder / f"{name}.pdf", folder / f"{name}.png"]
    drawn.draw_without_rendering()
    drawn.set_layout_engine("none")  # both files, and every later save, get this one layout
    try:
        folder.mkdir(parents=True, exist_ok=True)
        drawn.savefig(paths[0], metadata={"CreationDate": None})
        drawn.savefig(paths[1], metadata={"Software": None})
    except OSError as error:
        raise StoreError(
            f"cannot write the figure {folder / name}: {error.strerror or error}; "
            "choose a folder you may write to, or make room on its disk"
        ) from error
    finally:
        _close(drawn)
    return paths


def _close(drawn: Figure) -> None:
    """Let go of a figure that a notebook's pyplot may have registered."""
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is not None:
        pyplot.close(drawn)

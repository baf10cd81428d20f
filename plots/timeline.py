"""Gantt chart of one round: who computes what, and what is on the links. The schedule figure."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from plots import style, units
from plots.statistics import Floats
from plots.tables import Tables

TITLE = "Timeline of one round"
NEEDS = "the timeline of at least one run"

UP, DOWN = "#222222", style.GREY
_FUNCTIONS = (style.BLUE, style.ORANGE, style.GREEN, style.VERMILLION, style.PURPLE, style.SKY, style.YELLOW)
_TIERS = {"device": 0, "edge": 1, "server": 2}
_BAND = 0.86  # of a row's height is used
_LANES = {"compute": (0.0, 0.5), "up": (0.54, 0.68), "down": (0.72, 0.86)}  # top and bottom within the band


@dataclass(frozen=True)
class Window:
    """The piece of a run that is shown: a round, or all of it where no round is marked."""

    start_s: float
    end_s: float
    name: str


def available(tables: Tables) -> bool:
    """Return whether any run has a timeline."""
    return not tables.timeline.empty


@style.styled
def draw(tables: Tables, run_id: str | None = None, number: int | None = None, first_s: float | None = None) -> Figure:
    """Draw one row per node: computations as bars coloured by function, its transfers as thin bars below.

    A transfer is drawn in the row of the node further from the server: up is towards the server. Vertical
    lines are the ends of rounds and the beginnings of phases.

    Args:
        run_id: the run to show, the first one if not given.
        number: the round to show, the first that was finished if not given.
        first_s: show only that many seconds of it, from its beginning.

    Raises:
        ValueError: no such run, or no such finished round in it.
    """
    everything = tables.timeline
    run_id = str(everything["run_id"].iloc[0]) if run_id is None else run_id
    timeline = everything[everything["run_id"] == run_id]
    marks = tables.marks[tables.marks["run_id"] == run_id]
    if timeline.empty:
        raise ValueError(f"no run {run_id!r} in the timeline table")
    window = find_window(timeline, marks, number)
    if first_s is not None:
        window = replace(window, end_s=min(window.end_s, window.start_s + first_s))
    rows = _rows(timeline)
    inside = timeline[(timeline["end_s"] > window.start_s) & (timeline["start_s"] < window.end_s)]

    unit = units.seconds(max(window.end_s - window.start_s, window.end_s / 200))
    pitch = min(0.27, max(0.06, 2.6 / len(rows)))
    drawn = style.figure(style.PAGE_IN, 0.8 + pitch * len(rows))
    axes = drawn.subplots()
    for row in rows.values():
        axes.axhspan(row - _BAND / 2, row + _BAND / 2, color="#F3F3F3", linewidth=0, zorder=0)
    computed = _draw_computations(axes, inside, rows, _function_colours(everything), unit.size)
    sent = _draw_transfers(axes, inside, rows, unit.size)
    _draw_marks(axes, marks, window, unit.size)
    _name_rows(axes, rows, pitch)
    margin = 0.01 * (window.end_s - window.start_s)
    axes.set_xlim((window.start_s - margin) / unit.size, (window.end_s + margin) / unit.size)
    axes.ticklabel_format(axis="x", useOffset=False, style="plain")
    axes.set_xlabel(f"Time since the run began ({unit.symbol})")
    axes.set_title(f"{timeline['label'].iloc[0]}, {window.name}", fontsize=8, pad=11)
    style.legend_below(drawn, [*computed.values(), *sent.values()], [*computed, *sent])
    return drawn


def find_window(timeline: pd.DataFrame, marks: pd.DataFrame, number: int | None = None) -> Window:
    """Return the time of round `number`, or of the first finished one, or of the whole run."""
    starts = marks[marks["kind"] == "round_start"].groupby("number")["at_s"].min()
    ends = marks[marks["kind"] == "round_end"].groupby("number")["at_s"].max()
    finished = sorted(set(starts.index) & set(ends.index))
    if number is None and not finished:
        return Window(float(timeline["start_s"].min()), float(timeline["end_s"].max()), "whole run")
    number = int(finished[0]) if number is None else number
    if number not in finished:
        raise ValueError(f"round {number} is not in the run, or was not finished; finished rounds: {finished}")
    return Window(float(starts[number]), float(ends[number]), f"round {number}")


def _order(name: str) -> list[tuple[int, str]]:
    """Return a sort key that puts device-2 before device-10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _tier(node: str) -> int:
    return _TIERS.get(node.split("-")[0], 0)


def _rows(timeline: pd.DataFrame) -> dict[str, int]:
    """Return each node's row from the top: devices, edges, server."""
    roles = dict(zip(timeline["node"].map(str), timeline["role"].map(str), strict=True))
    names = set(roles) | set(timeline.loc[timeline["kind"] == "transfer", "peer"].dropna().map(str))
    ordered = sorted(names, key=lambda name: (_TIERS.get(roles.get(name, ""), _tier(name)), _order(name)))
    return {name: row for row, name in enumerate(ordered)}


def _function_colours(timeline: pd.DataFrame) -> dict[str, str]:
    """Return the colour of each function, in order of appearance; the least of too many are "other"."""
    computed = timeline[timeline["kind"] == "compute"]
    names = list(dict.fromkeys(computed["what"].map(str)))
    if len(names) > len(_FUNCTIONS):
        spent = (computed["end_s"] - computed["start_s"]).groupby(computed["what"].map(str), observed=True).sum()
        kept = set(spent.sort_values(ascending=False, kind="stable").index[: len(_FUNCTIONS)])
        names = [name for name in names if name in kept]
    return dict(zip(names, _FUNCTIONS, strict=False))


def _boxes(axes: Axes, starts: Floats, ends: Floats, rows: Floats, lane: str, colour: str, gid: str) -> Patch:
    """Add one rectangle per interval in its row, and return what stands for them in a legend."""
    top, bottom = (rows - _BAND / 2 + edge for edge in _LANES[lane])
    corners = [(starts, top), (ends, top), (ends, bottom), (starts, bottom)]
    vertices = np.stack([np.stack(corner, axis=-1) for corner in corners], axis=1)
    boxes = PolyCollection(list(vertices), facecolors=colour, edgecolors=colour, linewidths=0.15, zorder=2)
    boxes.set_gid(gid)
    boxes.set_rasterized(len(vertices) > 20_000)
    axes.add_collection(boxes)
    return Patch(facecolor=colour, edgecolor="none")


def _draw_computations(
    axes: Axes, inside: pd.DataFrame, rows: dict[str, int], colours: dict[str, str], unit_s: float
) -> dict[str, Artist]:
    computed = inside[inside["kind"] == "compute"]
    names = computed["what"].map(str).map(lambda name: name if name in colours else "other")
    handles: dict[str, Artist] = {}
    for name, colour in (colours | {"other": style.PALE}).items():
        mine = computed[names == name]
        if len(mine):
            places = np.array([rows[node] for node in mine["node"]], dtype=np.float64)
            starts, ends = (mine[column].to_numpy(dtype=np.float64) / unit_s for column in ("start_s", "end_s"))
            handles[name] = _boxes(axes, starts, ends, places, "compute", colour, f"compute {name}")
    return handles


def _draw_transfers(axes: Axes, inside: pd.DataFrame, rows: dict[str, int], unit_s: float) -> dict[str, Artist]:
    sent = inside[(inside["kind"] == "transfer") & inside["peer"].notna()]
    source = sent["node"].map(str).map(rows).to_numpy(dtype=np.float64)
    target = sent["peer"].map(str).map(rows).to_numpy(dtype=np.float64)
    starts, ends = (sent[column].to_numpy(dtype=np.float64) / unit_s for column in ("start_s", "end_s"))
    handles: dict[str, Artist] = {}
    for lane, chosen, colour in (("up", source < target, UP), ("down", source > target, DOWN)):
        if chosen.any():
            places = np.where(source < target, source, target)[chosen]
            name = f"{lane}link transfer"
            handles[name] = _boxes(axes, starts[chosen], ends[chosen], places, lane, colour, f"transfer {lane}")
    return handles


def _draw_marks(axes: Axes, marks: pd.DataFrame, window: Window, unit_s: float) -> None:
    """Draw a vertical line at each end of a round and beginning of a phase, named above the axes."""
    slack = 1e-9 + 1e-3 * (window.end_s - window.start_s)
    seen = marks[marks["at_s"].between(window.start_s - slack, window.end_s + slack)]
    named: dict[float, list[str]] = {}
    for kind, name, number, at_s in zip(seen["kind"], seen["name"], seen["number"], seen["at_s"], strict=True):
        if at_s < window.start_s + slack and kind == "round_end":
            continue
        if at_s > window.end_s - slack and kind == "round_start":
            continue
        text = str(name) if kind == "phase" else f"round {int(number)}"
        text = f"end of {text}" if kind == "round_end" else text
        near = next((at for at in named if abs(at - at_s) <= slack), float(at_s))
        if text not in named.setdefault(near, []):
            named[near].append(text)
    for at_s, texts in named.items():
        axes.axvline(at_s / unit_s, color="black", linewidth=0.8, linestyle=(0, (4, 2)), zorder=4)
        right = at_s > (window.start_s + window.end_s) / 2
        axes.annotate(
            ", ".join(texts),
            (at_s / unit_s, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 2),
            textcoords="offset points",
            ha="right" if right else "left",
            fontsize=7,
        )


def _name_rows(axes: Axes, rows: dict[str, int], pitch_in: float) -> None:
    """Label the rows, every second or third device where they are thin, the server always."""
    every = max(1, int(np.ceil(0.125 / pitch_in)))
    names = list(rows)
    devices = [name for name in names if _tier(name) == 0]
    shown = [*devices[::every], *(name for name in names if _tier(name))]
    axes.set_yticks([rows[name] for name in shown], shown)
    axes.set_ylim(len(names) - 0.45, -0.55)
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")

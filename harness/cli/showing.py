"""How tables are shown: in a format, or for people."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from plots.tables import Tables
from results import claims, store, tables


def plot_tables(runs: Sequence[store.Run], target_accuracy: float | None) -> Tables:
    """Return the tables that figures are drawn from; the timeline is that of the first run of each method."""
    first: dict[str, store.Run] = {}
    for run in runs:
        first.setdefault(run.summary["label"], run)
    chosen = list(first.values())
    return Tables(
        summary=tables.summaries(runs),
        metrics=tables.metrics(runs),
        traffic=tables.traffic(runs),
        idle=tables.idle(runs),
        timeline=pd.concat([tables.timeline(run) for run in chosen], ignore_index=True),
        marks=pd.concat([tables.marks(run) for run in chosen], ignore_index=True),
        claims=claims.table(runs),
        target_accuracy=target_accuracy,
    )


def show_comparison(compared: pd.DataFrame, title: str = "") -> None:
    """Print a comparison for people: methods as columns; headlines only, a row each, where they are many."""
    if len(compared) <= MOST_COLUMNS:
        show(tables.presented(compared), None, title, transposed=True)
        return
    show(tables.presented(compared, tables.HEADLINES), None, title)
    print("all figures: ammeter compare ... --format csv")


MOST_COLUMNS = 6
"""How many methods stand beside each other on a terminal."""

MOST_ROWS = 1000
"""How many rows are laid out; more are printed as plain columns, in a twentieth of the time."""


def show_claims(claimed: pd.DataFrame) -> None:
    """Print a table of claims (results.claims.table) for people, if there are any."""
    if not claimed.empty:
        show(claims.presented(claimed), None, "What papers report, and what these runs give")
        print("every point: ammeter compare ... --claims --format csv")


def show(table: pd.DataFrame, how: str | None, title: str = "", transposed: bool = False) -> None:
    """Print a table: in a format, or for people (`transposed`: its first column becomes the heading)."""
    if how is not None:
        sys.stdout.write(tables.written(table, how))
        return
    if transposed:
        heading = table.columns[0]
        table = table.set_index(heading).T.rename_axis(heading).reset_index()
    if len(table) > MOST_ROWS:
        sys.stdout.write(_plain(table, title))
        return
    shown = Table(title=title or None, box=SIMPLE_HEAD, title_justify="left")
    for position, column in enumerate(table.columns):
        shown.add_column(str(column), justify="left" if position == 0 or not transposed else "right", overflow="fold")
    for row in table.itertuples(index=False, name=None):
        shown.add_row(*("" if pd.isna(cell) else str(cell) for cell in row))
    console = Console(width=None if sys.stdout.isatty() else 200, soft_wrap=False, highlight=False)
    with console.capture() as text:  # rich would turn a broken pipe into exit code 1
        console.print(shown)
    sys.stdout.write(text.get())


def _plain(table: pd.DataFrame, title: str) -> str:
    """Return a table as columns of text, however wide."""
    columns = []
    for name in table.columns:
        cells = [str(name), *("" if pd.isna(cell) else str(cell) for cell in table[name])]
        width = max(map(len, cells))
        columns.append([cell.ljust(width) for cell in cells])
    lines = ["  ".join(row).rstrip() for row in zip(*columns, strict=True)]
    return "\n".join([*([title] if title else []), *lines, ""])

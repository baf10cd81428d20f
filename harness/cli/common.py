"""What several verbs share: where runs and data are, and how tables are shown."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from harness.errors import ConfigError
from plots.tables import Tables
from results import claims, store, tables


def add_runs_folder(parser: argparse.ArgumentParser) -> None:
    """--runs: the folder of all runs."""
    parser.add_argument(
        "--runs",
        type=Path,
        default=Path(os.environ.get("AMMETER_RUNS", "runs")),
        help="folder of runs (default: runs)",
    )


def add_data_folder(parser: argparse.ArgumentParser) -> None:
    """--data: the folder of the data sets."""
    parser.add_argument(
        "--data",
        type=Path,
        default=None,
        help="folder of data sets (default: $AMMETER_DATA; digits need none)",
    )


def add_format(parser: argparse.ArgumentParser) -> None:
    """--format: how a table is printed."""
    parser.add_argument(
        "--format",
        choices=tables.FORMATS,
        default=None,
        help="print the table in this format instead of for people",
    )


def data_root(args: argparse.Namespace) -> Path | None:
    """Return the folder of the data sets.

    Raises:
        ConfigError: it does not exist.
    """
    given = args.data or (Path(os.environ["AMMETER_DATA"]) if os.environ.get("AMMETER_DATA") else None)
    if given is not None and not given.is_dir():
        raise ConfigError(f"--data {given}: no such folder")
    return given


def add_runs(parser: argparse.ArgumentParser) -> None:
    """RUN...: which runs a verb looks at."""
    parser.add_argument("run", nargs="+", help="a run's folder, an experiment's folder, or an experiment's name")
    add_runs_folder(parser)


def find_runs(args: argparse.Namespace) -> list[store.Run]:
    """Return the complete runs that the arguments name.

    Raises:
        StoreError: there are none.
    """
    paths = []
    for name in args.run:
        path = Path(name)
        paths.append(path if path.exists() else args.runs / name)
    return store.find(paths)


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

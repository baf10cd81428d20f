"""What several verbs share: arguments, and where runs and data are. How tables are shown is in showing.py."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from harness.errors import ConfigError
from results import FORMATS, store


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """-s KEY=VALUE: what differs from an experiment's file."""
    parser.add_argument(
        "-s",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override, e.g. training.rounds=3 or testbed.devices.0.count=3",
    )


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
        choices=FORMATS,
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

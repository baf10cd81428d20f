"""Print a table of runs: one row per run, scored model, message kind, node and cause, round, computation or claim."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

import pandas as pd

from harness.cli import common, showing
from results import claims, tables
from results.store import Run

HELP = "print a table of runs"


def _rounds(runs: Sequence[Run]) -> pd.DataFrame:
    return pd.concat([tables.rounds(run) for run in runs], ignore_index=True)


def _computations(runs: Sequence[Run]) -> pd.DataFrame:
    return pd.concat([tables.computations(run) for run in runs], ignore_index=True)


_TABLES: dict[str, Callable[[Sequence[Run]], pd.DataFrame]] = {
    "runs": tables.summaries,
    "metrics": tables.metrics,
    "traffic": tables.traffic,
    "idle": tables.idle,
    "rounds": _rounds,
    "computations": _computations,
    "claims": claims.table,
}


def arguments(parser: argparse.ArgumentParser) -> None:
    common.add_runs(parser)
    parser.add_argument("--what", choices=list(_TABLES), default="runs", help="which table (default: runs)")
    common.add_format(parser)


def main(args: argparse.Namespace) -> int:
    table = _TABLES[args.what](common.find_runs(args))
    if args.what == "runs" and args.format is None:  # a row per run, the headlines only
        labelled = table.assign(label=table["label"] + ", seed " + table["seed"].astype(str))
        showing.show(tables.presented(tables.comparison(labelled), tables.HEADLINES), None)
        print("all columns: ammeter table ... --format csv")
    else:
        showing.show(table, args.format)
    return 0

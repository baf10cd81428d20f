"""Compare the methods of runs: mean and 95 % interval over seeds, for every figure that papers report."""

from __future__ import annotations

import argparse

from harness.cli import common
from results import tables

HELP = "compare the methods of runs, over seeds"


def arguments(parser: argparse.ArgumentParser) -> None:
    common.add_runs(parser)
    common.add_format(parser)


def main(args: argparse.Namespace) -> int:
    compared = tables.comparison(tables.summaries(common.find_runs(args)))
    if args.format is None:
        common.show_comparison(compared)
    elif args.format in ("md", "latex"):
        common.show(tables.presented(compared), args.format)
    else:
        common.show(compared, args.format)
    return 0

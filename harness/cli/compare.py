"""Compare the methods of runs: mean and 95 % interval over seeds, for every figure that papers report."""

from __future__ import annotations

import argparse

from harness.cli import common, showing
from harness.errors import ConfigError
from results import claims, tables

HELP = "compare the methods of runs, over seeds"


def arguments(parser: argparse.ArgumentParser) -> None:
    common.add_runs(parser)
    parser.add_argument(
        "--claims", action="store_true", help="instead: what papers report, beside what these runs give"
    )
    common.add_format(parser)


def main(args: argparse.Namespace) -> int:
    runs = common.find_runs(args)
    if args.claims:
        claimed = claims.table(runs)
        if claimed.empty:
            raise ConfigError(
                f"{', '.join(args.run)}: these runs carry no claim; give their experiment `claims` and start "
                "`ammeter run` again (it keeps the runs)"
            )
        if args.format is None:
            showing.show_claims(claimed)
        else:
            showing.show(claims.presented(claimed) if args.format in ("md", "latex") else claimed, args.format)
        return 0
    compared = tables.comparison(tables.summaries(runs))
    if args.format is None:
        showing.show_comparison(compared)
        showing.show_claims(claims.table(runs))
    elif args.format in ("md", "latex"):
        showing.show(tables.presented(compared), args.format)
    else:
        showing.show(compared, args.format)
    return 0

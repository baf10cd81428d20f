"""Export the timeline of one run as Chrome trace JSON: open it in Perfetto (ui.perfetto.dev) or chrome://tracing."""

from __future__ import annotations

import argparse
from pathlib import Path

from harness.cli import common
from harness.errors import ConfigError, StoreError
from results import trace

HELP = "export a run's timeline for Perfetto"


def arguments(parser: argparse.ArgumentParser) -> None:
    common.add_runs(parser)
    parser.add_argument("-o", "--out", type=Path, required=True, help="the .json file to write")


def main(args: argparse.Namespace) -> int:
    runs = common.find_runs(args)
    if len(runs) != 1:
        names = ", ".join(f"{run.folder} ({run.summary['label']}, seed {run.summary['seed']})" for run in runs[:4])
        raise ConfigError(f"a timeline is of one run; {len(runs)} were named: {names}, ...")
    try:
        trace.export(runs[0], args.out)
    except OSError as error:
        raise StoreError(f"{args.out}: cannot be written: {error.strerror}") from None
    print(args.out)
    return 0

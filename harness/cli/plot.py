"""Draw the figures of runs as PDF and PNG."""

from __future__ import annotations

import argparse
from pathlib import Path

from harness.cli import common, showing
from plots import gallery

HELP = "draw the figures of runs"


def arguments(parser: argparse.ArgumentParser) -> None:
    common.add_runs(parser)
    parser.add_argument("--only", action="append", metavar="FIGURE", help="only this figure (may be given again)")
    parser.add_argument("--figures", type=Path, default=Path("figures"), help="folder of figures (default: figures)")


def main(args: argparse.Namespace) -> int:
    runs = common.find_runs(args)
    targets = {run.summary["target_accuracy"] for run in runs}
    target = targets.pop() if len(targets) == 1 else None
    drawn = gallery.draw_all(showing.plot_tables(runs, target), args.figures, args.only)
    for path in drawn:
        print(path)
    for name, needs in drawn.skipped.items():
        print(f"nothing to draw for {name}: {needs}")
    return 0

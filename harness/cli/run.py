"""Run an experiment: every method, seed and swept value that has not been run yet; then compare and draw.

EXPERIMENT is a YAML file or the name of a shipped experiment (`ammeter list experiments`). Runs that are complete
are kept; a run that was interrupted is made anew.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from harness import experiment
from harness.cli import common
from harness.cli.jobs import Jobs, default_jobs
from harness.errors import ConfigError
from results.store import Run, Store

HELP = "run an experiment, print the comparison, draw the figures"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("experiment", help="a YAML file, or a shipped experiment's name")
    common.add_overrides(parser)
    parser.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help="make N runs at a time (default: as many as there are cores where nothing is trained, else 1)",
    )
    parser.add_argument("--figures", type=Path, default=Path("figures"), help="folder of figures (default: figures)")
    parser.add_argument("--no-figures", action="store_true", help="draw nothing")
    common.add_runs_folder(parser)
    common.add_data_folder(parser)
    common.add_format(parser)


def main(args: argparse.Namespace) -> int:
    if args.jobs is not None and args.jobs < 1:
        raise ConfigError(f"--jobs {args.jobs}: at least one run at a time")
    parsed = experiment.read(args.experiment, args.overrides)
    root = common.data_root(args)
    specs = experiment.runs(parsed, args.experiment, root)
    jobs = args.jobs or default_jobs(specs)
    runs = Jobs(parsed.name, specs, Store(args.runs), root, jobs).make()
    # not before: what shows tables and draws figures takes time and memory while the runs are made
    from harness.cli import showing
    from results import claims, tables

    compared = tables.comparison(tables.summaries(runs))
    if args.format is None:
        showing.show_comparison(compared, parsed.title or parsed.name)
        showing.show_claims(claims.table(runs))
        _explain(specs, runs)
    else:
        showing.show(compared, args.format)
    if not args.no_figures:
        from plots import gallery

        drawn = gallery.draw_all(showing.plot_tables(runs, parsed.target_accuracy), args.figures / parsed.name)
        pictures = sorted({path.stem for path in drawn})
        print(f"figures in {args.figures / parsed.name}: {', '.join(pictures)} (PDF and PNG)", file=sys.stderr)
    print(f"runs in {args.runs / parsed.name}", file=sys.stderr)
    return 0


def _explain(specs: list[experiment.RunSpec], runs: list[Run]) -> None:
    """Say what kind of numbers these are."""
    seeds = len({spec.seed for spec in specs})
    clock = runs[0].summary["clock"]
    keys = ("device_tier", "server_tier")
    tiers = dict.fromkeys(tier for run in runs for key in keys for tier in run.summary.get(key, "").split("+") if tier)
    priced = f"times are simulated: priced by the device profiles ({', '.join(sorted(tiers))})"
    if clock != "virtual":
        priced = "times are measured"
    trained = "accuracy is really trained" if specs[0].mode == "learn" else "nothing was trained"
    repeats = f"mean ± 95 % interval over {seeds} seeds" if seeds > 1 else "one seed, so no intervals"
    print(f"{priced}; {trained}; {repeats}")

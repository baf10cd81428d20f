"""Run an experiment: every method, seed and swept value that has not been run yet; then compare and draw.

EXPERIMENT is a YAML file or the name of a shipped experiment (`ammeter list experiments`). Runs that are complete
are kept; a run that was interrupted is made anew.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from harness import experiment
from harness.cli import common
from harness.record import Recorder
from harness.run import execute
from harness.testbed import Outcome
from plots import gallery
from results import tables
from results.store import Run, Store

HELP = "run an experiment, print the comparison, draw the figures"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("experiment", help="a YAML file, or a shipped experiment's name")
    parser.add_argument(
        "-s",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override, e.g. training.rounds=3",
    )
    parser.add_argument("--figures", type=Path, default=Path("figures"), help="folder of figures (default: figures)")
    parser.add_argument("--no-figures", action="store_true", help="draw nothing")
    common.add_runs_folder(parser)
    common.add_data_folder(parser)
    common.add_format(parser)


def main(args: argparse.Namespace) -> int:
    parsed = experiment.read(args.experiment, args.overrides)
    specs = experiment.runs(parsed, args.experiment)
    root = common.data_root(args)
    runs = _run_all(parsed.name, specs, Store(args.runs), root)
    compared = tables.comparison(tables.summaries(runs))
    if args.format is None:
        common.show_comparison(compared, parsed.title or parsed.name)
        _explain(specs, runs)
    else:
        common.show(compared, args.format)
    if not args.no_figures:
        drawn = gallery.draw_all(common.plot_tables(runs, parsed.target_accuracy), args.figures / parsed.name)
        pictures = sorted({path.stem for path in drawn})
        print(f"figures in {args.figures / parsed.name}: {', '.join(pictures)} (PDF and PNG)", file=sys.stderr)
    print(f"runs in {args.runs / parsed.name}", file=sys.stderr)
    return 0


def _run_all(name: str, specs: list[experiment.RunSpec], store: Store, root: Path | None) -> list[Run]:
    """Make the runs that are not there; a progress bar on a terminal, plain lines elsewhere."""
    done: list[Run] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    terminal = sys.stderr.isatty()
    with Progress(*columns, disable=not terminal, transient=True) as bar:
        task = bar.add_task(name, total=len(specs))
        for number, spec in enumerate(specs, start=1):
            what = f"{spec.label}, seed {spec.seed}" + "".join(f", {k}={v}" for k, v in spec.swept.items())
            bar.update(task, description=what)
            kept = store.complete(name, spec.id)
            began = time.monotonic()

            def progress(seconds: float, what: str = what) -> None:
                bar.update(task, description=f"{what}, at {seconds:,.0f} s")

            def go(recorder: Recorder, spec: experiment.RunSpec = spec) -> Outcome:
                return execute(spec, recorder, root, progress)

            if kept is not None:
                run = store.relabel(kept, spec.swept, spec.target_accuracy)
            else:
                run = store.record(spec.resolved(), spec.id, go)
            done.append(run)
            bar.advance(task)
            if not terminal:
                took = "kept" if kept else f"{time.monotonic() - began:.1f} s"
                print(f"[{number}/{len(specs)}] {what}: {took}", file=sys.stderr)
    return done


def _explain(specs: list[experiment.RunSpec], runs: list[Run]) -> None:
    """Say what kind of numbers these are."""
    seeds = len({spec.seed for spec in specs})
    clock = runs[0].summary["clock"]
    priced = "times are simulated: priced by the device profiles" if clock == "virtual" else "times are measured"
    trained = "accuracy is really trained" if specs[0].mode == "learn" else "nothing was trained"
    repeats = f"mean ± 95 % interval over {seeds} seeds" if seeds > 1 else "one seed, so no intervals"
    print(f"{priced}; {trained}; {repeats}")

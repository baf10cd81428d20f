"""Predict real runs on the virtual clock, and show how far off every predicted number is.

EXPERIMENT is a YAML file or the name of a shipped experiment (validate is one) on a testbed on the wall clock. Each
run is made there; a short rehearsal of it on the same testbed measures what its computations take, and the same run on
the virtual clock, with these times and the testbed's own nodes and links, is the prediction. Runs that are complete are
kept, as by `ammeter run`. Exit code 1: something is further off than its tolerance.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from harness import experiment, testbed
from harness.cli import common
from harness.cli.jobs import Jobs, default_jobs
from harness.errors import ConfigError, ProtocolError, StoreError
from harness.experiment import RunSpec
from results import validation
from results.store import Run, Store

HELP = "hold the virtual clock's predictions against real runs"

REHEARSAL_ROUNDS = 2
KNOWN_SHARE = 0.95
"""So much of the predicted compute seconds should rest on measured times."""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("experiment", help="a YAML file, or a shipped experiment's name")
    common.add_overrides(parser)
    parser.add_argument(
        "--prices",
        choices=("rehearsal", "profile"),
        default="rehearsal",
        help="what computations cost in the prediction: what a short run measured, or what the devices' profiles say "
        "(default: rehearsal)",
    )
    parser.add_argument(
        "--rehearsal-rounds",
        type=int,
        default=REHEARSAL_ROUNDS,
        metavar="N",
        help=f"rounds of the short run (default: {REHEARSAL_ROUNDS})",
    )
    parser.add_argument(
        "--learn",
        action="store_true",
        help="really train in the prediction, too: for methods that decide by values; weights must then be equal",
    )
    parser.add_argument(
        "--tolerance",
        action="append",
        default=[],
        metavar="KIND=SHARE",
        help="how far a quantity may be off, e.g. makespan=0.1; kinds and defaults: "
        + ", ".join(f"{kind} {share:g}" for kind, share in validation.TOLERANCES.items()),
    )
    parser.add_argument("--jobs", type=int, metavar="N", help="make N predictions at a time; real runs are made alone")
    parser.add_argument("--figures", type=Path, default=Path("figures"), help="folder of figures (default: figures)")
    parser.add_argument("--no-figures", action="store_true", help="draw nothing")
    common.add_runs_folder(parser)
    common.add_data_folder(parser)
    common.add_format(parser)


def main(args: argparse.Namespace) -> int:
    if args.rehearsal_rounds < 1 or (args.jobs is not None and args.jobs < 1):
        raise ConfigError("--rehearsal-rounds and --jobs are at least 1")
    tolerances = validation.tolerances(dict(map(_tolerance, args.tolerance)))
    parsed = experiment.read(args.experiment, args.overrides)
    root = common.data_root(args)
    specs = experiment.runs(parsed, args.experiment, root)
    for spec in specs:
        _check(spec, args.experiment)
    work = _Work(parsed.name, Store(args.runs), root, args.jobs)
    pairs = work.pairs(specs, args.rehearsal_rounds if args.prices == "rehearsal" else None, args.learn)
    # not before: what shows tables and draws figures takes time and memory while the runs are made
    from harness.cli import showing

    table = pd.concat([validation.errors(*pair, tolerances) for pair in pairs], ignore_index=True)
    where = args.runs / parsed.name / "validation.csv"
    _write(where, table)
    if args.format is None:
        showing.show(validation.presented(validation.summary(table)), None, parsed.title or parsed.name)
    else:
        showing.show(table, args.format)
    _explain(pairs, args)
    if not args.no_figures:
        from plots import style
        from plots import validation as picture

        paths = style.save(picture.draw(table), args.figures / parsed.name, "validation")
        print(f"figure: {paths[0]} (and PNG)", file=sys.stderr)
    print(f"every figure of every node: {where}", file=sys.stderr)
    return _judge(table, args.learn)


def _tolerance(given: str) -> tuple[str, float]:
    kind, equals, text = given.partition("=")
    try:
        return kind, float(text)
    except ValueError:
        how = "is no number" if equals else "has no value"
        raise ConfigError(f"--tolerance {given}: {how}; write KIND=SHARE, e.g. makespan=0.05") from None


def _check(spec: RunSpec, where: str) -> None:
    """Refuse what has no wall clock, or nothing to time on it.

    Raises:
        ConfigError
    """
    if not hasattr(spec.testbed, "predicted"):
        real = [name for name in testbed.names() if hasattr(testbed.load(name), "predicted")]
        raise ConfigError(
            f"{where}: testbed.name: {testbed.name_of(spec.testbed)!r} is not on the wall clock, so there is nothing "
            f"to hold a prediction against; take one of {', '.join(real)}, e.g. -s testbed.name={real[0]}"
        )
    if spec.mode != "learn":
        raise ConfigError(f"{where}: mode: a real run computes; say `mode: learn`, or -s mode=learn")


@dataclass
class _Work:
    """The runs of a validation: real ones, their rehearsals, their predictions."""

    name: str
    store: Store
    root: Path | None
    jobs: int | None

    def pairs(self, specs: Sequence[RunSpec], rehearsal_rounds: int | None, learn: bool) -> list[tuple[Run, Run]]:
        """Return (real run, predicted run), in the order of the specs; specs of one id are one run.

        Args:
            rehearsal_rounds: None = computations are priced by the profiles.
        """
        specs = list({spec.id: spec for spec in specs}.values())
        real = self._made(self.name, specs, 1)
        timings: list[str | None] = [None] * len(specs)
        if rehearsal_rounds is not None:
            timings = self._rehearsed(specs, rehearsal_rounds)
        predictions = [self._prediction(spec, file, learn) for spec, file in zip(specs, timings, strict=True)]
        try:
            predicted = self._made(f"{self.name}-predicted", predictions, self.jobs or default_jobs(predictions))
        except ProtocolError as error:
            if learn:
                raise
            raise ConfigError(f"{error}; a method that decides by values is predicted with --learn") from error
        return list(zip(real, predicted, strict=True))

    def _made(self, name: str, specs: Sequence[RunSpec], jobs: int) -> list[Run]:
        """Return the run of each spec."""
        made = {run.id: run for run in Jobs(name, specs, self.store, self.root, jobs).make()}
        return [made[spec.id] for spec in specs]

    def _rehearsed(self, specs: Sequence[RunSpec], rounds: int) -> list[str | None]:
        """Return the file of the times that each spec's computations take, from a short run of it."""
        name = f"{self.name}-rehearsal"
        short = [replace(spec, experiment=name, training=_shorter(spec, rounds)) for spec in specs]
        files = [run.folder / "timings.json" for run in self._made(name, short, 1)]
        for file in files:
            if not file.exists():
                raise StoreError(f"{file}: is missing; delete the run's folder and validate again")
        return [str(file) for file in files]

    def _prediction(self, spec: RunSpec, timings: str | None, learn: bool) -> RunSpec:
        """Return the run on the virtual clock that predicts a real one."""
        section: dict[str, Any] = spec.testbed.predicted(spec.bed, timings)
        module, bed = testbed.configured(section, f"the prediction of {spec.label}", self.root)
        mode = "learn" if learn else "timing"
        return replace(spec, experiment=f"{self.name}-predicted", mode=mode, testbed=module, bed=bed)


def _shorter(spec: RunSpec, rounds: int) -> Any:
    return spec.training.model_copy(update={"rounds": rounds})


def _write(path: Path, table: pd.DataFrame) -> None:
    try:
        table.to_csv(path, index=False)
    except OSError as error:
        raise StoreError(f"{path}: cannot be written: {error.strerror}") from None


def _explain(pairs: Sequence[tuple[Run, Run]], args: argparse.Namespace) -> None:
    """Say what the predictions rest on."""
    if args.prices == "profile":
        print("predicted: computations cost what the devices' profiles say", file=sys.stderr)
        return
    known = {f"{real.summary['label']}": validation.known_share(predicted) or 0.0 for real, predicted in pairs}
    print(
        f"predicted from rehearsals of {args.rehearsal_rounds} rounds; of the predicted compute seconds they had "
        f"measured {min(known.values()):.1%}" + (" or more" if len(known) > 1 else ""),
        file=sys.stderr,
    )
    for label, share in known.items():
        if share < KNOWN_SHARE:
            print(
                f"{label}: only {share:.1%} of the compute seconds were measured in the rehearsal, the others are "
                "priced by the profiles; give it more rounds, --rehearsal-rounds",
                file=sys.stderr,
            )


def _judge(table: pd.DataFrame, learned: bool) -> int:
    """Say in one sentence whether everything is within its tolerance; return the exit code."""
    missed = validation.missed(table)
    judged = int(table["met"].notna().sum())
    if missed.empty:
        print(f"all {judged} predicted figures are within their tolerances", file=sys.stderr)
        return 0
    kinds = ", ".join(
        f"{quantity} ({count})" for quantity, count in missed["quantity"].value_counts(sort=False).items()
    )
    if not learned and missed["quantity"].str.startswith(("messages", "payload")).any():
        print("other messages were sent than predicted: a method that decides by values needs --learn", file=sys.stderr)
    print(
        f"ammeter: {len(missed)} of {judged} predicted figures are beyond their tolerance: {kinds}; see the rows with "
        "met = False",
        file=sys.stderr,
    )
    return 1

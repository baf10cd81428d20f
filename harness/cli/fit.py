"""Fit a device's rates to published times of training steps, and show how far off they are for unseen networks.

TIMES is a shipped source (ammeter fit -h names them) or your own file of the same form: seconds of training steps, or
of forward passes at some batch sizes, of some networks on your board. Every network's error is printed twice: `fitted`
with the network in the fit, `left out` predicted by a fit that has never seen it (empty where no other network says
anything of its kind of operators). --without NET leaves networks out of the fit altogether and predicts them. --figures
prints the lines to put into the board's profile.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from math import nan
from typing import Any

import pandas as pd

from harness.cli import common, showing
from harness.cost.work import Operators
from harness.errors import ConfigError, suggestion
from harness.task import models
from harness.task.network import Network, identity
from profiles import library
from profiles.device import DeviceProfile
from profiles.fit import Fit, Sample, amount, fit, leave_one_out, predict
from profiles.published.times import Published, names, read

HELP = "fit a device's rates to published step times; print the errors"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("times", metavar="TIMES", help=f"a shipped source ({', '.join(names())}) or your own .yaml")
    parser.add_argument("--on", metavar="PROFILE", help="one device of the file (default: all)")
    parser.add_argument(
        "--without", metavar="NET", action="append", default=[], help="leave this network out of the fit (repeatable)"
    )
    parser.add_argument("--figures", action="store_true", help="print the figures for the profile's file")
    common.add_format(parser)


def main(args: argparse.Namespace) -> int:
    published = read(args.times)
    if args.on is not None and args.on not in published.boards:
        raise ConfigError(f"--on {args.on}: {args.times} has no times of it{suggestion(args.on, published.boards)}")
    timed = {network for board in published.boards.values() for network in board.steps}
    for network in args.without:
        if network not in timed:
            raise ConfigError(f"--without {network}: {args.times} has no times of it{suggestion(network, timed)}")
    boards = [args.on] if args.on is not None else list(published.boards)
    fitted = fits(published, boards, args.without)
    if args.figures:
        for board in fitted:
            sys.stdout.write(figures(board))
        return 0
    if args.format is not None:
        showing.show(pd.concat([_errors(board) for board in fitted], ignore_index=True), args.format)
        return 0
    for board in fitted:
        errors = _errors(board)
        shown = errors.drop(columns="board").map(lambda cell: f"{cell:.3g}" if isinstance(cell, float) else cell)
        showing.show(shown, None, f"{board.profile.id}: error of the predicted step, %")
        means = errors[["fitted_pct", "left_out_pct", "unseen_pct"]].abs().mean().dropna()
        shown_means = [
            f"{str(name).removesuffix('_pct').replace('_', ' ')} {mean:.1f} %"
            for name, mean in zip(means.index, means, strict=True)
        ]
        print("mean absolute error: " + ", ".join(shown_means))
        print("rates: " + ", ".join(f"{name} {value:.4g}" for name, value in board.figures.items()) + "\n")
    return 0


@dataclass(frozen=True)
class Fitted:
    """A board's fit.

    Attributes:
        figures: the fitted ones.
        samples: what was fitted to.  unseen: times of networks that were left out.
        left_out: relative error of each time, by (network, batch), when a fit without its network predicts it.
    """

    profile: DeviceProfile
    published: Published
    figures: Fit
    samples: list[Sample]
    unseen: list[Sample]
    left_out: dict[tuple[str, int], float]


def fits(published: Published, boards: list[str], without: list[str]) -> list[Fitted]:
    """Trace the published networks and fit each of the boards.

    Raises:
        ConfigError, ProfileError: an unknown network or device.
    """
    traced: dict[tuple[str, str, str, int], tuple[Operators, ...]] = {}

    def operators(name: str, norm: str, what: str, batch: int) -> tuple[Operators, ...]:
        key = (name, norm, what, batch)
        if key not in traced:
            network = Network(name, models.info(name).kinds[0], published.input, published.classes, norm=norm)
            steps = {"step": network.step, "frozen": network.forward_and_head, "infer": network.inference}
            traced[key] = steps[what](batch).work.operators
        return traced[key]

    def samples(board: str) -> list[Sample]:
        found = []
        for name, times in published.boards[board].steps.items():
            batch = published.batch or 0
            if times.step_s is not None:
                found.append(Sample(name, operators(name, times.norm, "step", batch), times.step_s, "step", batch))
            if times.frozen_s is not None:
                step = operators(name, times.norm, "frozen", batch)
                found.append(Sample(name, step, times.frozen_s, "frozen", batch))
            for size, infer_s in times.infer_s.items():
                found.append(Sample(name, operators(name, times.norm, "infer", size), infer_s, "infer", size))
        return found

    result = []
    for board in boards:
        times, profile, everything = published.boards[board], library.device(board), samples(board)
        if profile.flops_per_s is not None:
            raise ConfigError(f"{board} is priced by flops_per_s alone; give its file the rates to fit, guessed, first")
        if not any(amount(sample, name) for sample in everything for name in times.fit):
            raise ConfigError(
                f"boards.{board}.fit: no network of the file has any of {', '.join(times.fit) or 'nothing'}"
            )
        seen = [sample for sample in everything if sample.network not in without]
        if not seen:
            raise ConfigError(f"--without leaves nothing to fit {board} to")
        lender = None
        if times.like is not None:
            lender = ([s for s in samples(times.like) if s.network not in without], library.device(times.like))
            if not lender[0]:
                raise ConfigError(
                    f"--without leaves nothing to fit {times.like} to, which lends {board} its proportions"
                )
        lent = fit(*lender, times.fit) if lender is not None else None
        result.append(
            Fitted(
                profile,
                published,
                fit(seen, profile, times.fit, lent, times.roof),
                seen,
                [sample for sample in everything if sample.network in without and sample.what != "frozen"],
                leave_one_out(seen, profile, times.fit, lender, times.roof),
            )
        )
    return result


def figures(board: Fitted) -> str:
    """Return the YAML of a board's fitted figures, and its measured steps beside what the rates make of them."""
    title = board.published.title
    rounded: Fit = {name: float(f"{value:.4g}") for name, value in board.figures.items()}
    lines = [f"# {board.profile.id}"]
    for name, value in board.figures.items():
        lines += [f"{name}: {{value: {value:.4g}, status: computed, source: fit to {title}}}"]
    steps = [sample for sample in board.samples + board.unseen if sample.what == "step"]
    if steps:
        lines += ["measured:"]
    for sample in steps:
        lines += [
            f"  - {{network: {identity(sample.network, board.published.input, 'batch')}, batch: {sample.batch}, "
            f"roofline_s: {predict(rounded, board.profile, sample):.5g}, "
            f"step_s: {{value: {sample.seconds:.5g}, status: measured, source: {title}}}}}"
        ]
    return "\n".join(lines) + "\n"


def _errors(board: Fitted) -> pd.DataFrame:
    frozen = {sample.network: sample for sample in board.samples if sample.what == "frozen"}
    networks = {sample.network for sample in board.samples}
    several = len({sample.batch for sample in board.samples}) > 1
    rows = []
    for sample in board.samples + board.unseen:
        if sample.what == "frozen":
            continue
        by_rates = predict(board.figures, board.profile, sample)
        error = 100 * (by_rates / sample.seconds - 1)
        known = sample.network in networks
        row: dict[str, Any] = {"board": board.profile.id, "network": sample.network}
        if several:
            row["batch"] = sample.batch
        row |= {
            "measured_s": sample.seconds,
            "priced_s": by_rates,
            "fitted_pct": error if known else nan,
            "left_out_pct": 100 * board.left_out.get((sample.network, sample.batch), nan),
            "unseen_pct": nan if known else error,
        }
        if sample.network in frozen:
            forward = frozen[sample.network]
            row["frozen_pct"] = 100 * (predict(board.figures, board.profile, forward) / forward.seconds - 1)
        rows.append(row)
    return pd.DataFrame(rows)

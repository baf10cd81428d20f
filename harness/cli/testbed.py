"""What testbeds have standing on this machine: keep one standing, see what is there, remove what is left behind.

`ammeter testbed up EXPERIMENT` makes the nodes that an experiment's runs ask for and keeps them until `ammeter testbed
down`: runs of any experiment that asks for the same nodes start on them at once. `ammeter testbed status` lists these,
and containers, networks and folders of runs, also of those that are going on; `ammeter testbed clean` removes what
belongs to no live run.
"""

from __future__ import annotations

import argparse
import sys
from types import ModuleType

import pandas as pd

from harness import experiment, testbed
from harness.cli import common, showing
from harness.errors import TestbedError

HELP = "keep a real testbed standing; list or remove what stands here"


def arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    up = actions.add_parser("up", help="make an experiment's nodes, and keep them for its runs")
    up.add_argument("experiment", help="a YAML file, or a shipped experiment's name; its first run's nodes are made")
    common.add_overrides(up)
    up.add_argument("--name", help="what to call it (default: as the experiment)")
    common.add_data_folder(up)
    common.add_format(up)
    down = actions.add_parser("down", help="remove a standing testbed")
    down.add_argument("name", nargs="?", metavar="NAME", help="which (default: the only one)")
    down.add_argument("--force", action="store_true", help="also while a run uses it; the run fails")
    status = actions.add_parser("status", help="list what is there")
    common.add_format(status)
    clean = actions.add_parser("clean", help="remove what killed runs have left behind")
    clean.add_argument("--all", action="store_true", help="also what stands, and what runs that are going on use")
    common.add_format(clean)


def main(args: argparse.Namespace) -> int:
    return {"up": _up, "down": _down, "status": _status, "clean": _clean}[args.action](args)


def _testbeds() -> list[ModuleType]:
    """Return the testbeds that leave things behind."""
    return [module for name in testbed.names() if hasattr(module := testbed.load(name), "leftovers")]


def _up(args: argparse.Namespace) -> int:
    parsed = experiment.read(args.experiment, args.overrides)
    root = common.data_root(args)
    spec = experiment.runs(parsed, args.experiment, root)[0]
    if not hasattr(spec.testbed, "standing"):
        able = ", ".join(testbed.name_of(module) for module in _testbeds() if hasattr(module, "standing"))
        raise TestbedError(f"testbed.name: {testbed.name_of(spec.testbed)} leaves nothing standing; that can: {able}")
    rows = spec.testbed.standing.up(spec, args.name or parsed.name, root)
    showing.show(pd.DataFrame(rows, columns=["node", "board", "address", "state"]), args.format)
    return 0


def _down(args: argparse.Namespace) -> int:
    standing = [module for module in _testbeds() if hasattr(module, "standing")]
    having = [module for module in standing if args.name in {found.name for found in module.standing.find()}]
    module = (having or standing)[0]
    name, left = module.standing.down(args.name, args.force)
    print(f"removed {name}" if not left else f"{name} is not removed", file=sys.stderr)
    for sentence in left:
        print(f"ammeter: {sentence}", file=sys.stderr)
    return 1 if left else 0


def _status(args: argparse.Namespace) -> int:
    rows = []
    for module in _testbeds():
        things = module.leftovers.find(all=True)
        if hasattr(module, "standing"):
            rows += module.standing.table(things)
        rows += module.leftovers.table(things)
    showing.show(pd.DataFrame(rows, columns=["what", "name", "run", "age", "state"]), args.format)
    return 0


def _clean(args: argparse.Namespace) -> int:
    failed: list[str] = []
    removed = 0
    for module in _testbeds():
        things = module.leftovers.find(all=args.all)
        left = module.leftovers.remove(things)
        removed += len(things) - len(left)
        failed += left
    print(f"removed {removed} things" if removed else "nothing to remove", file=sys.stderr)
    for sentence in failed:
        print(f"ammeter: {sentence}", file=sys.stderr)
    return 1 if failed else 0

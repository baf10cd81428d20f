"""What testbeds have standing on this machine: see it, and remove what killed runs have left behind.

`ammeter testbed status` lists containers, networks and folders of runs, also of those that are going on; `ammeter
testbed clean` removes what belongs to no live run.
"""

from __future__ import annotations

import argparse
import sys
from types import ModuleType

import pandas as pd

from harness import testbed
from harness.cli import common, showing

HELP = "list or remove what runs on real testbeds have standing here"


def arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    status = actions.add_parser("status", help="list what is there")
    common.add_format(status)
    clean = actions.add_parser("clean", help="remove what killed runs have left behind")
    clean.add_argument("--all", action="store_true", help="also what belongs to runs that are going on")
    common.add_format(clean)


def main(args: argparse.Namespace) -> int:
    return {"status": _status, "clean": _clean}[args.action](args)


def _testbeds() -> list[ModuleType]:
    """Return the testbeds that leave things behind."""
    return [module for name in testbed.names() if hasattr(module := testbed.load(name), "leftovers")]


def _status(args: argparse.Namespace) -> int:
    rows = [row for module in _testbeds() for row in module.leftovers.table(module.leftovers.find(all=True))]
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

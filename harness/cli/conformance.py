"""Check that a method keeps the rules of the Node: random speeds and delays on the virtual clock.

METHOD is a shipped method or a file of your own (./mine.py). Exit code 1 if it fails a check.
"""

from __future__ import annotations

import argparse

import pandas as pd

from harness.cli import common, showing
from harness.experiment import assign, override_value
from testbeds.virtual import conformance

HELP = "check that a method keeps the rules of the Node"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("method")
    parser.add_argument("-s", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="a setting")
    parser.add_argument("--trials", type=int, default=4, help="random networks to try (default: 4)")
    common.add_format(parser)


def main(args: argparse.Namespace) -> int:
    settings: dict[str, object] = {}
    for text in args.overrides:
        key, value = override_value(text)
        assign(settings, key, value, f"override {text!r}")
    findings = conformance.check(args.method, settings, max(1, args.trials))
    rows = [{"check": f.check, "": "ok" if f.passed else "FAILED", "seen": f.seen} for f in findings]
    showing.show(pd.DataFrame(rows), args.format, args.method)
    return 0 if all(finding.passed for finding in findings) else 1

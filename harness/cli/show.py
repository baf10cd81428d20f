"""Show a device or network profile: every figure with its unit, how it is known, and its source."""

from __future__ import annotations

import argparse

import pandas as pd

from harness.cli import common, showing
from profiles import library

HELP = "show a profile's figures and their sources"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("profile", help="e.g. rpi-4-4g, jetson-nano-4g/10w, wifi-ac-pi4, or a .yaml file")
    common.add_format(parser)


def main(args: argparse.Namespace) -> int:
    rows = [row._asdict() for row in library.describe(args.profile)]
    showing.show(pd.DataFrame(rows), args.format, args.profile)
    return 0

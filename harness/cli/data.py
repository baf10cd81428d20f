"""The data sets: list them, check the files, or fetch the originals with checksums."""

from __future__ import annotations

import argparse
import sys

import pandas as pd
from rich.progress import DownloadColumn, Progress, TextColumn

from harness.cli import common, showing
from harness.errors import ConfigError
from harness.task import data as datasets
from harness.task.data import fetch

HELP = "list, check or fetch data sets"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("list", "check", "fetch"), nargs="?", default="list")
    parser.add_argument("name", nargs="?", help="a data set, for check and fetch")
    common.add_data_folder(parser)
    common.add_format(parser)


def main(args: argparse.Namespace) -> int:
    if args.action == "list":
        rows = [entry._asdict() for entry in fetch.catalogue()]
        showing.show(pd.DataFrame(rows), args.format)
        return 0
    if args.name is None:
        raise ConfigError(f"data {args.action}: which one? Data sets: {', '.join(datasets.names())}")
    root = common.data_root(args)
    if args.action == "check":
        loaded = datasets.load(args.name, root)
        print(f"{args.name}: {loaded.info.train_samples} training and {loaded.info.test_samples} test samples, whole")
        return 0
    if root is None:
        raise ConfigError("data fetch: where to? Give --data DIR or set AMMETER_DATA")
    with Progress(TextColumn("{task.description}"), DownloadColumn(), disable=not sys.stderr.isatty()) as bar:
        tasks: dict[str, object] = {}

        def progress(file: str, done: int, total: int) -> None:
            if file not in tasks:
                tasks[file] = bar.add_task(file, total=total or None)
            bar.update(tasks[file], completed=done)  # type: ignore[arg-type]

        path = fetch.fetch(args.name, root, progress)
    print(path)
    return 0

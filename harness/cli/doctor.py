"""Say what this machine can do: versions, memory, data sets at hand, testbeds, and what would mend what is missing."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path

import pandas as pd

from harness import testbed
from harness.cli import common, showing
from harness.errors import AmmeterError
from harness.task import data as datasets
from results import environment

HELP = "say what this machine can do, and what is missing"


def arguments(parser: argparse.ArgumentParser) -> None:
    common.add_runs_folder(parser)
    common.add_data_folder(parser)
    common.add_format(parser)


def main(args: argparse.Namespace) -> int:
    showing.show(pd.DataFrame(_rows(args), columns=["what", "state", "remedy"]), args.format)
    return 0


def _rows(args: argparse.Namespace) -> list[tuple[str, str, str]]:
    found = environment.describe()
    rows = [
        ("python", found["python"], ""),
        ("processor", f"{found['processor']}, {found['cores']} cores", ""),
        ("memory", f"{found['memory_bytes'] / 2**30:.1f} GiB", ""),
        ("load", ", ".join(f"{load:.2f}" for load in found["load"]), ""),
    ]
    rows += [(name, version, "") for name, version in found["packages"].items()]
    rows.append(("GPU", *_gpu()))
    for name in testbed.names():
        rows += _testbed(name)
    rows.append(("runs folder", *_writable(args.runs)))
    root = common.data_root(args)
    for name in datasets.names():
        try:
            datasets.load(name, root)
        except AmmeterError as error:
            rows.append((f"data {name}", "missing" if root is None else "not usable", str(error)))
        else:
            rows.append((f"data {name}", "whole", ""))
    return rows


def _testbed(name: str) -> list[tuple[str, str, str]]:
    """Ask a testbed; one that has nothing to say needs nothing."""
    ask = getattr(testbed.load(name), "doctor", None)
    if ask is None:
        return [(f"testbed {name}", "works", "")]
    rows: list[tuple[str, str, str]] = ask()
    lacks = [what for what, state, remedy in rows if remedy and state != "none"]
    return [(f"testbed {name}", "works" if not lacks else f"see {', '.join(lacks)}", ""), *rows]


def _gpu() -> tuple[str, str]:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name(), ""
    return "none", "not needed: the virtual testbed prices any device"


def _writable(folder: Path) -> tuple[str, str]:
    there = folder
    try:
        with contextlib.suppress(FileNotFoundError):
            there.stat()  # says why a path cannot be, where exists() only says no
        while not there.exists():
            there = there.parent
        probe = there / ".ammeter-probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        return f"cannot be written: {error.strerror}", "give another folder with --runs"
    return "writable", ""

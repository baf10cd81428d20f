"""List what there is: methods, models, data sets, profiles, testbeds, shipped experiments."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import pandas as pd

from harness import experiment, method, testbed
from harness.cli import common
from harness.task import data, models
from plots import gallery
from profiles import library

HELP = "list methods, models, data sets, profiles, testbeds, figures, experiments"


def _methods() -> pd.DataFrame:
    found = [method.load(name) for name in method.names()]
    return pd.DataFrame([{"method": m.name, "roles": ", ".join(m.roles), "what": m.summary} for m in found])


def _models() -> pd.DataFrame:
    rows = []
    for name in models.names():
        info = models.info(name)
        rows.append({"model": name, "title": info.title, "data": ", ".join(info.kinds), "paper": info.paper})
    return pd.DataFrame(rows)


def _data() -> pd.DataFrame:
    rows = []
    for name in data.names():
        info = data.info(name)
        rows.append(
            {
                "data": name,
                "kind": info.kind,
                "train": info.train_samples,
                "test": info.test_samples,
                "classes": info.num_classes,
                "input": "x".join(map(str, info.input_shape)),
                "bundled": "yes" if info.bundled else "",
            }
        )
    return pd.DataFrame(rows)


def _profiles() -> pd.DataFrame:
    rows = [{"profile": name, "kind": "device", "title": library.device(name).title} for name in library.devices()]
    rows += [{"profile": name, "kind": "network", "title": library.network(name).title} for name in library.networks()]
    return pd.DataFrame(rows)


def _experiments() -> pd.DataFrame:
    rows = []
    for name in experiment.shipped():
        parsed = experiment.read(name)
        rows.append({"experiment": name, "mode": parsed.mode, "title": parsed.title})
    return pd.DataFrame(rows)


_LISTS: dict[str, Callable[[], pd.DataFrame]] = {
    "methods": _methods,
    "models": _models,
    "data": _data,
    "profiles": _profiles,
    "testbeds": lambda: pd.DataFrame({"testbed": testbed.names()}),
    "figures": lambda: pd.DataFrame({"figure": gallery.names()}),
    "experiments": _experiments,
}


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=list(_LISTS))
    common.add_format(parser)


def main(args: argparse.Namespace) -> int:
    common.show(_LISTS[args.what](), args.format)
    return 0

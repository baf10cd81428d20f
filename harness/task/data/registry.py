"""Find the data sets by looking at this package's modules, so that there is no table to keep."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from pathlib import Path
from typing import Protocol, cast

import harness.task.data as package
from harness.errors import ConfigError, suggestion
from harness.task.data.dataset import DataInfo, Dataset
from harness.task.data.originals import NotFetchable, Originals


class DataModule(Protocol):
    """What a module of this package must have to be a data set. `ORIGINALS` is None for a bundled set."""

    INFO: DataInfo
    ORIGINALS: Originals | NotFetchable | None

    def load(self, root: Path | None) -> Dataset:
        """Read the files below the data folder `root`; raises DataError."""
        ...


@functools.cache
def _modules() -> dict[str, DataModule]:
    found = {}
    for entry in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{entry.name}")
        if isinstance(getattr(module, "INFO", None), DataInfo):
            found[entry.name] = cast(DataModule, module)
    return found


def names() -> list[str]:
    """Return the names of all data sets, sorted."""
    return sorted(_modules())


def module(name: str) -> DataModule:
    """Return the module of data set `name`; raises ConfigError if there is none."""
    try:
        return _modules()[name]
    except KeyError:
        raise ConfigError(f"unknown data set {name!r}{suggestion(name, _modules())}") from None


def info(name: str) -> DataInfo:
    """Return the facts of data set `name`; needs no files. Raises ConfigError if there is no such set."""
    return module(name).INFO


def load(name: str, root: Path | None) -> Dataset:
    """Return data set `name` read from the data folder `root`, which a bundled set does not need.

    Raises ConfigError if there is no such set, DataError if its files are missing, truncated or not what
    they claim to be.
    """
    return module(name).load(root)

"""Finds the figures by their files' names and draws all of them: adding a figure is adding a file."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol, cast

from matplotlib.figure import Figure

import plots
from harness.errors import ConfigError, suggestion
from plots import style
from plots.tables import Tables


class FigureModule(Protocol):
    """What a figure's file holds.

    Attributes:
        TITLE: what the figure shows, in a few words.
        NEEDS: what has to be in the tables, as the rest of a sentence that begins with "it needs".
    """

    TITLE: str
    NEEDS: str

    def available(self, tables: Tables) -> bool:
        """Return whether there is anything to draw."""
        ...

    def draw(self, tables: Tables) -> Figure:
        """Draw the figure; called only if it is available."""
        ...


class Drawn(list[Path]):
    """The files written, and `skipped`: by name, what each figure that could not be drawn needs."""

    def __init__(self) -> None:
        super().__init__()
        self.skipped: dict[str, str] = {}


def _figures() -> dict[str, FigureModule]:
    """Return the modules of this package that have a TITLE, by name."""
    found = {}
    for info in pkgutil.iter_modules(plots.__path__):
        module = importlib.import_module(f"plots.{info.name}")
        if hasattr(module, "TITLE"):
            found[info.name] = cast(FigureModule, module)
    return dict(sorted(found.items()))


def names() -> list[str]:
    """Return the names of all figures, sorted."""
    return list(_figures())


def figure(name: str) -> FigureModule:
    """Return a figure's module.

    Raises:
        ConfigError: there is no figure of that name.
    """
    try:
        return _figures()[name]
    except KeyError:
        raise ConfigError(f"there is no figure {name!r}{suggestion(name, names())}") from None


def draw_all(tables: Tables, folder: str | Path, only: Iterable[str] | None = None) -> Drawn:
    """Draw every figure there is something to draw for and write it as PDF and PNG into `folder`.

    Args:
        only: names of the figures to draw; all if not given.

    Returns:
        The files written; its `skipped` says which figures could not be drawn, and what they need.

    Raises:
        ConfigError: no figure has that name (nothing has been drawn then).
        StoreError: the folder cannot be written.
    """
    chosen = {name: figure(name) for name in (names() if only is None else dict.fromkeys(only))}
    drawn = Drawn()
    for name, module in chosen.items():
        if module.available(tables):
            drawn.extend(style.save(module.draw(tables), folder, name))
        else:
            drawn.skipped[name] = module.NEEDS
    return drawn

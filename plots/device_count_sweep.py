"""Makespan and throughput against the number of devices: the scalability figure."""

from __future__ import annotations

from matplotlib.figure import Figure

from plots import style
from plots.selection import one_configuration
from plots.sweeps import draw_sweep
from plots.tables import Tables
from plots.units import Unit

TITLE = "Scaling with the number of devices"
NEEDS = "runs with at least two different numbers of devices"


def available(tables: Tables) -> bool:
    """Return whether the runs differ in their number of devices."""
    return tables.summary["devices"].nunique() > 1


@style.styled
def draw(tables: Tables) -> Figure:
    """Draw makespan and throughput, one line per method, mean over seeds with 95 % whiskers."""
    labels = tables.labels
    tables, note = one_configuration(tables, along="devices")
    summary = tables.summary
    drawn = draw_sweep(summary, summary["devices"].astype(float), labels, Unit(1, ""), note)
    for axes in drawn.axes:
        axes.set_xlabel("Number of devices")
    return drawn

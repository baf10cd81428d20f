"""The headline: accuracy, makespan, payload and device idle time of every method. The overview figure."""

from __future__ import annotations

from collections.abc import Callable

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from plots import bars, style, units
from plots.selection import one_configuration
from plots.statistics import mean_of
from plots.tables import Tables
from plots.units import Unit

TITLE = "Summary"
NEEDS = "the summary of at least one run"

_PERCENT = Unit(0.01, "%")


def available(tables: Tables) -> bool:
    """Return whether there is any run."""
    return not tables.summary.empty


@style.styled
def draw(tables: Tables) -> Figure:
    """Draw four panels with one bar per method: mean over seeds, whiskers are the 95 % confidence interval.

    Payload is that of all devices, up and down. In timing mode there is no accuracy and its panel says so.
    """
    labels = tables.labels
    tables, note = one_configuration(tables)
    summary = tables.summary.assign(
        payload_bytes=tables.summary["payload_up_bytes"] + tables.summary["payload_down_bytes"]
    )
    rows = [label for label in labels if (summary["label"] == label).any()]
    drawn, axes = bars.panels(4, len(rows), note)
    looks = style.series(labels)
    for panel, (column, title, unit_of, show) in zip(axes, _PANELS, strict=True):
        values = {label: mean_of(summary[summary["label"] == label], column) for label in rows}
        ends = [mean + width for mean, width in values.values() if mean == mean]
        unit = unit_of(max(ends, default=0.0))
        for row, (label, (mean, width)) in enumerate(values.items()):
            if mean != mean:
                continue
            look = looks[label]
            bars.stack(panel, row, 0.0, mean / unit.size, look.colour, look.hatch)
            if width > 0:
                panel.errorbar(
                    mean / unit.size, row, xerr=width / unit.size, color="black", linewidth=0.8, capthick=0.8
                )
            bars.write_at(panel, row, (mean + width) / unit.size, show(mean))
        panel.set_xlabel(f"{title} ({unit.symbol})")
        panel.xaxis.set_major_locator(MaxNLocator(3))
        panel.set_xlim(0, 1.5 * max(ends, default=0.0) / unit.size or 1.0)
        if unit is _PERCENT:  # room for the figures, but no ticks above 100 %
            panel.set_xticks([0, 50, 100])
        if not ends:
            panel.text(0.5, 0.5, "not measured", transform=panel.transAxes, ha="center", va="center", color="#777777")
            panel.set_xticks([0], [" "])
    bars.name_rows(axes, rows)
    return drawn


def _percent(_: float) -> Unit:
    return _PERCENT


_PANELS: tuple[tuple[str, str, Callable[[float], Unit], Callable[[float], str]], ...] = (
    ("accuracy", "Final accuracy", _percent, units.show_percent),
    ("makespan_s", "Makespan", units.seconds, units.show_seconds),
    ("payload_bytes", "Payload", units.size, units.show_bytes),
    ("device_idle_fraction", "Device idle time", _percent, units.show_percent),
)

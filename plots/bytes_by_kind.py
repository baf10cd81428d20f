"""Payload per method by kind of message, up and down side by side: the communication overhead figure."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from plots import bars, style, units
from plots.selection import one_configuration
from plots.tables import Tables

TITLE = "Payload by kind of message"
NEEDS = "the traffic of at least one run"

DIRECTIONS = {"up": "Uplink", "down": "Downlink", "lan": "Local (device–edge)"}


def available(tables: Tables) -> bool:
    """Return whether any bytes were sent."""
    return bool((tables.traffic["payload_bytes"] > 0).any())


@style.styled
def draw(tables: Tables) -> Figure:
    """Draw one bar per method and direction, stacked by tag: bytes of all devices, mean over runs.

    Both panels have the same scale; the number at a bar's end is its sum.
    """
    colours = style.kind_colours(tables.traffic["tag"].tolist())
    tables, note = one_configuration(tables)
    traffic = tables.traffic
    labels = [label for label in tables.labels if (traffic["label"] == label).any()]
    shown = [d for d in DIRECTIONS if d != "lan" or (traffic["direction"] == d).any()]
    drawn, axes = bars.panels(len(shown), len(labels), note)
    runs = traffic.groupby("label")["run_id"].nunique().to_dict()
    means: dict[tuple[str, str, str], float] = {}
    for label, direction, tag, size in zip(
        traffic["label"], traffic["direction"], traffic["tag"], traffic["payload_bytes"], strict=True
    ):
        key = (str(label), str(direction), str(tag))
        means[key] = means.get(key, 0.0) + float(size) / int(runs[label])
    totals = {
        (label, direction): sum(means.get((label, direction, tag), 0.0) for tag in colours)
        for label in labels
        for direction in shown
    }
    largest = max(totals.values())
    unit = units.size(largest)
    for panel, direction in zip(axes, shown, strict=True):
        for row, label in enumerate(labels):
            left = 0.0
            for tag, colour in colours.items():
                width = means.get((label, direction, tag), 0.0) / unit.size
                if width > 0:
                    bars.stack(panel, row, left, width, colour, style.KIND_HATCHES.get(tag, ""))
                    left += width
            bars.write_at(panel, row, left, units.show_bytes(totals[label, direction]))
        panel.set_xlim(0, 1.22 * largest / unit.size)
        panel.xaxis.set_major_locator(MaxNLocator(5))
        panel.set_title(DIRECTIONS[direction])
        panel.set_xlabel(f"Payload ({unit.symbol})")
    bars.name_rows(axes, labels)
    bars.legend(drawn, colours, style.KIND_HATCHES)
    return drawn

"""Where the makespan goes, on devices and on the server: the idle time breakdown figure of systems papers."""

from __future__ import annotations

from matplotlib.figure import Figure

from plots import bars, style
from plots.selection import one_configuration
from plots.tables import Tables

TITLE = "Makespan by cause of idle time"
NEEDS = "the idle time of at least one run"

ROLES = {"device": "Devices (mean)", "edge": "Edges (mean)", "server": "Server"}
_ROOM_FOR_NUMBER = 0.07


def available(tables: Tables) -> bool:
    """Return whether any node's time was accounted for."""
    return bool((tables.idle["fraction"] > 0).any())


@style.styled
def draw(tables: Tables) -> Figure:
    """Draw one bar per method and role, stacked by cause: share of the makespan, mean over nodes and runs."""
    colours = style.cause_colours(tables.idle["cause"].tolist())
    tables, note = one_configuration(tables)
    idle = tables.idle
    labels = [label for label in tables.labels if (idle["label"] == label).any()]
    shown = [role for role in ROLES if (idle["role"] == role).any()]
    drawn, axes = bars.panels(len(shown), len(labels), note)
    sums = idle.groupby(["label", "role", "cause"], sort=False)["fraction"].sum().to_dict()
    nodes = idle.drop_duplicates(["run_id", "node"]).groupby(["label", "role"]).size().to_dict()
    for panel, role in zip(axes, shown, strict=True):
        for row, label in enumerate(labels):
            left = 0.0
            for cause, colour in colours.items():
                share = float(sums.get((label, role, cause), 0.0)) / max(int(nodes.get((label, role), 0)), 1)
                if share > 0:
                    bars.stack(panel, row, 100 * left, 100 * share, colour, style.CAUSE_HATCHES.get(cause, ""))
                    if share >= _ROOM_FOR_NUMBER:
                        panel.text(
                            100 * (left + share / 2),
                            row,
                            f"{100 * share:.0f}",
                            ha="center",
                            va="center",
                            fontsize=7,
                            color=style.ink(colour),
                            bbox={"facecolor": colour, "edgecolor": "none", "pad": 0.8},
                        )
                    left += share
        panel.set_xlim(0, 100)
        panel.set_title(ROLES[role])
        panel.set_xlabel("Share of makespan (%)")
    bars.name_rows(axes, labels)
    bars.legend(drawn, colours, style.CAUSE_HATCHES)
    return drawn

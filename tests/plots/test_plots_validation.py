"""The figure of predictions: its points are the table's, rings are what is beyond its tolerance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from plots import gallery, style, validation


def row(quantity: str, predicted: float, measured: float, allowed: float | None, **more: Any) -> dict[str, Any]:
    return {
        "label": "A",
        "seed": 1,
        "node": "total",
        "quantity": quantity,
        "unit": "s",
        "predicted": predicted,
        "measured": measured,
        "allowed": np.nan if allowed is None else allowed,
        "tolerance": np.nan if allowed is None else allowed / measured if measured else np.inf,
        "met": pd.NA if allowed is None else abs(predicted - measured) <= allowed,
        **more,
    }


ROWS = [
    row("makespan", 10.2, 10.0, 0.5),
    row("makespan", 19.0, 20.0, 1.0, label="B"),
    row("compute", 2.5, 2.0, 0.16, node="device-0"),
    row("compute", 4.1, 4.0, 0.32, node="device-1", label="B"),
    row("transfer up", 1.0, 1.0, 0.08, node="device-0"),
    row("idle: straggler", 5.0, 4.0, 0.4, node="device-0"),
    row("idle: transfer", 0.05, 0.0, 0.1, node="device-0"),
    row("idle: overhead", 0.0, 3.0, None, node="device-0"),
    row("wire bytes up", 1.02e6, 1e6, 1e4, unit="B"),
    row("messages up", 5.0, 5.0, 0.0, unit=""),
]


def table(rows: list[dict[str, Any]] = ROWS) -> pd.DataFrame:
    return pd.DataFrame(rows).astype({"met": "boolean"})


def points(axes: Axes, gid: str) -> list[tuple[float, float]]:
    """Return the points that are drawn under a name, rounded."""
    found = [line.get_xydata() for line in axes.get_lines() if line.get_gid() == gid]
    return [(round(float(x), 6), round(float(y), 6)) for data in found for x, y in np.asarray(data)]


def columns(drawn: Figure) -> dict[str, tuple[Axes, Axes]]:
    """Return the upper and the lower panel of each column by its title."""
    half = len(drawn.axes) // 2
    return {drawn.axes[i].get_title(): (drawn.axes[i], drawn.axes[half + i]) for i in range(half)}


def test_a_column_for_each_kind_that_is_there() -> None:
    titles = ["Makespan, rounds", "Compute", "Transfer", "Idle by cause", "Wire bytes"]
    assert list(columns(validation.draw(table()))) == titles
    assert list(columns(validation.draw(table(ROWS[:3])))) == titles[:2]


def test_points_are_measured_and_predicted_and_below_the_error() -> None:
    above, below = columns(validation.draw(table()))["Makespan, rounds"]
    assert points(above, "A") == [(10.0, 10.2)]
    assert points(above, "B") == [(20.0, 19.0)]
    assert points(below, "A") == [(10.0, 2.0)]
    assert points(below, "B") == [(20.0, -5.0)]


def test_idle_time_is_a_share_of_its_methods_makespan() -> None:
    """4 s of 10 s predicted as 5 s: 40 % and 50 %, 10 % of the run too much."""
    above, below = columns(validation.draw(table()))["Idle by cause"]
    assert (40.0, 50.0) in points(above, "A")
    assert (40.0, 10.0) in points(below, "A")
    assert "% of makespan" in below.get_xlabel()


def test_what_was_not_measured_stands_at_the_edge() -> None:
    above, below = columns(validation.draw(table()))["Idle by cause"]
    left = above.get_xlim()[0]
    assert any(x == pytest.approx(left, rel=1e-4) and error == pytest.approx(0.5) for x, error in points(below, "A"))


def test_rings_are_what_is_beyond_its_tolerance() -> None:
    found = columns(validation.draw(table()))
    assert points(found["Compute"][0], "missed A") == [(2.0, 2.5)]
    assert points(found["Compute"][0], "missed B") == []
    assert points(found["Makespan, rounds"][0], "missed A") == []


def test_the_largest_error_is_written() -> None:
    found = columns(validation.draw(table()))
    said = {title: [t.get_text() for t in above.texts if t.get_gid() == "worst"] for title, (above, _) in found.items()}
    assert said["Makespan, rounds"] == ["worst −5.0 %"]
    assert said["Compute"] == ["worst +25.0 %"]
    assert said["Idle by cause"] == ["worst +10.0 %"]


def test_the_band_is_what_is_allowed() -> None:
    """Idle: a tenth of the cause, at least a hundredth of the run; its small figures are allowed 1 %."""
    _, below = columns(validation.draw(table()))["Idle by cause"]
    (band,) = below.collections
    outline = band.get_paths()[0].vertices
    at_left = [y for x, y in outline if x == pytest.approx(below.get_xlim()[0])]
    assert max(at_left) == pytest.approx(1.0)
    assert max(y for _, y in outline) > 4.0


def test_what_is_only_told_is_not_drawn() -> None:
    above, _ = columns(validation.draw(table()))["Idle by cause"]
    assert len(points(above, "A")) == 2


def test_nothing_judged_is_nothing_to_draw() -> None:
    with pytest.raises(ValueError, match="tolerances"):
        validation.draw(table([row("idle: overhead", 0.0, 1.0, None)]))


def test_it_is_not_drawn_for_every_run() -> None:
    assert "validation" not in gallery.names()


def test_the_same_table_gives_the_same_files(tmp_path: Path) -> None:
    first, second = (style.save(validation.draw(table()), tmp_path / name, "validation") for name in ("a", "b"))
    assert [path.name for path in first] == ["validation.pdf", "validation.png"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]

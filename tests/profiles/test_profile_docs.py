"""docs/profiles.md: its tables are those of the shipped files and of the fit; a failure shows the line to put there."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from harness.cli.fit import fits
from profiles import library
from profiles.fit import RATES
from profiles.published import times

DOCS = Path(__file__).resolve().parents[2] / "docs" / "profiles.md"
BOARDS = sorted({name.partition("/")[0] for name in library.devices()})


def row(board: str) -> str:
    """Return a board's row: modes, tier, how its rates are known (all modes together), timed steps."""
    modes = [name for name in library.devices() if name.partition("/")[0] == board]
    rows = [
        row for name in modes for row in library.describe(name) if row.figure in {*RATES, "operator_s", "flops_per_s"}
    ]
    counts = Counter(row.status for row in rows)
    known = ", ".join(
        f"{counts[status]} {status}" for status in ("measured", "computed", "inferred", "memory") if counts[status]
    )
    profile = library.device(modes[0])
    tier = "scalar" if profile.flops_per_s is not None else "roofline"
    names = ", ".join(name.partition("/")[2] for name in modes if "/" in name)
    steps = sum(len(library.device(name).measured) for name in modes)
    return f"| `{board}` | {names} | {profile.processor} | {tier} | {known} | {steps or ''} |"


@pytest.mark.parametrize("board", BOARDS)
def test_every_board_has_its_row(board: str) -> None:
    assert row(board) in DOCS.read_text(encoding="utf-8").splitlines()


def test_no_board_is_in_the_table_that_is_not_shipped() -> None:
    rows = [
        line for line in DOCS.read_text(encoding="utf-8").splitlines() if "| roofline |" in line or "| scalar |" in line
    ]
    assert rows == [row(board) for board in BOARDS]


@pytest.mark.slow
def test_the_errors_of_the_fit_are_those_that_it_has() -> None:
    text = DOCS.read_text(encoding="utf-8").splitlines()
    published = times.read("raspberry-pi")
    five, four = fits(published, ["rpi-5-8g", "rpi-4-8g"], [])
    for (network, batch), error in five.left_out.items():
        other = four.left_out.get((network, batch))
        cell = "" if other is None else f"{100 * other:+.1f}"
        assert f"| {network} | {100 * error:+.1f} | {cell} |" in text
    means = [100 * sum(map(abs, board.left_out.values())) / len(board.left_out) for board in (five, four)]
    assert f"| mean, absolute | {means[0]:.1f} | {means[1]:.1f} |" in text

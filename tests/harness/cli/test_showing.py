"""What several verbs share: tables for people, however long."""

from __future__ import annotations

import pandas as pd
import pytest

from harness.cli import showing


def _table(rows: int) -> pd.DataFrame:
    return pd.DataFrame({"label": ["A", "long name"] * (rows // 2), "value": [1.5, None] * (rows // 2)})


def test_a_long_table_is_plain_columns(capsys: pytest.CaptureFixture[str]) -> None:
    rows = showing.MOST_ROWS + 2
    showing.show(_table(rows), None, "Many")
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == ["Many", "label      value", "A          1.5", "long name"]
    assert len(lines) == rows + 2


def test_a_short_table_is_laid_out(capsys: pytest.CaptureFixture[str]) -> None:
    showing.show(_table(showing.MOST_ROWS), None, "Few")
    out = capsys.readouterr().out
    assert "──" in out
    assert "long name" in out

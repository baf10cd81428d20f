"""Which runs of a sweep a figure shows.

A figure whose axes are not swept shows one configuration per method: never a mean over different systems.
Where a sweep has several, it shows the first and says so at its top.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pandas as pd

from plots.tables import SWEEP, Tables
from plots.units import bandwidth, number


def comparable(value: Any) -> str:
    """Return a swept value (number, string, list or dict) as text that is equal for equal values."""
    if hasattr(value, "item"):
        value = value.item()
    return json.dumps(value, sort_keys=True, default=str)


def _varying(summary: pd.DataFrame) -> dict[str, pd.Series[str]]:
    """Return the columns, as comparable text, in which the runs of one method differ other than by seed."""
    found = {}
    for column in map(str, summary.columns):
        swept = column.startswith(SWEEP) and column.split(".")[-1] not in ("seed", f"{SWEEP}seed")
        if swept or column == "devices":
            texts = summary[column].map(comparable)
            if (texts.groupby(summary["label"], sort=False).nunique() > 1).any():
                found[column] = texts
    return found


def _follows(texts: pd.Series[str], axis: pd.Series[str]) -> bool:
    return bool((texts.groupby(axis, sort=False).nunique() <= 1).all())


def one_configuration(tables: Tables, along: str | None = None) -> tuple[Tables, str]:
    """Return the tables of one configuration per method, and a note that names it ("" if there is only one).

    Args:
        along: the summary's column that is the figure's axis: it stays free, as do those that follow from it.
    """
    summary = tables.summary
    varying = _varying(summary)
    axis = varying.pop(along, None) if along is not None else None
    notes = []
    for column, texts in varying.items():
        if axis is not None and _follows(texts, axis):
            continue
        left = texts.loc[summary.index]
        first = left.groupby(summary["label"], sort=False).transform("first")
        if left.nunique() > 1 and (left != first).any():
            shown = list(dict.fromkeys(first))
            value = describe(column, summary[column].iloc[0]) if len(shown) == 1 else "the first of its values"
            notes.append(f"{name(column)} = {value}")
            summary = summary[left == first]
    if not notes:
        return tables, ""
    chosen = replace(tables.only(summary["run_id"].tolist()), summary=summary)  # a run may stand for other points, too
    return chosen, "Of the sweep: " + ", ".join(notes)


def decoded(value: Any) -> Any:
    """Return a swept list or dict, which tables hold as JSON text, as what it is; anything else as it is."""
    if isinstance(value, str) and value[:1] in ("{", "["):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def name(column: str) -> str:
    """Return what a swept column is called in a note: the last part of its key that is a word."""
    parts = [part for part in column.removeprefix(SWEEP).split(".") if not part.isdigit() and part != "*"]
    return " ".join(parts[-2:]).replace("_", " ") if column.startswith(SWEEP) else column


def describe(column: str, value: Any) -> str:
    """Return a swept value as people write it."""
    value = decoded(value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {describe(key, item)}" for key, item in value.items())
    if isinstance(value, (str, bool)) or not hasattr(value, "__float__"):
        return str(value)
    if column.endswith("_bps"):
        unit = bandwidth(float(value))
        return f"{unit.show(float(value))} {unit.symbol}"
    return number(float(value))

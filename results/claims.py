"""What papers report beside what our runs give: reductions of a figure, one method against another."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from harness.claims import FIGURES
from results.store import Run
from results.tables import distinct_labels, intervals, summaries

COLUMNS = (
    "run_id",
    "experiment",
    "label",
    "against",
    "seed",
    "figure",
    "value",
    "against_value",
    "ours",
    "reported",
    "source",
)
"""Of the table, beside the swept keys (see `table`)."""


def table(runs: Sequence[Run]) -> pd.DataFrame:
    """Return one row per claim, swept point and seed at which both of its methods have a run of one experiment.

    Runs of one label that differ in more than point and seed are told apart by their labels, and paired each with each.

    Returns:
        COLUMNS and "sweep:<key>" for each swept key. `label` and `run_id` are the method's, `value` is its figure
        and `against_value` the other's; `ours` = 1 - value / against_value, NaN where one of them is not known or
        the other's is 0. Rows are in the order of the claims, then of the points.
    """
    made = summaries(runs)
    swept = [column for column in map(str, made) if column.startswith("sweep:")]
    parts = []
    for (experiment, _), (claim, ids) in _claims(runs).items():
        mine = made[(made["experiment"] == experiment) & made["run_id"].isin(ids)]
        mine = mine.assign(shown=distinct_labels(mine, ["label", *swept]))
        columns = [*FIGURES[claim["figure"]][1]]
        mine = mine.assign(value=mine[columns].astype(float).sum(axis=1, min_count=len(columns)))
        keys = [*swept, "seed"]
        ours = mine.loc[mine["label"] == claim["method"], ["run_id", "experiment", "shown", *keys, "value"]]
        theirs = mine.loc[mine["label"] == claim["against"], [*keys, "shown", "value"]]
        theirs = theirs.rename(columns={"shown": "against", "value": "against_value"})
        pairs = ours.rename(columns={"shown": "label"}).merge(theirs, on=keys, how="inner")
        reported = np.nan if claim["reported"] is None else float(claim["reported"])
        parts.append(pairs.assign(figure=claim["figure"], reported=reported, source=claim["source"]))
    if not any(len(part) for part in parts):
        return pd.DataFrame(columns=[*COLUMNS])
    found = pd.concat([part for part in parts if len(part)], ignore_index=True)
    found["ours"] = 1 - found["value"] / found["against_value"].where(found["against_value"] != 0)
    first = [*COLUMNS[: COLUMNS.index("figure")], *swept]
    ordered: pd.DataFrame = found.reindex(columns=[*first, *COLUMNS[COLUMNS.index("figure") :]])
    return ordered


def _claims(runs: Sequence[Run]) -> dict[tuple[str, str], tuple[dict[str, Any], list[str]]]:
    """Return every claim of every experiment with the ids of the runs that carry it, in the order of the claims."""
    found: dict[tuple[str, str], tuple[dict[str, Any], list[str]]] = {}
    for run in runs:
        for claim in run.summary["claims"]:
            key = (str(run.summary["experiment"]), json.dumps(claim, sort_keys=True))
            found.setdefault(key, (claim, []))[1].append(run.id)
    return found


def presented(claimed: pd.DataFrame) -> pd.DataFrame:
    """Return a table of claims as text for people, a row per claim.

    Args:
        claimed: as from `table`.

    Returns:
        The reported reduction; ours, means over seeds: the range over the sweep, and the point that comes nearest to
        what is reported with its swept values, the assumptions that it stands on.
    """
    swept = [column for column in map(str, claimed) if column.startswith("sweep:")]
    several = claimed["experiment"].nunique() > 1
    keys = ["experiment", "figure", "label", "against", "reported", "source"]
    rows = []
    key: Any
    for key, mine in claimed.groupby(keys, sort=False, dropna=False):
        experiment, figure, label, against, reported, _ = key
        groups = mine.groupby(swept, sort=False, dropna=False) if swept else mine.groupby("figure")
        number = groups.ngroup().to_numpy()
        mean, half = intervals(mine["ours"].to_numpy(dtype=float), number, groups.ngroups)
        points = mine[swept].iloc[np.unique(number, return_index=True)[1]]
        row = {"experiment": str(experiment)} if several else {}
        row |= {"figure": FIGURES[figure][0], "method": str(label), "against": str(against)}
        row |= {"reported": "–" if np.isnan(reported) else f"{100 * reported:.6g} %", "ours": _range(mean, half)}
        if swept:
            known = ~np.isnan(mean) & ~np.isnan(reported)
            nearest = int(np.argmin(np.where(known, np.abs(mean - reported), np.inf)))
            row["nearest"] = _percent(mean[nearest], half[nearest]) if known.any() else "–"
            row["at"] = _assumptions(points.iloc[nearest]) if known.any() else "–"
        rows.append(row)
    return pd.DataFrame(rows)


def _range(mean: Any, half: Any) -> str:
    known = np.flatnonzero(~np.isnan(mean))
    if not len(known):
        return "–"
    if len(mean) == 1:
        return _percent(mean[0], half[0])
    low, high = (f"{100 * end:.2f}" for end in (mean[known].min(), mean[known].max()))
    return f"{low} %" if low == high else f"{low} .. {high} %"


def _percent(mean: float, half: float) -> str:
    return f"{100 * mean:.2f} %" if np.isnan(half) else f"{100 * mean:.2f} ± {100 * half:.2f} %"


def _assumptions(point: pd.Series[Any]) -> str:
    """Return the swept values of a point as people write them, keys by their last part where that names one alone."""
    keys = [str(column).removeprefix("sweep:") for column in point.index]
    last = [key.rpartition(".")[2] for key in keys]
    names = [short if last.count(short) == 1 else key for short, key in zip(last, keys, strict=True)]
    values = (int(value) if isinstance(value, float) and value.is_integer() else value for value in point)
    return ", ".join(f"{name} {value}" for name, value in zip(names, values, strict=True))

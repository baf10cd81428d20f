"""A run's rows as data frames with names instead of numbers, to and from Parquet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness import record

CODES = {
    ("wait", "kind"): record.WAIT_KINDS,
    ("transfer", "status"): record.STATUSES,
    ("mark", "kind"): record.MARK_KINDS,
}


def frame(table: str, rows: np.ndarray[Any, Any], names: Sequence[str]) -> pd.DataFrame:
    """Return a table as a data frame; names and codes become categories. Columns: see harness.record.TABLES."""
    columns: dict[str, Any] = {}
    for column in record.TABLES[table]:
        values = rows[column]
        if column in record.NAMED:
            columns[column] = _categories(values, names)
        elif (table, column) in CODES:
            columns[column] = _categorical(values, CODES[table, column])
        else:
            columns[column] = values
    return pd.DataFrame(columns)


def _categories(values: np.ndarray[Any, Any], names: Sequence[str]) -> Any:
    used, codes = np.unique(values, return_inverse=True)
    return _categorical(codes, [names[i] for i in used])


def _categorical(codes: Any, categories: Sequence[str]) -> Any:
    make: Any = pd.Categorical.from_codes  # its stub knows no arrays
    return make(codes.astype(np.int32), list(categories))


def frames(arrays: Mapping[str, np.ndarray[Any, Any]], names: Sequence[str]) -> dict[str, pd.DataFrame]:
    """Return every table as a data frame."""
    return {table: frame(table, rows, names) for table, rows in arrays.items()}


def write(folder: Path, tables: Mapping[str, pd.DataFrame]) -> None:
    """Write every table to folder/<table>.parquet."""
    for name, table in tables.items():
        table.to_parquet(folder / f"{name}.parquet", index=False)


def read(folder: Path, table: str) -> pd.DataFrame:
    """Read one table of a run."""
    return pd.read_parquet(folder / f"{table}.parquet")

"""A run's rows as data frames with names instead of numbers, to and from Parquet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from harness import record

Rows = np.ndarray[Any, Any]

CODES = {
    ("compute", "tier"): record.TIERS,
    ("wait", "kind"): record.WAIT_KINDS,
    ("transfer", "status"): record.STATUSES,
    ("mark", "kind"): record.MARK_KINDS,
}

CHUNK_ROWS = 2**18
"""Rows that are turned into a data frame and a row group of a file at once: some 20 MB, however long the run."""


def frame(table: str, rows: Rows, names: Sequence[str], used: Mapping[str, Rows] | None = None) -> pd.DataFrame:
    """Return a table as a data frame; names and codes become categories. Columns: see harness.record.TABLES.

    Args:
        rows: all rows of the table, or some of them.
        used: numbers of the names that are categories, by column (see `used_names`); default: those in `rows`.
    """
    used = used_names(table, rows) if used is None else used
    columns: dict[str, Any] = {}
    for column in record.TABLES[table]:
        values = rows[column]
        if column in record.NAMED:
            columns[column] = _categories(values, used[column], names)
        elif (table, column) in CODES:
            columns[column] = _categorical(values, CODES[table, column])
        else:
            columns[column] = values
    return pd.DataFrame(columns)


def used_names(table: str, rows: Rows) -> dict[str, Rows]:
    """Return the numbers of the names that occur, ascending, for each column that holds names."""
    found = {}
    for column in record.TABLES[table]:
        if column in record.NAMED:
            found[column] = np.flatnonzero(np.bincount(rows[column]))
    return found


def _categories(values: Rows, used: Rows, names: Sequence[str]) -> Any:
    position = np.zeros(int(used.max()) + 1 if len(used) else 0, dtype=np.int32)
    position[used] = np.arange(len(used))
    return _categorical(position[values], [names[i] for i in used])


def _categorical(codes: Any, categories: Sequence[str]) -> Any:
    make: Any = pd.Categorical.from_codes  # its stub knows no arrays
    return make(codes.astype(np.int32), list(categories))


def write(folder: Path, arrays: Mapping[str, Rows], names: Sequence[str]) -> None:
    """Write every table to folder/<table>.parquet, a piece at a time: all of a long run would not fit into memory."""
    for table, rows in arrays.items():
        used = used_names(table, rows)
        schema = _arrow(frame(table, rows[:0], names, used)).schema
        repeated = [column for column, code in record.TABLES[table].items() if code == "i"]  # worth a dictionary
        with pq.ParquetWriter(folder / f"{table}.parquet", schema, use_dictionary=repeated) as file:
            for start in range(0, max(1, len(rows)), CHUNK_ROWS):
                file.write_table(_arrow(frame(table, rows[start : start + CHUNK_ROWS], names, used)))


def _arrow(table: pd.DataFrame) -> pa.Table:
    return pa.Table.from_pandas(table, preserve_index=False)

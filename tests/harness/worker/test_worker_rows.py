"""harness/worker/rows.py: what is taken is taken once, whatever is cut."""

from __future__ import annotations

import numpy as np

from harness import record
from harness.worker.rows import ARRIVAL, ARRIVALS, Rows


def test_rows_and_names_go_home_once():
    rows = Rows()
    mark = rows.recorder.mark
    mark.append(mark.pack(rows.id("server"), 0, record.PHASE, rows.id("one"), 0, 1.5))
    rows.arrival(7, rows.id("device-0"), rows.id("server"), rows.id("x"), 0, 3, 100, 130, 0.5, 0.75)
    names, tables = rows.take()
    assert names == ["server", "one", "device-0", "x"]
    assert sorted(tables) == [ARRIVALS, "mark"]
    (arrival,) = np.frombuffer(tables[ARRIVALS], dtype=ARRIVAL)
    assert arrival.tolist() == (7, 2, 0, 3, 0, 3, 100, 130, 0.5, 0.75)
    assert rows.take() == ([], {})


def test_names_known_already_keep_their_numbers():
    rows = Rows()
    rows.id("server")
    rows.take()
    mark = rows.recorder.mark
    mark.append(mark.pack(rows.id("server"), 0, record.PHASE, rows.id("two"), 0, 2.5))
    names, tables = rows.take()
    assert names == ["two"]
    (row,) = np.frombuffer(tables["mark"], dtype=record.dtype("mark"))
    assert (row["node"], row["name"]) == (0, 1)


def test_an_arrival_has_no_holes():
    """Its bytes are packed by struct and read by numpy."""
    rows = Rows()
    rows.arrival(*range(10))
    _, tables = rows.take()
    assert len(tables[ARRIVALS]) == ARRIVAL.itemsize
    assert np.frombuffer(tables[ARRIVALS], dtype=ARRIVAL)[0].tolist() == tuple(range(10))

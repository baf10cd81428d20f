"""harness/record.py: rows in memory and on disk are the same rows."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness import record
from harness.errors import StoreError
from harness.record import NAMED, TABLES, Recorder, dtype

VALUES = {"i": lambda n: n % 7, "q": lambda n: 2**40 + n, "d": lambda n: n / 3}


def fill(recorder: Recorder, rows: int) -> None:
    for number in range(rows):
        for table in recorder.tables:
            columns = TABLES[table.name]
            table.append(table.pack(*[VALUES[code](number + at) for at, code in enumerate(columns.values())]))
        if number % 10 == 9:
            recorder.spill()


def equal(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def test_rows_come_back_as_they_were_written():
    recorder = Recorder()
    compute = recorder.compute
    compute.append(compute.pack(1, 2, 3, 16, 0.25, 0.5, 1e9, 2))
    compute.append(compute.pack(1, 0, 4, 0, 0.5, 1.0, 0.0, 1))
    rows = recorder.arrays()["compute"]
    assert rows.dtype == dtype("compute")
    assert rows.tolist() == [(1, 2, 3, 16, 0.25, 0.5, 1e9, 2), (1, 0, 4, 0, 0.5, 1.0, 0.0, 1)]
    assert rows["end_s"].tolist() == [0.5, 1.0]


def test_an_empty_recorder_has_empty_tables_of_the_right_columns():
    arrays = Recorder().arrays()
    assert list(arrays) == list(TABLES)
    for name, rows in arrays.items():
        assert len(rows) == 0
        assert list(rows.dtype.names) == list(TABLES[name])


@pytest.mark.parametrize("spill_rows", [1, 7, 1000])
@pytest.mark.parametrize("closed", [True, False])
def test_spilling_changes_nothing(tmp_path: Path, spill_rows: int, closed: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Recorder, "SPILL_ROWS", spill_rows)
    in_memory, on_disk = Recorder(), Recorder(tmp_path)
    fill(in_memory, 95)
    fill(on_disk, 95)
    if closed:
        on_disk.close()
    wanted = in_memory.arrays()
    assert {len(rows) for rows in wanted.values()} == {95}
    assert equal(on_disk.arrays(), wanted)
    assert equal(on_disk.arrays(), wanted)  # asking twice changes nothing
    on_disk.close()


def test_spilling_empties_memory_and_the_files_hold_whole_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Recorder, "SPILL_ROWS", 10)
    recorder = Recorder(tmp_path)
    fill(recorder, 20)
    assert [len(table.rows) for table in recorder.tables] == [0] * len(TABLES)
    assert [table.written for table in recorder.tables] == [20] * len(TABLES)
    recorder.close()
    for name in TABLES:
        raw = np.fromfile(tmp_path / f"{name}.rows", dtype=dtype(name))
        assert np.array_equal(raw, recorder.arrays()[name])


def test_a_run_may_go_on_after_its_rows_were_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Recorder, "SPILL_ROWS", 4)
    recorder = Recorder(tmp_path)
    fill(recorder, 12)
    assert len(recorder.arrays()["wait"]) == 12
    fill(recorder, 5)
    assert len(recorder.arrays()["wait"]) == 17
    recorder.close()
    assert len(recorder.arrays()["wait"]) == 17


def test_rows_on_disk_are_mapped_not_read(tmp_path: Path):
    """A long run's rows need not fit into memory. Nobody can change them by accident, nor those in memory."""
    recorder = Recorder(tmp_path)
    fill(recorder, 3)
    assert not any(rows.flags.writeable for rows in recorder.arrays().values())
    recorder.close()
    mapped = recorder.arrays()
    assert all(isinstance(rows.base, np.memmap) and type(rows) is np.ndarray for rows in mapped.values())
    assert not any(rows.flags.writeable for rows in mapped.values())


def test_rows_that_were_read_outlive_their_file(tmp_path: Path):
    recorder = Recorder(tmp_path)
    fill(recorder, 5)
    recorder.close()
    rows = recorder.arrays()["wait"]
    wanted = rows.copy()
    recorder.discard()
    assert not (tmp_path / "wait.rows").exists()
    assert np.array_equal(rows, wanted)


def test_rows_appended_after_closing_are_not_lost(tmp_path: Path):
    """`append` is bound once by drivers; a row after `close` must not overwrite the file."""
    recorder = Recorder(tmp_path)
    fill(recorder, 3)
    recorder.close()
    fill(recorder, 1)
    recorder.close()
    assert {len(rows) for rows in recorder.arrays().values()} == {4}


@pytest.mark.parametrize("spill_rows", [4, 1000])
def test_discarded_rows_are_in_no_file(tmp_path: Path, spill_rows: int, monkeypatch: pytest.MonkeyPatch):
    """What was on disk is deleted, what was in memory is never written, whoever closes afterwards."""
    monkeypatch.setattr(Recorder, "SPILL_ROWS", spill_rows)
    recorder = Recorder(tmp_path)
    fill(recorder, 15)
    assert bool(list(tmp_path.iterdir())) == (spill_rows == 4)
    recorder.discard()
    recorder.close()
    assert list(tmp_path.iterdir()) == []
    assert {len(rows) for rows in recorder.arrays().values()} == {0}


def test_names_are_small_integers_and_back():
    recorder = Recorder()
    ids = [recorder.id(name) for name in ("server", "device-0", "server", "update")]
    assert ids == [0, 1, 0, 2]
    assert recorder.names == ["server", "device-0", "update"]


def test_rows_of_a_run_that_failed_are_read_with_their_names(tmp_path: Path):
    recorder = Recorder(tmp_path)
    node, what = recorder.id("device-0"), recorder.id("Trainer.step")
    compute = recorder.compute
    compute.append(compute.pack(node, 0, what, 16, 0.25, 0.5, 1e9, 2))
    recorder.close()
    with (tmp_path / "compute.rows").open("ab") as file:
        file.write(b"torn")  # whoever wrote was killed
    tables, names = record.read(tmp_path)
    assert list(tables) == list(TABLES)
    assert [(names[row["node"]], names[row["what"]], row["end_s"]) for row in tables["compute"]] == [
        ("device-0", "Trainer.step", 0.5)
    ]
    assert len(tables["wait"]) == 0
    recorder.discard()
    with pytest.raises(StoreError, match=r"names\.json: cannot be read .* mean nothing"):
        record.read(tmp_path)


def test_every_column_that_holds_a_name_is_an_integer():
    for columns in TABLES.values():
        assert all(columns[column] == "i" for column in NAMED & columns.keys())


def test_a_row_of_the_wrong_shape_is_refused():
    with pytest.raises(struct.error):
        Recorder().mark.pack(1, 2)

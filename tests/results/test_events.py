"""Rows as tables with names, through Parquet and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from bench_nodes import Bench, burn, letter
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import rows

from harness import record
from harness.node import Node
from results import events


@pytest.fixture(scope="module")
def bench() -> Bench:
    """A run with rows in every table but metric, one message undelivered and one node lost and back."""

    async def device(node: Node) -> None:
        if node.incarnation:
            return
        await node.recv("go")
        await node.compute(burn, 1)
        await node.send("server", "up", letter(100), round=1, lane="control")
        await node.recv("never")

    async def quiet(node: Node) -> None:
        """Returns at once: what is sent to it is undelivered."""

    async def server(node: Node) -> None:
        node.phase("first")
        for index in node.rounds(1):
            node.broadcast("go", to=["device-0"], round=index)
            await node.gather("up", from_=["device-0"], round=index)
        await node.sleep(1)
        await node.send("device-1", "late", letter(70))
        await node.sleep(8)

    faults = [(4.0, "crash", "device-0"), (5.0, "rejoin", "device-0")]
    return Bench({"device-0": device, "device-1": quiet, "server": server}, faults=faults).run()


@pytest.mark.parametrize("table", ["compute", "wait", "transfer", "barrier", "mark"])
def test_names_and_codes_come_back_from_parquet(bench: Bench, table: str, tmp_path: Path) -> None:
    """Against the bench's own decoding of the raw rows, which knows nothing of pandas."""
    events.write(tmp_path, bench.recorder.arrays(), bench.recorder.names)
    back = pd.read_parquet(tmp_path / f"{table}.parquet")
    expected = bench.rows(table)
    assert len(expected) > 0
    assert list(back) == list(record.TABLES[table])
    for column in back:
        found = back[column].tolist()
        assert [str(f) if isinstance(f, str) else f for f in found] == [row[column] for row in expected]


def test_every_table_is_written(bench: Bench, tmp_path: Path) -> None:
    events.write(tmp_path, bench.recorder.arrays(), bench.recorder.names)
    assert {path.name for path in tmp_path.iterdir()} == {f"{table}.parquet" for table in record.TABLES}


def test_numbers_keep_their_types_and_every_bit(tmp_path: Path) -> None:
    """Serials above 2 ** 53 are no doubles; a double is not rounded; a negative arrival stays -1."""
    big, third = 2**53 + 1, 1 / 3
    given_rows = rows("transfer", (big, 0, 1, 2, 5, 1, 2, 3, big, big + 2, third, third + 1, -1.0))
    events.write(tmp_path, {"transfer": given_rows}, ["a", "b", "t"])
    (row,) = pd.read_parquet(tmp_path / "transfer.parquet").to_dict("records")
    assert (row["serial"], row["payload_bytes"], row["wire_bytes"]) == (big, big, big + 2)
    assert (row["posted_s"], row["started_s"], row["arrived_s"]) == (third, third + 1, -1.0)
    assert (row["src"], row["dst"], row["tag"], row["lane"], row["status"]) == ("a", "b", "t", 5, "in flight")


@pytest.mark.parametrize("chunk_rows", [1, 3, 4])
def test_a_table_that_is_written_in_pieces_is_the_same(
    bench: Bench, chunk_rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each piece has other names than the next, and is a row group."""
    arrays, names = bench.recorder.arrays(), bench.recorder.names
    assert len(arrays["wait"]) >= 4
    monkeypatch.setattr(events, "CHUNK_ROWS", chunk_rows)
    events.write(tmp_path, arrays, names)
    for table, array in arrays.items():
        file = tmp_path / f"{table}.parquet"
        if len(array):
            pd.testing.assert_frame_equal(pd.read_parquet(file), events.frame(table, array, names))
        assert pq.read_metadata(file).num_row_groups == max(1, -(-len(array) // chunk_rows))


@pytest.mark.parametrize("table", list(record.TABLES))
def test_an_empty_table_has_its_columns(table: str, tmp_path: Path) -> None:
    events.write(tmp_path, {table: rows(table)}, [])
    back = pd.read_parquet(tmp_path / f"{table}.parquet")
    assert list(back) == list(record.TABLES[table])
    assert len(back) == 0


@pytest.mark.parametrize(
    ("table", "column", "codes"),
    [
        ("wait", "kind", record.WAIT_KINDS),
        ("transfer", "status", record.STATUSES),
        ("mark", "kind", record.MARK_KINDS),
    ],
)
def test_every_code_has_its_word(table: str, column: str, codes: tuple[str, ...]) -> None:
    array = np.zeros(len(codes), dtype=record.dtype(table))
    array[column] = np.arange(len(codes))
    assert events.frame(table, array, ["x"])[column].tolist() == list(codes)


@settings(max_examples=30, deadline=None)
@given(
    names=st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=6, unique=True),
    data=st.data(),
)
def test_any_name_stands_for_itself(names: list[str], data: st.DataObject) -> None:
    """Whatever subset of names a column uses, in whatever order."""
    used = data.draw(st.lists(st.integers(0, len(names) - 1), max_size=10))
    array = np.zeros(len(used), dtype=record.dtype("metric"))
    array["node"] = used
    frame = events.frame("metric", array, names)
    assert frame["node"].tolist() == [names[i] for i in used]
    assert isinstance(frame["node"].dtype, pd.CategoricalDtype)

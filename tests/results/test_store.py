"""Run folders: written whole or not at all, whatever stops the writing."""

from __future__ import annotations

import contextlib
import errno
import gc
import io
import json
import os
import shutil
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from bench_nodes import burn, letter
from small_runs import benched, resolved, small_disk

from harness import record
from harness.errors import BrokenRecords, ProtocolError, StoreError, TestbedError
from harness.node import Node
from harness.record import Recorder
from harness.testbed import Outcome
from results import finish, store
from results.store import Store

ID = "0123456789ab"


async def _device(node: Node) -> None:
    await node.compute(burn, 2)
    await node.send("server", "up", letter(100), round=1)


async def _server(node: Node) -> None:
    for _ in node.rounds(1):
        await node.gather("up", round=1)


_bench = benched({"device-0": _device, "server": _server})


def execute(recorder: Recorder) -> Outcome:
    """A run of two seconds, with a partition."""
    outcome = _bench(recorder)
    outcome.partition = [np.array([3, 1, 2])]
    outcome.histogram = np.array([[2, 1]])
    return outcome


@pytest.fixture
def runs(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs")


def _folder(runs: Store) -> Path:
    return runs.folder("by-hand", ID)


def _make(runs: Store, how: Callable[[Recorder], Outcome] = execute) -> store.Run:
    return runs.record(resolved(), ID, how)


def _assert_made_anew(runs: Store) -> None:
    """The folder is not taken for a run; the next attempt makes it whole."""
    assert runs.complete("by-hand", ID) is None
    assert _make(runs).summary["makespan_s"] == 2.0
    assert runs.complete("by-hand", ID) is not None


# ---- a whole run ------------------------------------------------------------------------------------------------


def test_a_complete_run_has_all_its_files_and_nothing_else(runs: Store) -> None:
    _make(runs)
    folder = _folder(runs)
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert names == {
        "status",
        "lock",
        "experiment.yaml",
        "environment.json",
        "partition.npz",
        "rounds.parquet",
        "metrics.parquet",
        "idle.parquet",
        "summary.json",
        *(f"events/{table}.parquet" for table in record.TABLES),
    }
    assert json.loads((folder / "status").read_text()) == {"state": "complete", "format": store.FORMAT}


def test_what_was_written_is_what_is_loaded(runs: Store) -> None:
    made = _make(runs)
    loaded = runs.complete("by-hand", ID)
    assert loaded == made
    assert loaded.id == ID
    assert loaded.resolved() == resolved()
    assert loaded.table("compute")["end_s"].tolist() == [2.0]
    assert loaded.table("rounds")["duration_s"].tolist() == [2.0]
    assert loaded.table("idle")["role"].tolist() == ["device", "server"]
    with np.load(_folder(runs) / "partition.npz") as arrays:
        assert arrays["client_0"].tolist() == [3, 1, 2]
        assert arrays["histogram"].tolist() == [[2, 1]]
    details = json.loads((_folder(runs) / "environment.json").read_text())
    assert details["messages"] == {"sent": 1, "consumed": 1, "unread": 0, "undelivered": 0, "in_flight": 0}
    assert [node["name"] for node in details["nodes"]] == ["device-0", "server"]


def test_a_run_is_running_until_everything_is_written(runs: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody may take a folder for a run while its files are being written: complete comes last."""
    seen = []

    def spy(*_: Any) -> list[str]:
        seen.append(store.state(_folder(runs)))
        assert (_folder(runs) / "summary.json").exists()
        return []

    monkeypatch.setattr(finish.checks, "violations", spy)

    def watched(recorder: Recorder) -> Outcome:
        seen.append(store.state(_folder(runs)))
        assert runs.complete("by-hand", ID) is None
        with pytest.raises(StoreError, match="is running; run its experiment again"):
            store.load(_folder(runs))
        return execute(recorder)

    _make(runs, watched)
    assert seen == ["running", "running"]
    assert store.state(_folder(runs)) == "complete"


def test_rows_spilled_during_the_run_are_in_its_tables(runs: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a spill after every row the tables are the same, and no row file is left."""
    whole = _make(runs).table("wait")
    monkeypatch.setattr(Recorder, "SPILL_ROWS", 1)

    def spilling(recorder: Recorder) -> Outcome:
        outcome = execute(recorder)
        recorder.spill()
        assert (_folder(runs) / "events" / "wait.rows").exists()
        return outcome

    pd.testing.assert_frame_equal(_make(runs, spilling).table("wait"), whole)
    assert not list(_folder(runs).rglob("*.rows"))


def test_rows_that_were_never_spilled_are_written_once(runs: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Parquet only: a short run's row files would be deleted at once."""
    spilled = []
    monkeypatch.setattr(record.Table, "spill", lambda table: spilled.append(table.name))
    assert len(_make(runs).table("compute")) == 1
    assert spilled == []


# ---- the same run asked for again -----------------------------------------------------------------------------------


LABELS = [
    {"seed": 8},
    {"sweep": {"a": 1}},
    {"target_accuracy": 0.9},
    {"experiment": "x"},
    {"claims": [{"figure": "x"}]},
]


@pytest.mark.parametrize("changed", LABELS)
def test_repeats_of_one_variant_have_one_name(changed: dict[str, Any]) -> None:
    assert store.variant(resolved(**changed)) == store.variant(resolved())


@pytest.mark.parametrize("changed", [{"method": {"name": "mine", "fraction": 0.5}}, {"training": {"rounds": 2}}])
def test_other_settings_are_another_variant(changed: dict[str, Any]) -> None:
    assert store.variant(resolved(**changed)) != store.variant(resolved())


def test_a_variants_name_is_in_the_summary(runs: Store) -> None:
    assert _make(runs).summary["variant"] == store.variant(resolved())


def _evaluated(recorder: Recorder) -> Outcome:
    """The run, with an accuracy of 0.5 at 2 s."""
    outcome = execute(recorder)
    metric = recorder.metric
    metric.append(metric.pack(recorder.id("server"), recorder.id("global/accuracy"), 1, 2.0, 0.5))
    return outcome


def test_a_kept_run_is_relabelled_by_who_asks_for_it(runs: Store) -> None:
    """Its place in a sweep and its target are the asking experiment's; everything else stays, on disk, too."""
    made = _make(runs, _evaluated)
    assert (made.summary["target_accuracy"], made.summary["time_to_accuracy_s"]) == (None, None)
    claim = {"figure": "makespan_s", "method": "Mine", "against": "Other", "reported": 0.5, "source": ""}
    relabelled = runs.relabel(made, [{"rate": 3}, {"rate": 4}], 0.4, [claim])
    loaded = runs.complete("by-hand", ID)
    assert loaded == relabelled
    changed = {"points": [{"rate": 3}, {"rate": 4}], "target_accuracy": 0.4, "time_to_accuracy_s": 2.0}
    assert loaded.summary == {**made.summary, **changed, "claims": [claim]}
    assert runs.relabel(loaded, [{}], 0.6).summary == {**made.summary, "target_accuracy": 0.6}


def test_a_run_that_has_its_labels_is_not_written_again(runs: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    made = _make(runs)
    with monkeypatch.context() as patch:
        patch.setattr(store, "write_text", lambda *_: pytest.fail("written"))
        assert runs.relabel(made, [{}], None) is made


def test_a_run_of_before_there_were_points_has_one(runs: Store) -> None:
    made = _make(runs)
    old = {key: value for key, value in made.summary.items() if key not in ("points", "claims")}
    (_folder(runs) / "summary.json").write_text(json.dumps({**old, "sweep": {"rate": 3}}))
    loaded = runs.complete("by-hand", ID)
    assert loaded is not None
    assert loaded.summary == {**made.summary, "points": [{"rate": 3}]}


def test_a_disk_that_refuses_the_new_labels_is_named(runs: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old ones hold."""
    made = _make(runs)

    def full(*_: Any) -> None:
        raise _error(errno.ENOSPC)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StoreError, match="the disk is full"):
            runs.relabel(made, [{"rate": 3}], 0.4)
    assert runs.complete("by-hand", ID) == made


# ---- stopped ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (KeyboardInterrupt(), "interrupted"),
        (ProtocolError("a rule was broken"), "ProtocolError: a rule was broken"),
        (ZeroDivisionError("a bug"), "ZeroDivisionError: a bug"),
        (SystemExit(3), "SystemExit: 3"),
    ],
)
def test_what_stops_a_run_is_said_and_the_run_is_made_anew(runs: Store, error: BaseException, reason: str) -> None:
    def stopped(recorder: Recorder) -> Outcome:
        execute(recorder)
        raise error

    with pytest.raises(type(error)):
        _make(runs, stopped)
    assert json.loads((_folder(runs) / "status").read_text())["state"] == "failed"
    assert json.loads((_folder(runs) / "status").read_text())["reason"] == reason
    with pytest.raises(StoreError, match="is failed; run its experiment again"):
        store.load(_folder(runs))
    _assert_made_anew(runs)


def test_the_rows_of_a_failed_run_are_kept_to_be_looked_at(runs: Store) -> None:
    def stopped(recorder: Recorder) -> Outcome:
        execute(recorder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _make(runs, stopped)
    rows = np.fromfile(_folder(runs) / "events" / "compute.rows", dtype=record.dtype("compute"))
    assert rows["end_s"].tolist() == [2.0]


@pytest.mark.parametrize("name", ["nowhere.csv", "/nowhere/at/all.csv"])
def test_a_file_that_the_method_lacks_is_not_the_stores(runs: Store, name: str) -> None:
    """Not "cannot be written; give another folder": another folder of runs would not help."""

    def reading(recorder: Recorder) -> Outcome:
        execute(recorder)
        Path(name).read_text()
        raise AssertionError

    with pytest.raises(TestbedError, match=f"the run needs {name}: No such file"):
        _make(runs, reading)
    assert store.state(_folder(runs)) == "failed"
    _assert_made_anew(runs)


def test_records_that_do_not_add_up_are_no_run(runs: Store) -> None:
    def wrong(recorder: Recorder) -> Outcome:
        outcome = execute(recorder)
        outcome.sent += 1
        return outcome

    with pytest.raises(BrokenRecords, match="do not add up") as caught:
        _make(runs, wrong)
    assert str(_folder(runs)) in str(caught.value)
    assert store.state(_folder(runs)) == "failed"
    _assert_made_anew(runs)


def _no_status(folder: Path) -> None:
    (folder / "status").unlink()


def _text(text: str | bytes) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "status").write_bytes(text if isinstance(text, bytes) else text.encode())

    return write


def _status_folder(folder: Path) -> None:
    (folder / "status").unlink()
    (folder / "status").mkdir()


def _junk(folder: Path) -> None:
    (folder / "status").unlink()
    (folder / "junk").mkdir()
    (folder / "junk" / "deep").write_text("x")
    (folder / "stray.parquet").write_bytes(b"\0" * 100)


def _link(folder: Path) -> None:
    (folder / "status").unlink()
    (folder.parent / "elsewhere").mkdir()
    (folder.parent / "elsewhere" / "precious").write_text("keep me")
    (folder / "link").symlink_to(folder.parent / "elsewhere")


@pytest.mark.parametrize(
    "spoil",
    [
        _no_status,
        _text(""),
        _text('{"state": "comp'),
        _text("complete"),
        _text("null"),
        _text("[1, 2]"),
        _text('{"state": "complete"}'),
        _text('{"state": "complete", "format": "new"}'),
        _text('{"state": "running", "format": 1}'),
        _text(b"\xff\xfe\x00"),
        _status_folder,
        _junk,
        _link,
    ],
    ids=[
        "no-status",
        "empty",
        "cut",
        "bare-word",
        "null",
        "list",
        "no-format",
        "odd-format",
        "killed",
        "binary",
        "status-is-a-folder",
        "junk",
        "link-to-a-folder",
    ],
)
def test_garbage_is_never_taken_for_a_run(runs: Store, spoil: Callable[[Path], None]) -> None:
    """A folder that says it is complete in another way than the store writes it is made anew, cleanly."""
    _make(runs)
    files = {path.name for path in _folder(runs).iterdir()}
    spoil(_folder(runs))
    _assert_made_anew(runs)
    assert {path.name for path in _folder(runs).iterdir()} == files
    precious = _folder(runs).parent / "elsewhere" / "precious"
    if spoil is _link:
        assert precious.read_text() == "keep me"


def test_a_partly_written_file_is_no_file(runs: Store) -> None:
    """A process that dies while it writes `status` leaves `status.part`: the old status holds."""
    _make(runs)
    _text('{"state": "running", "format": 1}')(_folder(runs))
    (_folder(runs) / "status.part").write_text('{"state": "complete", "format": 1}')
    assert runs.complete("by-hand", ID) is None


# ---- other versions, damage ---------------------------------------------------------------------------------------


def test_a_newer_format_is_refused_with_a_remedy(runs: Store) -> None:
    _make(runs)
    _text(json.dumps({"state": "complete", "format": store.FORMAT + 1}))(_folder(runs))
    for attempt in (
        lambda: runs.complete("by-hand", ID),
        lambda: store.load(_folder(runs)),
        lambda: store.find([runs.root]),
    ):
        with pytest.raises(StoreError, match="written by a newer Ammeter") as caught:
            attempt()
        assert str(_folder(runs)) in str(caught.value)
        assert "--runs" in str(caught.value)


def test_making_a_run_never_deletes_a_newer_versions(runs: Store) -> None:
    _make(runs)
    _text(json.dumps({"state": "complete", "format": store.FORMAT + 1}))(_folder(runs))
    with pytest.raises(StoreError, match="newer"):
        _make(runs)
    assert (_folder(runs) / "summary.json").exists()


@pytest.mark.parametrize(
    "content",
    [b"", b'{"run_id": "x"', b"\xff\xfe", b"null", b"[]", b"7"],
    ids=["empty", "cut", "binary", "null", "list", "7"],
)
def test_a_damaged_summary_is_named(runs: Store, content: bytes) -> None:
    _make(runs)
    (_folder(runs) / "summary.json").write_bytes(content)
    with pytest.raises(StoreError, match=r"summary\.json.*delete the folder and run again"):
        store.load(_folder(runs))


def test_a_missing_summary_is_named(runs: Store) -> None:
    _make(runs)
    (_folder(runs) / "summary.json").unlink()
    with pytest.raises(StoreError, match=r"summary\.json"):
        store.load(_folder(runs))


@pytest.mark.parametrize("table", ["rounds", "compute"])
@pytest.mark.parametrize("content", [None, b"", b"PAR1 and then nothing"], ids=["missing", "empty", "cut"])
def test_a_damaged_table_is_named(runs: Store, table: str, content: bytes | None) -> None:
    run = _make(runs)
    path = _folder(runs) / ("" if table == "rounds" else "events") / f"{table}.parquet"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(StoreError, match=rf"{table}\.parquet: cannot be read.*delete the run's folder"):
        run.table(table)


# ---- finding ----------------------------------------------------------------------------------------------------


def test_runs_are_found_by_run_experiment_and_root(runs: Store) -> None:
    for number in range(3):
        runs.record(resolved(), f"{number}", execute)
    ids = [["1"], ["0", "1", "2"], ["0", "1", "2"]]
    folders = [runs.folder("by-hand", "1"), runs.root / "by-hand", runs.root]
    assert [[run.id for run in store.find([folder])] for folder in folders] == ids


def test_a_run_named_twice_is_found_once(runs: Store) -> None:
    _make(runs)
    assert len(store.find([_folder(runs), runs.root])) == 1


def test_incomplete_runs_are_left_out(runs: Store) -> None:
    runs.record(resolved(), "good", execute)
    _make(runs)
    _text('{"state": "failed", "format": 1}')(_folder(runs))
    assert [run.id for run in store.find([runs.root])] == ["good"]


def test_runs_that_are_copied_deleted_or_moved_are_found_where_they_are(runs: Store) -> None:
    """Nothing remembers what was there: folders are the truth, whoever changes them."""
    for name in ("a", "b", "c"):
        runs.record(resolved(), name, execute)
    here = runs.root / "by-hand"
    assert [run.folder.name for run in store.find([runs.root])] == ["a", "b", "c"]
    shutil.rmtree(here / "b")
    shutil.copytree(here / "a", here / "d")
    (runs.root / "elsewhere").mkdir()
    (here / "c").rename(runs.root / "elsewhere" / "c")
    found = [run.folder for run in store.find([runs.root])]
    assert found == [here / "a", here / "d", runs.root / "elsewhere" / "c"]


@pytest.mark.parametrize("collecting", [True, False])
@pytest.mark.parametrize("damaged", [True, False])
def test_the_garbage_collector_is_left_as_it_was(runs: Store, collecting: bool, damaged: bool) -> None:
    """Also where a search fails half way."""
    _make(runs)
    if damaged:
        (_folder(runs) / "summary.json").unlink()
    before = gc.isenabled()
    try:
        (gc.enable if collecting else gc.disable)()
        with contextlib.suppress(StoreError):
            store.find([runs.root])
        assert gc.isenabled() == collecting
    finally:
        (gc.enable if before else gc.disable)()


def test_runs_are_found_by_path_whatever_lies_beside_them(runs: Store) -> None:
    """Files beside the folders, a link to a run, a folder without runs; what is inside a run is no run."""
    runs.record(resolved(), "b", execute)
    here = runs.root / "by-hand"
    shutil.copytree(here / "b", here / "b" / "copy")
    shutil.copytree(here / "b", here / "c", ignore=lambda *_: ["copy"])
    (here / "notes.txt").write_text("mine")
    (runs.root / "empty" / "deeper").mkdir(parents=True)
    (here / "a").symlink_to(here / "b")
    assert [run.folder for run in store.find([runs.root])] == [here / "a", here / "b", here / "c"]


def test_a_failed_run_hides_nothing_beside_it(runs: Store) -> None:
    for name in ("a", "b"):
        runs.record(resolved(), name, execute)
    (runs.root / "by-hand" / "a" / "status").write_text('{"state": "failed", "format": 1}')
    assert [run.id for run in store.find([runs.root / "by-hand"])] == ["b"]
    with pytest.raises(StoreError, match="holds no complete run"):
        store.find([runs.root / "by-hand" / "a"])


@pytest.mark.parametrize("columns", [["end_s"], ["what", "node"]])
def test_some_columns_of_a_table_may_be_read(runs: Store, columns: list[str]) -> None:
    run = _make(runs)
    pd.testing.assert_frame_equal(run.table("compute", columns), run.table("compute")[columns])


def test_nothing_to_find_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no such folder"):
        store.find([tmp_path / "nowhere"])
    with pytest.raises(StoreError, match=r"holds no complete run; start one with `ammeter run"):
        store.find([tmp_path])


# ---- two processes ------------------------------------------------------------------------------------------------


def test_the_same_run_is_never_made_twice_at_once(runs: Store) -> None:
    """While one makes it, a second attempt is refused and destroys nothing."""

    def inside(recorder: Recorder) -> Outcome:
        with pytest.raises(StoreError, match="another process is making this run") as caught:
            _make(runs)
        assert str(_folder(runs)) in str(caught.value)
        return execute(recorder)

    _make(runs, inside)
    assert store.state(_folder(runs)) == "complete"


def test_other_runs_may_be_made_meanwhile(runs: Store) -> None:
    def inside(recorder: Recorder) -> Outcome:
        runs.record(resolved(), "other", execute)
        return execute(recorder)

    _make(runs, inside)
    assert len(store.find([runs.root])) == 2


def test_a_lock_is_held_against_another_process_and_dies_with_it(runs: Store) -> None:
    """Another process holds the run's lock as the store does; when it is killed (-9) the run can be made."""
    folder = _folder(runs)
    folder.mkdir(parents=True)
    code = """
        import fcntl, sys, time
        lock = open(sys.argv[1], "wb")
        fcntl.flock(lock, fcntl.LOCK_EX)
        print("locked", flush=True)
        time.sleep(60)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(folder / "lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == "locked\n"
            with pytest.raises(StoreError, match="another process"):
                _make(runs)
        finally:
            other.kill()
    _make(runs)


# ---- the disk says no ---------------------------------------------------------------------------------------------

REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EROFS: "--runs",
    errno.EACCES: "--runs",
    errno.EIO: "",
    errno.EFBIG: "",
}
"""What a message must say of the way out; for EIO (a broken disk) and EFBIG (`ulimit -f`) any one sentence will do."""


def _error(code: int, path: str | None = None) -> OSError:
    return OSError(code, os.strerror(code), path) if path else OSError(code, os.strerror(code))


def _assert_refused(runs: Store, code: int, how: Callable[[Recorder], Outcome] = execute) -> None:
    with pytest.raises(StoreError) as caught:
        _make(runs, how)
    said = str(caught.value)
    assert str(runs.root) in said
    assert REMEDIES[code] in said
    assert "\n" not in said
    assert store.state(_folder(runs)) != "complete"


@pytest.mark.parametrize("code", REMEDIES)
def test_a_folder_that_cannot_be_made(runs: Store, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(path: Path, *_: Any, **__: Any) -> None:
        raise _error(code, str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", refuse)
        _assert_refused(runs, code)
    assert not runs.root.exists()


@pytest.mark.parametrize("code", [errno.EROFS, errno.ENOSPC])
@pytest.mark.parametrize("allowed", range(6))
def test_any_write_may_be_refused(runs: Store, monkeypatch: pytest.MonkeyPatch, code: int, allowed: int) -> None:
    """From some file on none can be opened to be written: the lock, status, experiment, environment, partition, ..."""
    original, count = io.open, 0

    def opened(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        nonlocal count
        if str(file).startswith(str(runs.root)) and set(mode) & set("wax+"):
            count += 1
            if count > allowed:
                raise _error(code, str(file))
        return original(file, mode, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(io, "open", opened)
        patch.setattr("builtins.open", opened)
        _assert_refused(runs, code)
    assert count > allowed
    _assert_made_anew(runs)


@pytest.mark.parametrize("nth", range(7))
def test_the_disk_may_fill_up_while_a_file_is_synchronised(
    runs: Store, monkeypatch: pytest.MonkeyPatch, nth: int
) -> None:
    """status, experiment.yaml, environment.json, summary.json, status: the last one decides that the run is whole."""
    original, count = os.fsync, 0

    def full(descriptor: int) -> None:
        nonlocal count
        count += 1
        if count == nth + 1:
            raise _error(errno.ENOSPC)
        original(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        if nth < 5:
            _assert_refused(runs, errno.ENOSPC)
            assert count >= nth + 1
            patch.setattr(os, "fsync", original)
            _assert_made_anew(runs)
        else:
            assert _make(runs)
            assert count == 5


@pytest.mark.parametrize("nth", range(9))
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_the_disk_may_fill_up_while_tables_are_written(
    runs: Store, monkeypatch: pytest.MonkeyPatch, nth: int, code: int
) -> None:
    """Six event tables, then rounds, metrics and idle: each leaves a file without its rows behind and stops."""
    original, count = pq.ParquetWriter.write_table, 0

    def full(file: pq.ParquetWriter, *args: Any, **options: Any) -> None:
        nonlocal count
        count += 1
        if count == nth + 1:
            raise _error(code)
        original(file, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(pq.ParquetWriter, "write_table", full)
        _assert_refused(runs, code)
    assert count == nth + 1
    _assert_made_anew(runs)


def _open_on(path: str) -> int:
    """How many of this process's descriptors are open on that file."""
    return sum(os.path.realpath(link) == path for link in Path("/proc/self/fd").iterdir())


def test_the_disk_may_fill_up_while_rows_are_spilled(runs: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows' file is /dev/full, which takes nothing: a real ENOSPC in the middle of the run. No file stays open."""
    monkeypatch.setattr(Recorder, "SPILL_ROWS", 1)
    reached = []

    def spilling(recorder: Recorder) -> Outcome:
        for table in record.TABLES:
            (_folder(runs) / "events" / f"{table}.rows").symlink_to("/dev/full")
        outcome = execute(recorder)
        for _ in range(2000):  # more than a file's buffer holds
            recorder.mark.append(recorder.mark.pack(0, 0, 0, 0, 0, 0.0))
        reached.append("spill")
        recorder.spill()
        reached.append("not noticed")
        return outcome

    gc.disable()
    try:
        _assert_refused(runs, errno.ENOSPC, spilling)
        left_open = _open_on("/dev/full")
    finally:
        gc.enable()
        with warnings.catch_warnings():  # what was left open is said below, not by whoever runs next
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()
    assert reached == ["spill"]
    _assert_made_anew(runs)
    assert left_open == 0


def test_a_disk_that_is_really_full_is_named_and_the_run_made_elsewhere(tmp_path: Path) -> None:
    """The whole run takes more than 40 KiB. Whatever write it is that fails, there is one sentence and no run."""
    runs = Store(tmp_path / "disk" / "runs")
    with small_disk(tmp_path / "disk", 40):
        with pytest.raises(StoreError, match="the disk is full: free some space") as caught:
            _make(runs)
        assert str(runs.root) in str(caught.value)
        assert runs.complete("by-hand", ID) is None
    assert _make(Store(tmp_path / "elsewhere"))


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(StoreError, match="a file is in the way: give another folder with --runs"):
        _make(Store(tmp_path / "runs"))


def test_a_name_that_is_too_long_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="--runs"):
        _make(Store(tmp_path / ("a" * 300)))

"""Run folders: written whole or not at all.

    <root>/<experiment>/<run id>/
        status              {"state": "running" | "complete" | "failed", "format": 1, ...}
        experiment.yaml     the resolved run
        environment.json    host, versions, commit; what the testbed reports
        partition.npz       sample indices of every client; samples per client and class
        timings.json        of a wall clock: how long each computation took on each node (testbed.timings)
        events/*.rows       while running: append-only rows (harness.record)
        events/*.parquet    afterwards: the same as tables with names
        rounds.parquet, metrics.parquet, idle.parquet, summary.json

Every file is written beside its name and moved into place; `status` turns to "complete" last. So a folder whose
status is not "complete" is never taken for a run, however it came about, and the run is made anew.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import yaml

from harness.errors import StoreError, TestbedError
from harness.record import Recorder
from harness.testbed import Outcome
from results.disk import refusals, write_text
from results.target import retarget

if TYPE_CHECKING:
    import pandas as pd

FORMAT = 1
"""Version of the folder's layout; a folder of a newer version is refused, not guessed at."""


@dataclass(frozen=True)
class Run:
    """A complete run on disk."""

    folder: Path
    summary: dict[str, Any]

    @property
    def id(self) -> str:
        return str(self.summary["run_id"])

    def table(self, name: str, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """Read "rounds", "metrics" or "idle", or one of the event tables (harness.record.TABLES); or these columns.

        Raises:
            StoreError: it is missing or damaged.
        """
        path = self.folder / f"{name}.parquet"
        if not path.exists():
            path = self.folder / "events" / f"{name}.parquet"
        import pandas as pd  # see _finish

        try:
            return pd.read_parquet(path, columns=None if columns is None else list(columns))
        except (OSError, ValueError) as error:
            raise StoreError(f"{path}: cannot be read ({error}); delete the run's folder and run it again") from None

    def resolved(self) -> dict[str, Any]:
        """Return the resolved run (experiment.yaml)."""
        data: dict[str, Any] = yaml.safe_load((self.folder / "experiment.yaml").read_text())
        return data


class Store:
    """The folder of all runs."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, experiment: str, run_id: str) -> Path:
        """Return where a run is or will be."""
        return self.root / experiment / run_id

    def complete(self, experiment: str, run_id: str) -> Run | None:
        """Return a run if it is there and complete."""
        folder = self.folder(experiment, run_id)
        return load(folder) if state(folder) == "complete" else None

    def relabel(
        self,
        run: Run,
        points: Sequence[Mapping[str, Any]],
        target: float | None,
        claims: Sequence[Mapping[str, Any]] = (),
    ) -> Run:
        """Return a kept run with the labels of the experiment that asks for it now.

        Args:
            points: the swept values of every point that the run stands for.

        Raises:
            StoreError: the disk is read-only or full.
        """
        labels = {"points": [dict(point) for point in points], "claims": [dict(claim) for claim in claims]}
        changed = retarget({**run.summary, **labels}, target)
        if changed == run.summary:
            return run
        with refusals(run.folder):
            write_text(run.folder / "summary.json", json.dumps(changed, indent=2))
        return Run(run.folder, changed)

    def record(self, resolved: Mapping[str, Any], run_id: str, execute: Callable[[Recorder], Outcome]) -> Run:
        """Make one run: execute it, derive its figures, write its folder.

        Raises:
            StoreError: the disk is read-only or full, or another process is making the same run.
            BrokenRecords: the records do not add up; the folder is kept with status "failed".
            TestbedError: a file that the run itself needs cannot be used.
            Whatever `execute` raises; the folder is kept with status "failed" and the reason.
        """
        folder = self.folder(str(resolved["experiment"]), run_id)
        state(folder)  # refuses a newer version's
        with refusals(folder), _locked(folder):
            _clear(folder)
            (folder / "events").mkdir()
            _write_status(folder, "running")
            write_text(folder / "experiment.yaml", yaml.safe_dump(dict(resolved), sort_keys=False))
            recorder = Recorder(folder / "events")
            try:
                outcome = execute(recorder)
                made = Run(folder, _finish(folder, resolved, run_id, recorder, outcome))
            except BaseException as error:
                with contextlib.suppress(OSError):
                    recorder.close()
                    reason = (
                        "interrupted" if isinstance(error, KeyboardInterrupt) else f"{type(error).__name__}: {error}"
                    )
                    _write_status(folder, "failed", reason=reason)
                if isinstance(error, OSError) and not str(error.filename or folder).startswith(str(folder)):
                    raise TestbedError(f"the run needs {error.filename}: {error.strerror}") from error
                raise
            _write_status(folder, "complete")
        return made


def _finish(
    folder: Path, resolved: Mapping[str, Any], run_id: str, recorder: Recorder, outcome: Outcome
) -> dict[str, Any]:
    from results.finish import finish  # not before: while a run is made, what tables need would take memory for nothing

    return finish(folder, resolved, run_id, variant(resolved), recorder, outcome)


def variant(resolved: Mapping[str, Any]) -> str:
    """Return 8 hexadecimal digits that name a run's settings without its seed and labels."""
    labels = ("seed", "experiment", "target_accuracy", "sweep", "claims")
    settings = {k: v for k, v in resolved.items() if k not in labels}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


# ---- reading ---------------------------------------------------------------------------------------------------


def state(folder: Path) -> str | None:
    """Return "running", "complete", "failed", or None if the folder is no run.

    Raises:
        StoreError: it was written by a newer version.
    """
    try:
        status = json.loads(_read(folder, "status"))
        version, found = int(status["format"]), str(status["state"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if version > FORMAT:
        raise StoreError(
            f"{folder}: was written by a newer Ammeter (format {version}, this one reads up to {FORMAT}); "
            "upgrade, or use another --runs folder"
        )
    return found


def _read(folder: Path, name: str) -> bytes:
    """Return a file of a run. (Path.read_text takes thrice as long, which counts where runs are many.)"""
    with open(f"{folder}/{name}", "rb", buffering=0) as file:
        return file.read()


def load(folder: Path) -> Run:
    """Load a complete run.

    Raises:
        StoreError: it is not complete, damaged, or of a newer version.
    """
    found = state(folder)
    if found != "complete":
        raise StoreError(f"{folder}: is {found or 'no run'}; run its experiment again to complete it")
    return _load(folder)


def _load(folder: Path) -> Run:
    try:
        data = json.loads(_read(folder, "summary.json"))
    except (OSError, ValueError) as error:
        raise StoreError(f"{folder}/summary.json: cannot be read ({error}); delete the folder and run again") from None
    if not isinstance(data, dict) or "run_id" not in data:
        raise StoreError(f"{folder}/summary.json: holds no summary; delete the folder and run again")
    if "points" not in data:  # written before a run could stand for several
        data |= {"points": [data.pop("sweep", {})], "claims": []}
    return Run(folder, data)


def find(paths: list[Path]) -> list[Run]:
    """Return all complete runs in and below these folders, by path.

    Raises:
        StoreError: a folder does not exist or holds no complete run.
    """
    runs: dict[Path, Run] = {}
    for path in paths:
        if not path.is_dir():
            raise StoreError(f"{path}: no such folder; give a run's folder, an experiment's, or the --runs folder")
        with _no_collector():
            here = {folder: runs.get(folder) or _load(folder) for folder in _complete(path, levels=2)}
        if not here:
            raise StoreError(f"{path}: holds no complete run; start one with `ammeter run EXPERIMENT`")
        runs |= here
    return list(runs.values())


@contextlib.contextmanager
def _no_collector() -> Iterator[None]:
    """Keep Python from looking for garbage among thousands of summaries, which are none: a third of their time."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _complete(folder: Path, levels: int) -> Iterator[Path]:
    """Yield the folders of complete runs: this one, or those up to so many levels below, by path."""
    found = state(folder)
    if found == "complete":
        yield folder
    if found is None and levels:
        with contextlib.suppress(PermissionError), os.scandir(folder) as entries:
            for name in sorted(entry.name for entry in entries if entry.is_dir()):
                yield from _complete(folder / name, levels - 1)


# ---- writing ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock: two processes never write the same run."""
    lock: BinaryIO
    with (folder / "lock").open("wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(f"{folder}: another process is making this run; wait for it, or stop it") from None
        yield


def _clear(folder: Path) -> None:
    """Remove what an earlier, incomplete attempt left."""
    for entry in folder.iterdir():
        if entry.name == "lock":
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _write_status(folder: Path, found: str, **more: Any) -> None:
    write_text(folder / "status", json.dumps({"state": found, "format": FORMAT, **more}))

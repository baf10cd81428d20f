"""Make the runs of an experiment: one after the other, or several beside each other in processes of their own."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from harness.experiment import RunSpec
from harness.record import Recorder
from harness.run import execute
from harness.testbed import Outcome
from results.store import Run, Store

_PR_SET_PDEATHSIG = 1


def default_jobs(specs: Sequence[RunSpec]) -> int:
    """Return how many of these runs to make at a time: runs that only price keep one core busy each."""
    if any(spec.mode != "timing" for spec in specs) or "fork" not in multiprocessing.get_all_start_methods():
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass
class Jobs:
    """The runs of one experiment.

    Attributes:
        name: of the experiment.  root: the data folder.  jobs: how many runs at a time.
    """

    name: str
    specs: Sequence[RunSpec]
    store: Store
    root: Path | None
    jobs: int

    def make(self) -> list[Run]:
        """Make the runs that are not there and return all; a progress bar, or plain lines off a terminal.

        Specs of one id are one run, which stands for all of their swept points; runs are in the order of their first.

        Raises:
            AmmeterError: whatever stopped a run; those that are complete are kept.
        """
        same: dict[str, list[int]] = {}  # numbers of the specs of each run
        for number, spec in enumerate(self.specs):
            same.setdefault(spec.id, []).append(number)
        with self._progress(len(same)) as report:
            missing: list[int] = []
            for run_id, (number, *_) in same.items():
                if self.store.complete(self.name, run_id) is None:
                    missing.append(number)
                else:
                    report(number, "kept")
            if self.jobs > 1 and len(missing) > 1:
                self._beside(missing, report)
            else:
                for number in missing:
                    report(number, None)
                    report(number, f"{self._run(number, report):.1f} s")
        return [self._kept([self.specs[number] for number in numbers]) for numbers in same.values()]

    def _kept(self, specs: Sequence[RunSpec]) -> Run:
        run = self.store.complete(self.name, specs[0].id)
        assert run is not None
        claims = [claim.model_dump(mode="json") for claim in specs[0].claims]
        return self.store.relabel(run, [spec.swept for spec in specs], specs[0].target_accuracy, claims)

    def _run(self, number: int, report: _Report | None = None) -> float:
        """Make one run; return the seconds it took."""
        spec, began = self.specs[number], time.monotonic()

        def go(recorder: Recorder) -> Outcome:
            progress = None if report is None else lambda seconds: report(number, None, seconds)
            return execute(spec, recorder, self.root, progress)

        self.store.record(spec.resolved(), spec.id, go)
        return time.monotonic() - began

    def _beside(self, numbers: list[int], report: _Report) -> None:
        global _current
        _current = self  # inherited by the processes: a user's own method or model cannot be sent to them
        context = multiprocessing.get_context("fork")
        with ProcessPoolExecutor(min(self.jobs, len(numbers)), context, _die_with_parent) as pool:
            open_runs = {pool.submit(_run_inherited, number): number for number in numbers}
            try:
                while open_runs:
                    done, _ = wait(open_runs, return_when=FIRST_COMPLETED)
                    for future in done:
                        report(open_runs.pop(future), f"{future.result():.1f} s")
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for process in multiprocessing.active_children():
                    process.terminate()  # a run that is cut short is made anew the next time
                raise

    @contextmanager
    def _progress(self, total: int) -> Iterator[_Report]:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        terminal = sys.stderr.isatty()
        with Progress(*columns, disable=not terminal, transient=True) as bar:
            yield _Report(self.specs, total, bar, bar.add_task(self.name, total=total), terminal)


class _Report:
    """Tells the user how far the runs are."""

    def __init__(self, specs: Sequence[RunSpec], total: int, bar: Progress, task: object, terminal: bool) -> None:
        self._specs, self._total, self._bar, self._task, self._terminal = specs, total, bar, task, terminal
        self._finished = 0

    def __call__(self, number: int, took: str | None, at_s: float | None = None) -> None:
        """Run `number` begins (`took` None), is at a time of its clock, or is finished."""
        spec = self._specs[number]
        what = f"{spec.label}, seed {spec.seed}" + "".join(f", {key}={value}" for key, value in spec.swept.items())
        if took is None:
            self._bar.update(self._task, description=what if at_s is None else f"{what}, at {at_s:,.0f} s")  # type: ignore[arg-type]
            return
        self._finished += 1
        self._bar.advance(self._task)  # type: ignore[arg-type]
        if not self._terminal:
            print(f"[{self._finished}/{self._total}] {what}: {took}", file=sys.stderr)


_current: Jobs | None = None


def _run_inherited(number: int) -> float:
    assert _current is not None
    return _current._run(number)


def _die_with_parent() -> None:
    """A killed parent takes its processes along; an interrupt is for the parent, which ends them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

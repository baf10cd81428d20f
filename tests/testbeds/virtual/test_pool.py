"""Computations beside each other: they really overlap, and nobody can tell from the records."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from bench_nodes import Bench, burn
from small_runs import tiny
from torch import Tensor

from harness import experiment
from harness.errors import ProtocolError
from harness.node import Node
from harness.record import Recorder
from harness.run import execute
from testbeds.virtual.pool import Pool, default_workers

PATIENCE_S = 20.0

MODEL = """
from torch import nn

def build(input_shape, num_classes):
    channels = input_shape[0]
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(channels, 8, 3), nn.ReLU(), nn.Dropout(0.5)),
        nn.Sequential(nn.Flatten(), nn.Linear(8 * 36, 16), nn.Dropout(0.5)),
        nn.Linear(16, num_classes),
    )
"""


def rows(workers: int, **changes: Any) -> list[tuple[list[str], dict[str, bytes]]]:
    """Return names and rows of every run of a small experiment that really learns."""
    data = tiny(mode="learn", **changes)
    data["testbed"] = {**data["testbed"], "devices": [{"profile": "rpi-4-4g", "count": 4}], "workers": workers}
    found = []
    for spec in experiment.runs(experiment.parse(data)):
        recorder = Recorder()
        outcome = execute(spec, recorder)
        assert outcome.notes["workers"] == workers
        found.append((recorder.names, {name: array.tobytes() for name, array in recorder.arrays().items()}))
    return found


METHODS = ["fedavg", {"name": "splitfed_v1", "split_point": 1}, {"name": "ampere", "split_point": 1}]


def test_records_and_scores_do_not_depend_on_the_workers():
    changes = {"methods": METHODS, "training": {"rounds": 2, "batch_size": 16}}
    assert rows(1, **changes) == rows(3, **changes)


def test_dropout_masks_do_not_depend_on_the_workers(tmp_path: Path):
    (tmp_path / "mine.py").write_text(MODEL)
    changes = {
        "methods": METHODS[:2],
        "training": {"rounds": 2, "batch_size": 16},
        "task": {**tiny()["task"], "model": f"{tmp_path}/mine.py:build"},
    }
    assert rows(1, **changes) == rows(3, **changes)


def test_a_crash_in_the_middle_of_a_computation_leaves_the_same_records():
    data = tiny()
    changes = {
        "training": {"rounds": 3, "batch_size": 16},
        "testbed": {**data["testbed"], "faults": [{"node": "device-1", "at_s": 0.3, "rejoin_s": 0.5}]},
    }
    assert rows(1, **changes) == rows(3, **changes)


class Meeting:
    """Computations that wait, in real time, until so many are in one at the same moment."""

    def __init__(self, parties: int) -> None:
        self.signature = f"meeting of {parties}"
        self.barrier = threading.Barrier(parties)
        self.inside = self.most = 0
        self._lock = threading.Lock()

    def draw(self, probability: Tensor) -> Tensor:
        with self._lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
        drawn = torch.bernoulli(probability)
        with self._lock:
            self.inside -= 1
        return drawn


def test_computations_that_overlap_in_virtual_time_overlap_in_real_time():
    meeting = Meeting(2)
    _Known.traced = False

    async def device(node: Node) -> None:
        if node.name == "device-0":
            await node.compute(_Known(meeting).meet)  # the first call is traced, and runs alone
        await node.sleep(20 - node.now_s)
        await node.compute(_Known(meeting).meet)

    roles = {"device-0": device, "device-1": device, "server": lambda node: node.sleep(60)}
    bench = Bench(roles, timing=False, workers=2).run()
    assert bench.intervals("compute") == [(0.0, 5.0), (20.0, 25.0), (20.0, 25.0)]
    assert not meeting.barrier.broken


class _Known:
    """The same computation for both nodes: it is traced at its first call, then known."""

    traced = False

    def __init__(self, meeting: Meeting) -> None:
        self.signature = "known meeting"
        self._meeting = meeting

    def meet(self) -> Tensor:
        burn(4)
        if type(self).traced:
            self._meeting.barrier.wait(PATIENCE_S)
        type(self).traced = True
        return torch.zeros(1)


def test_computations_that_draw_random_numbers_take_turns():
    meeting = Meeting(2)
    probability = torch.full((200_000,), 0.5)

    async def device(node: Node) -> None:
        for _ in range(8):
            await node.compute(meeting.draw, probability)

    roles = {f"device-{i}": device for i in range(4)} | {"server": lambda node: node.sleep(60)}
    Bench(roles, timing=False, workers=4).run()
    assert meeting.most == 1


def fail(ticks: int, late: bool) -> Tensor:
    burn(ticks)
    if fail.calls > 1 and late:  # type: ignore[attr-defined]
        raise ValueError("the third is too much")
    fail.calls += 1  # type: ignore[attr-defined]
    return torch.zeros(1)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_ends_the_run_when_its_time_is_over_with_its_own_words(workers: int):
    fail.calls = 0  # type: ignore[attr-defined]

    async def device(node: Node) -> None:
        for _ in range(5):
            await node.compute(fail, 2, True)

    bench = Bench({"device-0": device, "server": lambda node: node.sleep(60)}, timing=False, workers=workers)
    with pytest.raises(ValueError, match="the third is too much"):
        bench.run()
    assert bench.driver.kernel.now == 9.0


@pytest.mark.parametrize("workers", [1, 2])
def test_stop_iteration_out_of_a_known_computation_is_named(workers: int):
    calls = []

    async def device(node: Node) -> None:
        for _ in range(2):
            await node.compute(stops, calls_left)
            calls.append(1)

    stops.left = 1  # type: ignore[attr-defined]
    calls_left = 1
    with pytest.raises(ProtocolError, match="StopIteration"):
        Bench({"device-0": device, "server": lambda node: node.sleep(60)}, timing=False, workers=workers).run()
    assert calls == [1]


def stops(_: int) -> Tensor:
    burn(1)
    if stops.left == 0:  # type: ignore[attr-defined]
        raise StopIteration
    stops.left -= 1  # type: ignore[attr-defined]
    return torch.zeros(1)


def test_a_pool_of_one_runs_at_once_in_the_caller():
    pool = Pool(1, 1)
    seen = []
    future = pool.run(lambda: seen.append(threading.current_thread()), None)
    assert future.done()
    assert seen == [threading.main_thread()]
    pool.close()


def test_as_many_workers_as_the_cores_serve():
    assert default_workers(1) >= 1
    assert default_workers(10_000) == 1

"""`learn` mode beside a plain PyTorch loop: the same steps under the same settings."""

from __future__ import annotations

import gc
import statistics
import time

import torch
import torch.nn.functional as F

from harness import experiment
from harness.record import Recorder
from harness.run import execute
from harness.task import models
from harness.task.data import digits, registry

PAIRS = 3
EPOCHS = 5
SETTINGS = {
    "name": "learn-bench",
    "mode": "learn",
    "seeds": [1],
    "task": {"data": "digits", "model": "resnet-18", "test_samples": 1, "partition": {"kind": "iid"}},
    "training": {"rounds": 1, "local_epochs": EPOCHS, "batch_size": 64, "drop_last": True},
    "methods": ["fedavg"],
    "testbed": {"name": "virtual", "devices": [{"profile": "rpi-5-8g", "count": 1}], "threads": 1},
}


def _ammeter() -> float:
    """Return the seconds of one FedAvg round with one device."""
    spec = experiment.runs(experiment.parse(dict(SETTINGS)))[0]
    began = time.perf_counter()
    execute(spec, Recorder())
    return time.perf_counter() - began


def _plain() -> tuple[float, int]:
    """Return the seconds of the same steps in a plain loop (set-up included, as above), and their number."""
    began = time.perf_counter()
    dataset = registry.load("digits", None)
    torch.manual_seed(1)
    model = models.build("resnet-18", "image", digits.INFO.input_shape, 10, 0, "batch")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    steps = 0
    for _ in range(EPOCHS):
        order = torch.randperm(len(dataset.train.labels))
        for start in range(0, len(order) - 63, 64):
            index = order[start : start + 64]
            inputs, labels = dataset.prepare(dataset.train.inputs[index]), dataset.train.labels[index]
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
            steps += 1
    return time.perf_counter() - began, steps


def report() -> str:
    """Measure and return the section."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    ours, theirs, steps = [], [], 1
    _plain()
    for _ in range(PAIRS):
        gc.collect()
        took, steps = _plain()
        theirs.append(took)
        gc.collect()
        ours.append(_ammeter())
    torch.set_num_threads(threads)
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    plain_s = statistics.median(theirs)
    verdict = "met" if ratio <= 1.05 else "missed"
    lines = [
        "## Learning",
        "",
        f"FedAvg with one device, ResNet-18 on 8x8 digits, batch 64, {steps} steps, one thread, beside a plain PyTorch",
        f"loop that does the same steps (tests/bench/learn.py); whole job, set-up included, {PAIRS} pairs in turn.",
        "",
        "| | seconds | ms per step |",
        "|---|---|---|",
        f"| plain loop | {plain_s:.2f} | {plain_s / steps * 1e3:.1f} |",
        f"| Ammeter, learn mode | {statistics.median(ours):.2f} | {statistics.median(ours) / steps * 1e3:.1f} |",
        "",
        f"Ratio Ammeter / plain: {ratio:.3f} (median of pairs; target: at most 1.05, {verdict}).",
        "",
    ]
    return "\n".join(lines)

"""The job as files, the same for all: samples, who has which, who takes part in which round, first weights' seed.

Needs numpy and torch alone, so that every framework's environment can import it. Samples are plain arrays that are
mapped into memory: processes share their pages, and nobody spends time on decompression.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.bench.peers.cnn import build

SHAPE = (1, 28, 28)
CLASSES = 10
_SCORED_AT_ONCE = 512


@dataclass(frozen=True)
class Job:
    """What is to be trained.

    Attributes:
        folder: where the samples are.
        cohorts: clients of each round.
        weights_seed: torch seed of the first weights.  seed: for the order of the samples.
        mean, std: of the pictures, in raw steps.
    """

    folder: str
    clients: int
    cohorts: list[list[int]]
    batch_size: int
    lr: float
    weights_seed: int
    seed: int
    mean: float
    std: float

    @property
    def rounds(self) -> int:
        """Number of rounds."""
        return len(self.cohorts)

    def write(self, arrays: dict[str, npt.NDArray[Any]]) -> None:
        """Write the job and its arrays: images uint8 [N, 28, 28], labels int64 [N], parts (indices), ends [clients]."""
        for name, array in arrays.items():
            np.save(Path(self.folder) / f"{name}.npy", array)
        (Path(self.folder) / "job.json").write_text(json.dumps(asdict(self)))

    def model(self) -> nn.Sequential:
        """Build the network with the weights that everybody begins with."""
        torch.manual_seed(self.weights_seed)
        return build(SHAPE, CLASSES)


def read(folder: str) -> Job:
    """Read what `write` wrote."""
    return Job(**json.loads((Path(folder) / "job.json").read_text()))


class Samples:
    """The samples of a job, raw and mapped; turned into numbers when asked for."""

    def __init__(self, job: Job) -> None:
        self._job = job
        names = ("train_images", "train_labels", "test_images", "test_labels", "parts", "ends")
        self._arrays = {name: np.load(Path(job.folder) / f"{name}.npy", mmap_mode="r") for name in names}

    def _scaled(self, images: npt.NDArray[np.uint8]) -> Tensor:
        values = torch.from_numpy(np.array(images, dtype=np.float32)).unsqueeze(1)
        return values.sub_(self._job.mean).div_(self._job.std)

    def client(self, number: int, epoch: int) -> tuple[Tensor, Tensor]:
        """Return a client's pictures float32 [n, 1, 28, 28] and labels int64 [n] in the order of that epoch."""
        ends = self._arrays["ends"]
        part = self._arrays["parts"][ends[number - 1] if number else 0 : ends[number]]
        index = np.random.default_rng([self._job.seed, number, epoch]).permutation(part)
        labels = torch.from_numpy(np.array(self._arrays["train_labels"][index]))
        return self._scaled(self._arrays["train_images"][index]), labels

    def accuracy(self, model: nn.Module) -> float:
        """Return the share of correct test samples."""
        images, labels = self._arrays["test_images"], self._arrays["test_labels"]
        correct = 0
        model.eval()
        with torch.no_grad():
            for start in range(0, len(labels), _SCORED_AT_ONCE):
                scores = model(self._scaled(images[start : start + _SCORED_AT_ONCE]))
                found = scores.argmax(dim=1).numpy()
                correct += int((found == labels[start : start + _SCORED_AT_ONCE]).sum())
        return correct / len(labels)


def train(model: nn.Module, images: Tensor, labels: Tensor, job: Job) -> None:
    """One epoch of plain SGD: what a client does."""
    optimizer = torch.optim.SGD(model.parameters(), lr=job.lr)
    model.train()
    for batch, target in zip(images.split(job.batch_size), labels.split(job.batch_size), strict=True):
        optimizer.zero_grad()
        F.cross_entropy(model(batch), target).backward()
        optimizer.step()


def finish(path: str, samples: int, accuracy: float) -> None:
    """Write what a framework reports: how many samples it trained, and the final test accuracy."""
    Path(path).write_text(json.dumps({"samples": samples, "accuracy": accuracy}))

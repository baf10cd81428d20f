"""CIFAR-10: 32 x 32 colour pictures, read from the published binary version."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from harness.errors import DataError
from harness.task.data.dataset import DataInfo, Dataset, Scale, Split
from harness.task.data.files import check_labels, folder_with, read_bytes
from harness.task.data.originals import Originals

INFO = DataInfo(
    name="cifar10",
    title="CIFAR-10",
    kind="image",
    input_shape=(3, 32, 32),
    num_classes=10,
    train_counts=(5000,) * 10,
    test_counts=(1000,) * 10,
    vocabulary=0,
    natural_owners=(),
    licence="none stated; research use, cite the report",
    citation="Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images",
    bundled=False,
)

_BATCHES = "cifar-10-batches-bin"
_TRAIN_FILES = tuple(f"data_batch_{k}.bin" for k in range(1, 6))
_TEST_FILE = "test_batch.bin"

ORIGINALS = Originals(
    base_url="https://www.cs.toronto.edu/~kriz/",
    folder="cifar10",
    checksums={"cifar-10-binary.tar.gz": "md5:c32a1d4ab5d03f1284b67883e8d87530"},
    unpack=tuple(f"{_BATCHES}/{name}" for name in (*_TRAIN_FILES, _TEST_FILE)),
)

_FOLDERS = (f"cifar10/{_BATCHES}", _BATCHES)  # where `fetch` puts them first, so that fetching mends
_RECORD_BYTES = 1 + 3 * 32 * 32
_RECORDS = 10_000
_SCALE = Scale(mean=(0.49140, 0.48216, 0.44653), std=(0.24703, 0.24348, 0.26159), unit=255.0)


def load(root: Path | None) -> Dataset:
    """Return CIFAR-10: uint8 [N, 3, 32, 32], planes R, G, B; raises DataError."""
    remedy = ORIGINALS.remedy(INFO.name)
    folder = folder_with(root, _FOLDERS, (*_TRAIN_FILES, _TEST_FILE), remedy)
    batches = [read_batch(folder / name, _RECORDS, remedy) for name in _TRAIN_FILES]
    train = Split(torch.cat([batch.inputs for batch in batches]), torch.cat([batch.labels for batch in batches]))
    return Dataset(info=INFO, train=train, test=read_batch(folder / _TEST_FILE, _RECORDS, remedy), scale=_SCALE)


def read_batch(path: Path, records: int, remedy: str) -> Split:
    """Return the samples of a file of `records` records: a label byte, then 3 x 32 x 32 pixel bytes."""
    data = read_bytes(path, remedy)
    if len(data) != records * _RECORD_BYTES:
        raise DataError(
            f"{path}: expected {records} records of {_RECORD_BYTES} bytes, so "
            f"{records * _RECORD_BYTES} bytes, found {len(data)}: {remedy}"
        )
    table = np.frombuffer(data, dtype=np.uint8).reshape(records, _RECORD_BYTES)
    labels = table[:, 0].astype(np.int64)
    check_labels(path, labels, INFO.num_classes, remedy)
    pixels = np.ascontiguousarray(table[:, 1:]).reshape(records, 3, 32, 32)
    return Split(torch.from_numpy(pixels), torch.from_numpy(labels))

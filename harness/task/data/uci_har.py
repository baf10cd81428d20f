"""UCI HAR: phone motion signals of 30 people doing six things; each person is a natural client.

Channels: body acceleration x, y, z (g), rotation x, y, z (rad/s), total acceleration x, y, z (g), at 50 Hz;
one sample is a window of 128 steps, 2.56 s. One raw step is 1/2048 of the unit.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from harness.errors import DataError
from harness.task.data.dataset import DataInfo, Dataset, Scale, Split
from harness.task.data.files import check_labels, folder_with, read_npz
from harness.task.data.originals import NotFetchable

INFO = DataInfo(
    name="uci_har",
    title="UCI HAR (phone sensors)",
    kind="signal",
    input_shape=(9, 128),
    num_classes=6,
    train_counts=(1226, 1073, 986, 1286, 1374, 1407),
    test_counts=(496, 471, 420, 491, 532, 537),
    vocabulary=0,
    natural_owners=(
        *(347, 341, 302, 325, 308, 281, 316, 323, 328, 366, 368),
        *(360, 408, 321, 372, 409, 392, 376, 382, 344, 383),
    ),
    licence="no commercial use, cite",
    citation="Anguita et al., ESANN 2013",
    bundled=False,
)

ORIGINALS = NotFetchable(
    "the published zip has one text file per channel; the loader reads uci-har/uci_har.npz with x int16 "
    "[10299, 9, 128] in 1/2048 units, y uint8 0-5, subject uint8 1-30 and test bool, rows in published order."
    " The zip is at https://archive.ics.uci.edu/dataset/240/"
)

_FILE = "uci_har.npz"
_SUBJECTS = 30
_SCALE = Scale(
    mean=(-0.00064, -0.00029, -0.00028, 0.00051, -0.00082, 0.00011, 0.80475, 0.02876, 0.08650),
    std=(0.19485, 0.12243, 0.10688, 0.40681, 0.38185, 0.25574, 0.41411, 0.39100, 0.35777),
    unit=2048.0,
)


def load(root: Path | None) -> Dataset:
    """Return UCI HAR: int16 [N, 9, 128] with owners; raises DataError.

    Labels: 0 walking, 1 upstairs, 2 downstairs, 3 sitting, 4 standing, 5 laying.
    """
    remedy = ORIGINALS.remedy(INFO.name)
    path = folder_with(root, ("uci-har",), (_FILE,), remedy) / _FILE
    train, test = read_windows(path, remedy)
    return Dataset(info=INFO, train=train, test=test, scale=_SCALE)


def read_windows(path: Path, remedy: str) -> tuple[Split, Split]:
    """Return the train and test windows; the people of train are numbered from 0, then those of test."""
    arrays = read_npz(
        path,
        {"x": (np.int16, 3), "y": (np.uint8, 1), "subject": (np.uint8, 1), "test": (np.bool_, 1)},
        remedy,
    )
    x, y, subject, test = arrays["x"], arrays["y"], arrays["subject"], arrays["test"]
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) != 1 or x.shape[1:] != INFO.input_shape:
        raise DataError(
            f"{path}: expected x [N, 9, 128] and N of each other array, found x {list(x.shape)} and {lengths}: {remedy}"
        )
    check_labels(path, y, INFO.num_classes, remedy)
    wrong = np.flatnonzero((subject < 1) | (subject > _SUBJECTS))
    if len(wrong):
        raise DataError(
            f"{path}: expected subjects from 1 to {_SUBJECTS}, found {subject[wrong[0]]} at window {wrong[0]}: {remedy}"
        )
    people = np.unique(subject[~test])
    people = np.concatenate([people, np.setdiff1d(subject[test], people)])
    owner_of = np.zeros(_SUBJECTS + 1, dtype=np.int64)
    owner_of[people] = np.arange(len(people))
    owners = owner_of[subject]
    train_split, test_split = (
        Split(
            torch.from_numpy(x[rows]),
            torch.from_numpy(y[rows].astype(np.int64)),
            torch.from_numpy(owners[rows]),
        )
        for rows in (~test, test)
    )
    return train_split, test_split

"""Handwritten digits, 8 x 8 pixels: small enough to come with scikit-learn, so a first run needs no download.

Source: scikit-learn's `load_digits`, the test part of the UCI Optical Recognition of Handwritten Digits set.
The set has no split of its own; here the first 80 % of each class in a fixed random order is train.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from harness.task.data.dataset import DataInfo, Dataset, Scale, Split

INFO = DataInfo(
    name="digits",
    title="Digits 8x8 (scikit-learn)",
    kind="image",
    input_shape=(1, 8, 8),
    num_classes=10,
    train_counts=(142, 146, 142, 146, 145, 146, 145, 143, 139, 144),
    test_counts=(36, 36, 35, 37, 36, 36, 36, 36, 35, 36),
    vocabulary=0,
    natural_owners=(),
    licence="CC BY 4.0 (UCI)",
    citation="Alpaydin, Kaynak 1998, Optical Recognition of Handwritten Digits, doi:10.24432/C50P49",
    bundled=True,
)

ORIGINALS = None

_SPLIT_SEED = 20240229
_TRAIN_SHARE = 0.8
_SCALE = Scale(mean=(0.30509,), std=(0.37610,), unit=16.0)


def load(root: Path | None) -> Dataset:  # noqa: ARG001 - bundled: there is no folder to look in
    """Return the digits: uint8 [N, 1, 8, 8], values 0 to 16; raises DataError if scikit-learn's changed."""
    from sklearn.datasets import load_digits  # here, because importing it takes seconds

    bunch = load_digits()
    images = torch.from_numpy(bunch.images.astype(np.uint8)).unsqueeze(1)
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    shuffle = np.random.RandomState(_SPLIT_SEED)  # a stream that NumPy guarantees never to change
    train: list[int] = []
    test: list[int] = []
    for label in range(INFO.num_classes):
        members = shuffle.permutation(np.flatnonzero(bunch.target == label))
        cut = round(_TRAIN_SHARE * len(members))
        train.extend(members[:cut].tolist())
        test.extend(members[cut:].tolist())
    train.sort()
    test.sort()
    return Dataset(
        info=INFO,
        train=Split(images[train], labels[train]),
        test=Split(images[test], labels[test]),
        scale=_SCALE,
    )

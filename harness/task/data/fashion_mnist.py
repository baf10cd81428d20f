"""Fashion-MNIST: 28 x 28 grey pictures of clothes, read from the four published IDX files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from harness.errors import DataError
from harness.task.data.dataset import DataInfo, Dataset, Scale, Split
from harness.task.data.files import check_labels, folder_with, read_idx
from harness.task.data.originals import Originals

INFO = DataInfo(
    name="fashion_mnist",
    title="Fashion-MNIST",
    kind="image",
    input_shape=(1, 28, 28),
    num_classes=10,
    train_counts=(6000,) * 10,
    test_counts=(1000,) * 10,
    vocabulary=0,
    natural_owners=(),
    licence="MIT",
    citation="Xiao, Rasul, Vollgraf 2017, arXiv:1708.07747",
    bundled=False,
)

ORIGINALS = Originals(
    base_url="https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    folder="fashion-mnist",
    checksums={
        "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    },
)

_FOLDERS = ("fashion-mnist", "FashionMNIST/raw")  # `fetch` puts them in the first, torchvision in the second
_SCALE = Scale(mean=(0.28604,), std=(0.35302,), unit=255.0)


def load(root: Path | None) -> Dataset:
    """Return Fashion-MNIST: uint8 [N, 1, 28, 28]; raises DataError."""
    remedy = ORIGINALS.remedy(INFO.name)
    folder = folder_with(root, _FOLDERS, tuple(ORIGINALS.checksums), remedy)
    return Dataset(
        info=INFO,
        train=read_split(folder, "train", remedy),
        test=read_split(folder, "t10k", remedy),
        scale=_SCALE,
    )


def read_split(folder: Path, prefix: str, remedy: str) -> Split:
    """Return the pictures and labels of one pair of IDX files; `prefix` is "train" or "t10k"."""
    images_path = folder / f"{prefix}-images-idx3-ubyte.gz"
    labels_path = folder / f"{prefix}-labels-idx1-ubyte.gz"
    images = read_idx(images_path, 3, remedy)
    labels = read_idx(labels_path, 1, remedy)
    if len(images) != len(labels):
        raise DataError(
            f"{labels_path}: expected {len(images)} labels as {images_path.name} has pictures, "
            f"found {len(labels)}: {remedy}"
        )
    check_labels(labels_path, labels, INFO.num_classes, remedy)
    return Split(torch.from_numpy(images).unsqueeze(1), torch.from_numpy(labels.astype(np.int64)))

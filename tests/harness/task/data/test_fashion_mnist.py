from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from harness.errors import DataError
from harness.task.data import fashion_mnist

REMEDY = "get it again"


def write_pair(write_idx: Callable[..., None], folder: Path, images: np.ndarray, labels: np.ndarray) -> None:
    write_idx(folder / "train-images-idx3-ubyte.gz", images)
    write_idx(folder / "train-labels-idx1-ubyte.gz", labels)


def test_read_split_parses_the_files(tmp_path: Path, write_idx: Callable[..., None]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28))
    write_pair(write_idx, tmp_path, images, np.array([9, 0, 4]))
    split = fashion_mnist.read_split(tmp_path, "train", REMEDY)
    assert split.inputs.shape == (3, 1, 28, 28)
    np.testing.assert_array_equal(split.inputs[:, 0].numpy(), images)
    assert split.labels.tolist() == [9, 0, 4]


def test_read_split_refuses_labels_that_do_not_fit(tmp_path: Path, write_idx: Callable[..., None]) -> None:
    write_pair(write_idx, tmp_path, np.zeros((3, 28, 28)), np.array([1, 2]))
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte.gz: expected 3 labels .*found 2"):
        fashion_mnist.read_split(tmp_path, "train", REMEDY)
    write_pair(write_idx, tmp_path, np.zeros((2, 28, 28)), np.array([1, 10]))
    with pytest.raises(DataError, match="found 10 at sample 1"):
        fashion_mnist.read_split(tmp_path, "train", REMEDY)


def test_load_refuses_another_set_in_the_same_format(tmp_path: Path, write_idx: Callable[..., None]) -> None:
    for prefix in ("train", "t10k"):
        write_idx(tmp_path / "fashion-mnist" / f"{prefix}-images-idx3-ubyte.gz", np.zeros((2, 28, 28)))
        write_idx(tmp_path / "fashion-mnist" / f"{prefix}-labels-idx1-ubyte.gz", np.zeros(2))
    with pytest.raises(DataError, match=r"inputs have shape \(2, 1, 28, 28\), expected \(60000, 1, 28, 28\)"):
        fashion_mnist.load(tmp_path)


@pytest.mark.data
def test_real_files_are_what_the_facts_say(real_root: Callable[[str], Path]) -> None:
    dataset = fashion_mnist.load(real_root("fashion-mnist"))
    pixels = dataset.train.inputs.double() / 255
    assert dataset.scale is not None
    assert pixels.mean().item() == pytest.approx(dataset.scale.mean[0], abs=1e-5)
    assert pixels.std().item() == pytest.approx(dataset.scale.std[0], abs=1e-5)
    assert dataset.train.labels[:5].tolist() == [9, 0, 0, 3, 0]

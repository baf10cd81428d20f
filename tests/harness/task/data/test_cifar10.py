from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from harness.errors import DataError
from harness.task.data import cifar10

REMEDY = "get it again"


def records(labels: list[int]) -> np.ndarray:
    table = np.random.default_rng(0).integers(0, 256, (len(labels), 3073)).astype(np.uint8)
    table[:, 0] = labels
    return table


def test_read_batch_parses_label_then_planes(tmp_path: Path) -> None:
    table = records([3, 0, 9])
    (tmp_path / "a.bin").write_bytes(table.tobytes())
    split = cifar10.read_batch(tmp_path / "a.bin", 3, REMEDY)
    assert split.labels.tolist() == [3, 0, 9]
    assert split.inputs.shape == (3, 3, 32, 32)
    assert split.inputs[1, 0, 0, 0] == table[1, 1]
    assert split.inputs[1, 2, 0, 1] == table[1, 1 + 2 * 1024 + 1]
    assert split.inputs[1, 1, 31, 0] == table[1, 1 + 1024 + 31 * 32]


@pytest.mark.parametrize("size", [0, 3 * 3073 - 1, 3 * 3073 + 1, 2 * 3073])
def test_read_batch_refuses_another_size(tmp_path: Path, size: int) -> None:
    (tmp_path / "a.bin").write_bytes(bytes(size))
    with pytest.raises(DataError, match=rf"a.bin: expected 3 records .*9219 bytes, found {size}: get it"):
        cifar10.read_batch(tmp_path / "a.bin", 3, REMEDY)


def test_read_batch_refuses_a_label_out_of_range(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(records([1, 10]).tobytes())
    with pytest.raises(DataError, match="labels from 0 to 9, found 10 at sample 1"):
        cifar10.read_batch(tmp_path / "a.bin", 2, REMEDY)


@pytest.mark.slow
@pytest.mark.data
def test_real_files_are_what_the_facts_say(real_cifar10: Path) -> None:
    dataset = cifar10.load(real_cifar10)
    assert dataset.scale is not None
    for channel in range(3):
        pixels = dataset.train.inputs[:, channel].double() / 255
        assert pixels.mean().item() == pytest.approx(dataset.scale.mean[channel], abs=1e-4)
        assert pixels.std().item() == pytest.approx(dataset.scale.std[channel], abs=1e-4)
    assert dataset.train.labels[:5].tolist() == [6, 9, 9, 4, 1]
    assert dataset.test.labels[:5].tolist() == [3, 8, 8, 0, 6]

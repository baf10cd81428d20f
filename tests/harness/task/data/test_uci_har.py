from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from harness.errors import DataError
from harness.task.data import uci_har

REMEDY = "get it again"


def arrays(**change: np.ndarray) -> dict[str, np.ndarray]:
    return {
        "x": np.arange(4 * 9 * 128).reshape(4, 9, 128).astype(np.int16),
        "y": np.array([0, 5, 2, 3], dtype=np.uint8),
        "subject": np.array([7, 30, 2, 7], dtype=np.uint8),
        "test": np.array([False, False, True, False]),
        **change,
    }


def test_windows_are_parted_and_people_numbered_train_first(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **arrays())
    train, test = uci_har.read_windows(tmp_path / "a.npz", REMEDY)
    assert train.labels.tolist() == [0, 5, 3]
    assert test.labels.tolist() == [2]
    assert train.owners is not None
    assert test.owners is not None
    assert train.owners.tolist() == [0, 1, 0]
    assert test.owners.tolist() == [2]
    np.testing.assert_array_equal(test.inputs.numpy(), arrays()["x"][2:3])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": np.zeros(3, dtype=np.uint8)}, r"expected x \[N, 9, 128\] .*'y': 3"),
        ({"x": np.zeros((4, 128, 9), dtype=np.int16)}, r"found x \[4, 128, 9\]"),
        ({"y": np.full(4, 6, dtype=np.uint8)}, "labels from 0 to 5, found 6"),
        ({"subject": np.full(4, 31, dtype=np.uint8)}, "subjects from 1 to 30, found 31 at window 0"),
        ({"subject": np.zeros(4, dtype=np.uint8)}, "found 0 at window 0"),
        ({"x": np.zeros((4, 9, 128), dtype=np.float32)}, "'x' as int16 .*found float32"),
    ],
)
def test_inconsistent_arrays_are_refused(tmp_path: Path, change: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays(**change))
    with pytest.raises(DataError, match=message):
        uci_har.read_windows(tmp_path / "a.npz", REMEDY)


@pytest.mark.data
def test_real_files_are_what_the_facts_say(real_root: Callable[[str], Path]) -> None:
    dataset = uci_har.load(real_root("uci-har"))
    prepared = dataset.prepare(dataset.train.inputs).double()
    assert prepared.mean(dim=(0, 2)).abs().max().item() < 1e-4
    assert (prepared.std(dim=(0, 2)) - 1).abs().max().item() < 1e-4
    assert len(dataset.info.natural_owners) == 21
    assert dataset.train.owners is not None
    assert dataset.test.owners is not None
    assert dataset.test.owners.unique().tolist() == list(range(21, 30))

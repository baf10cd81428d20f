from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from harness.errors import DataError
from harness.task.data import ag_news

REMEDY = "get it again"


def write(path: Path, tokens: list[int], offsets: list[int], labels: list[int]) -> None:
    np.savez(
        path,
        tokens=np.array(tokens, dtype=np.uint16),
        offsets=np.array(offsets, dtype=np.uint32),
        labels=np.array(labels, dtype=np.uint8),
    )


def test_sequences_are_shifted_capped_cut_and_padded(tmp_path: Path) -> None:
    write(tmp_path / "a.npz", [0, 1, 19_998, 19_999, 65_534] + [7] * 100, [0, 5, 105], [3, 0])
    inputs, labels = ag_news.read_sequences(tmp_path / "a.npz", REMEDY)
    assert inputs.shape == (2, ag_news.LENGTH)
    assert inputs[0, :6].tolist() == [1, 2, 19_999, 1, 1, 0]
    assert inputs[0, 5:].tolist() == [ag_news.PADDING] * (ag_news.LENGTH - 5)
    assert inputs[1].tolist() == [8] * ag_news.LENGTH
    assert labels.tolist() == [3, 0]


@pytest.mark.parametrize(
    ("offsets", "labels", "message"),
    [
        ([0, 5], [3, 0], "expected 3 offsets for 2 labels, found 2"),
        ([], [], "expected 1 offsets for 0 labels, found 0"),
        ([1, 3, 5], [3, 0], "found 1 to 5"),
        ([0, 3, 6], [3, 0], "found 0 to 6"),
        ([0, 5, 5], [3, 0], "not rising after sequence 1"),
        ([0, 7, 5], [3, 0], "not rising after sequence 1"),
        ([0, 3, 5], [3, 4], "labels from 0 to 3, found 4 at sample 1"),
    ],
)
def test_inconsistent_arrays_are_refused(tmp_path: Path, offsets: list[int], labels: list[int], message: str) -> None:
    write(tmp_path / "a.npz", [1, 2, 3, 4, 5], offsets, labels)
    with pytest.raises(DataError, match=message):
        ag_news.read_sequences(tmp_path / "a.npz", REMEDY)


@pytest.mark.data
def test_real_files_are_what_the_facts_say(real_root: Callable[[str], Path]) -> None:
    dataset = ag_news.load(real_root("ag-news-tokens"))
    assert int(dataset.train.inputs.max()) == dataset.info.vocabulary - 1
    words = dataset.train.inputs != ag_news.PADDING
    unknown = dataset.train.inputs == ag_news.UNKNOWN
    assert 0.02 < (unknown.sum() / words.sum()).item() < 0.04
    assert int(words.sum(dim=1).min()) >= 1

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from harness.errors import DataError
from harness.task.data import sst2

REMEDY = "get it again"


def test_sentences_become_ids_by_falling_count(tmp_path: Path) -> None:
    (tmp_path / "train").write_text("1 b a b\n0 c\n", encoding="utf-8")
    sentences = sst2.read_sentences(tmp_path / "train", REMEDY)
    assert sentences == [(1, ["b", "a", "b"]), (0, ["c"])]
    ids = sst2.vocabulary(sentences)
    assert ids == {"b": 2, "a": 3, "c": 4}
    split = sst2.encode([*sentences, (0, ["new", "c"])], ids)
    assert split.inputs.shape == (3, sst2.LENGTH)
    assert split.inputs[0, :4].tolist() == [2, 3, 2, sst2.PADDING]
    assert split.inputs[2, :3].tolist() == [sst2.UNKNOWN, 4, sst2.PADDING]
    assert split.labels.tolist() == [1, 0, 0]


def test_long_sentences_are_cut() -> None:
    split = sst2.encode([(0, ["w"] * 100)], {"w": 2})
    assert split.inputs.tolist() == [[2] * sst2.LENGTH]


@pytest.mark.parametrize("line", ["2 word", "word", "", "1", "1 ", "-1 word"])
def test_a_line_in_another_format_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "train").write_text(f"1 fine\n{line}\n0 fine\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"train, line 2: expected '0 SENTENCE' or '1 SENTENCE', found "):
        sst2.read_sentences(tmp_path / "train", REMEDY)


def test_load_refuses_files_with_missing_lines(tmp_path: Path) -> None:
    (tmp_path / "sst2").mkdir()
    for part in ("train", "test"):
        (tmp_path / "sst2" / f"stsa.binary.{part}").write_text("1 fine\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"train split: inputs have shape \(1, 64\), expected \(6920, 64\)"):
        sst2.load(tmp_path)


@pytest.mark.data
def test_real_files_are_what_the_facts_say(real_root: Callable[[str], Path]) -> None:
    dataset = sst2.load(real_root("sst2"))
    assert int(dataset.train.inputs.max()) == dataset.info.vocabulary - 1
    assert not (dataset.train.inputs == sst2.UNKNOWN).any()
    words = dataset.test.inputs != sst2.PADDING
    unknown = dataset.test.inputs == sst2.UNKNOWN
    assert (unknown.sum() / words.sum()).item() == pytest.approx(0.0593, abs=1e-4)
    assert int(words.sum(dim=1).max()) == 56

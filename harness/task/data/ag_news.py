"""AG News: news items in four classes, as word ids.

Source ids: 0 is unknown, the others by falling frequency. The 19,998 most frequent words are kept (96.7 % of
the words of the training split); here id 0 is padding, 1 is unknown or rarer, and source id r becomes r + 1.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from harness.errors import DataError
from harness.task.data.dataset import DataInfo, Dataset, Split
from harness.task.data.files import check_labels, folder_with, read_npz
from harness.task.data.originals import NotFetchable

LENGTH = 64
PADDING, UNKNOWN = 0, 1

INFO = DataInfo(
    name="ag_news",
    title="AG News (word ids)",
    kind="tokens",
    input_shape=(LENGTH,),
    num_classes=4,
    train_counts=(30_000,) * 4,
    test_counts=(1_900,) * 4,
    vocabulary=20_000,
    natural_owners=(),
    licence="research and other non-commercial use",
    citation="Zhang, Zhao, LeCun, NIPS 2015; Gulli's AG corpus",
    bundled=False,
)

ORIGINALS = NotFetchable(
    "the published corpus is raw text; the loader reads ag-news-tokens/ag_news_tokens.npz with tokens "
    "uint16, offsets uint32 [127601] and labels uint8 [127600], the 120,000 training items first, words "
    "lower-cased and numbered from 1 by falling frequency, 0 unknown. The text is at "
    "http://groups.di.unipi.it/~gulli/AG_corpus_of_news_articles.html"
)

_FILE = "ag_news_tokens.npz"
_KEPT = INFO.vocabulary - 2  # source ids 1.._KEPT


def load(root: Path | None) -> Dataset:
    """Return AG News: int32 [N, 64] word ids; labels 0 World, 1 Sports, 2 Business, 3 Sci/Tech.

    Raises DataError.
    """
    remedy = ORIGINALS.remedy(INFO.name)
    path = folder_with(root, ("ag-news-tokens",), (_FILE,), remedy) / _FILE
    inputs, labels = read_sequences(path, remedy)
    cut = INFO.train_samples
    return Dataset(
        info=INFO,
        train=Split(inputs[:cut], labels[:cut]),
        test=Split(inputs[cut:], labels[cut:]),
        scale=None,
    )


def read_sequences(path: Path, remedy: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return word ids int32 [N, 64], cut or padded at the end, and labels int64 [N]."""
    arrays = read_npz(path, {"tokens": (np.uint16, 1), "offsets": (np.uint32, 1), "labels": (np.uint8, 1)}, remedy)
    tokens, labels = arrays["tokens"], arrays["labels"]
    offsets = arrays["offsets"].astype(np.int64)
    if len(offsets) != len(labels) + 1:
        raise DataError(
            f"{path}: expected {len(labels) + 1} offsets for {len(labels)} labels, found {len(offsets)}: {remedy}"
        )
    if offsets[0] != 0 or offsets[-1] != len(tokens) or (np.diff(offsets) < 1).any():
        raise DataError(
            f"{path}: expected offsets rising from 0 to {len(tokens)}, the number of tokens, "
            f"found {offsets[0]} to {offsets[-1]}{_first_fall(offsets)}: {remedy}"
        )
    check_labels(path, labels, INFO.num_classes, remedy)
    ids = np.where((tokens >= 1) & (tokens <= _KEPT), tokens.astype(np.int32) + 1, np.int32(UNKNOWN))
    position = np.arange(LENGTH)
    present = position < np.diff(offsets)[:, None]
    inputs = np.full(present.shape, PADDING, dtype=np.int32)
    inputs[present] = ids[(offsets[:-1, None] + position)[present]]
    return torch.from_numpy(inputs), torch.from_numpy(labels.astype(np.int64))


def _first_fall(offsets: npt.NDArray[Any]) -> str:
    falls = np.flatnonzero(np.diff(offsets) < 1)
    return f", not rising after sequence {falls[0]}" if len(falls) else ""

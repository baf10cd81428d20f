"""A transformer encoder of 6 blocks for text classification, small enough to train from scratch."""

from __future__ import annotations

from typing import Any

from torch import nn

from harness.task.models.model_info import ModelInfo
from harness.task.models.text_transformers import text_transformer

INFO = ModelInfo("Text transformer, 6 blocks", "Vaswani et al. 2017, arXiv:1706.03762 (pre-norm encoder)", ("tokens",))

DEPTH, DIM, HEADS = 6, 256, 4


def build(input_shape: tuple[int, ...], num_classes: int, *, vocabulary: int = 0, **_: Any) -> nn.Sequential:
    """Return the transformer for token ids int64 [L], 0 being padding; 8 blocks; errors as in `text_transformer`.

    Width 256, 4 heads, MLP 1,024. `norm` does not apply: a transformer keeps its layer norm.
    """
    return text_transformer(INFO, DEPTH, DIM, HEADS, input_shape, num_classes, vocabulary)

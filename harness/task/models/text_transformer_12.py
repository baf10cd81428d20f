"""A transformer encoder of 12 blocks for text classification, with the sizes of BERT-base."""

from __future__ import annotations

from typing import Any

from torch import nn

from harness.task.models.model_info import ModelInfo
from harness.task.models.text_transformers import text_transformer

INFO = ModelInfo(
    "Text transformer, 12 blocks",
    "Devlin et al. 2019, arXiv:1810.04805, section 3 (BERT-base's sizes; pre-norm encoder)",
    ("tokens",),
)

DEPTH, DIM, HEADS = 12, 768, 12


def build(input_shape: tuple[int, ...], num_classes: int, *, vocabulary: int = 0, **_: Any) -> nn.Sequential:
    """Return the transformer for token ids int64 [L], 0 being padding; 14 blocks; errors as in `text_transformer`.

    Width 768, 12 heads, MLP 3,072: BERT-base's sizes, so its encoder's 85,054,464 parameters. In all else it is
    `text-transformer-6`: norms in front of attention and MLP (BERT has them behind), mean pooling, no segments, no
    norm or dropout behind the embedding. `norm` does not apply: a transformer keeps its layer norm.
    """
    return text_transformer(INFO, DEPTH, DIM, HEADS, input_shape, num_classes, vocabulary)

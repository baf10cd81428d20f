"""A transformer encoder of 6 blocks for text classification, small enough to train from scratch."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import nn

from harness.errors import ConfigError
from harness.task.models.heads import TokenHead
from harness.task.models.model_info import ModelInfo
from harness.task.models.token_blocks import EncoderBlock, TokenEmbedding

INFO = ModelInfo("Text transformer, 6 blocks", "Vaswani et al. 2017, arXiv:1706.03762 (pre-norm encoder)", ("tokens",))

DIM, DEPTH, HEADS, MLP_DIM = 256, 6, 4, 1024


def build(input_shape: tuple[int, ...], num_classes: int, *, vocabulary: int = 0, **_: Any) -> nn.Sequential:
    """Return the transformer for token ids int64 [L], 0 being padding; 8 blocks.

    Width 256, 4 heads, MLP 1,024, learned positions, mean over the positions that are not padding, no
    dropout. `norm` does not apply: a transformer keeps its layer norm.

    Raises:
        ConfigError: `vocabulary`, the number of token ids including padding, is not given.
    """
    if vocabulary < 2:
        raise ConfigError(
            f"{INFO.title} needs the size of the vocabulary, at least 2 ids with padding; got {vocabulary}; "
            "the data set has to say it"
        )
    (length,) = input_shape
    blocks: OrderedDict[str, nn.Module] = OrderedDict(embedding=TokenEmbedding(vocabulary, length, DIM))
    for number in range(1, DEPTH + 1):
        blocks[f"encoder{number}"] = EncoderBlock(DIM, HEADS, MLP_DIM, masked=True)
    blocks["head"] = TokenHead(DIM, num_classes, pool="mean")
    return nn.Sequential(blocks)

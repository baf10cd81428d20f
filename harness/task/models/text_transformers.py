"""What the text transformers share: token embedding, pre-norm encoder blocks and a head on the mean."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from harness.errors import ConfigError
from harness.task.models.heads import TokenHead
from harness.task.models.model_info import ModelInfo
from harness.task.models.token_blocks import EncoderBlock, TokenEmbedding


def text_transformer(
    info: ModelInfo,
    depth: int,
    dim: int,
    heads: int,
    input_shape: tuple[int, ...],
    num_classes: int,
    vocabulary: int,
) -> nn.Sequential:
    """Return a transformer for token ids int64 [L], 0 being padding: `embedding`, `encoder1`, ..., `head`.

    The MLP is 4 x `dim` wide; learned positions, mean over the positions that are not padding, no dropout.

    Raises:
        ConfigError: `vocabulary`, the number of token ids including padding, is not given.
    """
    if vocabulary < 2:
        raise ConfigError(
            f"{info.title} needs the size of the vocabulary, at least 2 ids with padding; got {vocabulary}; "
            "the data set has to say it"
        )
    (length,) = input_shape
    blocks: OrderedDict[str, nn.Module] = OrderedDict(embedding=TokenEmbedding(vocabulary, length, dim))
    for number in range(1, depth + 1):
        blocks[f"encoder{number}"] = EncoderBlock(dim, heads, 4 * dim, masked=True)
    blocks["head"] = TokenHead(dim, num_classes, pool="mean")
    return nn.Sequential(blocks)

"""ViT-Small: patch embedding, 12 encoder blocks and a head on the class token."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import nn

from harness.errors import ConfigError
from harness.task.models.heads import TokenHead
from harness.task.models.model_info import ModelInfo
from harness.task.models.token_blocks import EncoderBlock, PatchEmbedding

INFO = ModelInfo(
    "ViT-Small", "Touvron et al. 2021, arXiv:2012.12877, table 1 (DeiT-S, without distillation)", ("image",)
)

SMALL_PIXELS = 64
"""Images up to this side are cut into patches of 4 pixels, larger ones into patches of 16."""
DIM, DEPTH, HEADS, MLP_DIM = 384, 12, 6, 1536


def build(input_shape: tuple[int, ...], num_classes: int, **_: Any) -> nn.Sequential:
    """Return ViT-Small for images [C, H, W]; 14 blocks. `norm` does not apply: layer norm stays.

    Raises:
        ConfigError: a side of the image is not a multiple of the patch.
    """
    channels, height, width = input_shape
    patch = 4 if max(height, width) <= SMALL_PIXELS else 16
    if height % patch or width % patch:
        raise ConfigError(
            f"{INFO.title} cuts an image into patches of {patch} pixels, which do not fill {height}x{width}; "
            f"resize the data to a multiple of {patch}"
        )
    patches = (height // patch) * (width // patch)
    blocks: OrderedDict[str, nn.Module] = OrderedDict(embedding=PatchEmbedding(channels, patches, patch, DIM))
    for number in range(1, DEPTH + 1):
        blocks[f"encoder{number}"] = EncoderBlock(DIM, HEADS, MLP_DIM)
    blocks["head"] = TokenHead(DIM, num_classes, pool="cls")
    return nn.Sequential(blocks)

"""What the ViTs share: patch embedding, encoder blocks and a head on the class token."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from harness.errors import ConfigError
from harness.task.models.heads import TokenHead
from harness.task.models.model_info import ModelInfo, is_small
from harness.task.models.token_blocks import EncoderBlock, PatchEmbedding

DEPTH = 12


def vision_transformer(
    info: ModelInfo, dim: int, heads: int, input_shape: tuple[int, ...], num_classes: int
) -> nn.Sequential:
    """Return a ViT for images [C, H, W]: `embedding`, `encoder1` to `encoder12`, `head`; the MLP is 4 x `dim` wide.

    Images up to 64 pixels are cut into patches of 4 pixels, larger ones into patches of 16. No dropout.

    Source: Dosovitskiy et al. 2021, arXiv:2010.11929.

    Raises:
        ConfigError: a side of the image is not a multiple of the patch.
    """
    channels, height, width = input_shape
    patch = 4 if is_small(input_shape) else 16
    if height % patch or width % patch:
        raise ConfigError(
            f"{info.title} cuts an image into patches of {patch} pixels, which do not fill {height}x{width}; "
            f"resize the data to a multiple of {patch}"
        )
    patches = (height // patch) * (width // patch)
    blocks: OrderedDict[str, nn.Module] = OrderedDict(embedding=PatchEmbedding(channels, patches, patch, dim))
    for number in range(1, DEPTH + 1):
        blocks[f"encoder{number}"] = EncoderBlock(dim, heads, 4 * dim)
    blocks["head"] = TokenHead(dim, num_classes, pool="cls")
    return nn.Sequential(blocks)

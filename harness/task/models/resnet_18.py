"""ResNet-18: a stem, 8 basic residual blocks and a head."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import nn

from harness.task.models.blocks import ConvBlock
from harness.task.models.heads import Head
from harness.task.models.model_info import ModelInfo
from harness.task.models.residual_blocks import ResidualBlock

INFO = ModelInfo("ResNet-18", "He et al. 2016, arXiv:1512.03385, table 1", ("image",))

SMALL_PIXELS = 64
"""Images up to this side get the stem for small images."""
STAGES = ((64, 1), (128, 2), (256, 2), (512, 2))
"""Channels of a stage of two blocks, and the stride of its first block."""


def build(input_shape: tuple[int, ...], num_classes: int, *, norm: str = "batch", **_: Any) -> nn.Sequential:
    """Return ResNet-18 for images [C, H, W] of any size; 10 blocks.

    The stem is a 7x7 convolution of stride 2 with max pooling, as in the paper; for images whose longer side
    is up to 64 pixels a 3x3 convolution of stride 1 without pooling, as the paper's section 4.2 has it for
    CIFAR-10. Convolutions have a bias only with `norm="none"`.
    """
    channels, height, width = input_shape
    small = max(height, width) <= SMALL_PIXELS
    bias = norm == "none"
    stem = (
        ConvBlock(channels, 64, 3, norm=norm, bias=bias)
        if small
        else ConvBlock(channels, 64, 7, 2, norm=norm, bias=bias, pool=(3, 2, 1))
    )
    blocks: OrderedDict[str, nn.Module] = OrderedDict(stem=stem)
    channels = 64
    for stage, (out_channels, stride) in enumerate(STAGES, start=1):
        blocks[f"stage{stage}a"] = ResidualBlock(channels, out_channels, stride, norm=norm)
        blocks[f"stage{stage}b"] = ResidualBlock(out_channels, out_channels, norm=norm)
        channels = out_channels
    blocks["head"] = Head(channels, num_classes, pool="gap")
    return nn.Sequential(blocks)

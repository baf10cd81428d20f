"""What the ResNets share: a stem, four stages of residual blocks and a head."""

from __future__ import annotations

from collections import OrderedDict
from string import ascii_lowercase

from torch import nn

from harness.task.models.blocks import ConvBlock
from harness.task.models.heads import Head
from harness.task.models.model_info import is_small
from harness.task.models.residual_blocks import Bottleneck, ResidualBlock

STAGES = ((64, 1), (128, 2), (256, 2), (512, 2))
"""Channels of a stage's 3x3 convolutions, and the stride of its first block."""


def residual_network(
    block: type[ResidualBlock] | type[Bottleneck],
    counts: tuple[int, int, int, int],
    input_shape: tuple[int, ...],
    num_classes: int,
    norm: str,
) -> nn.Sequential:
    """Return a ResNet for images [C, H, W] of any size; blocks `stem`, `stage1a`, `stage1b`, ..., `head`.

    The stem is a 7x7 convolution of stride 2 with max pooling, as in the paper; for images whose longer side
    is up to 64 pixels a 3x3 convolution of stride 1 without pooling, as the paper's section 4.2 has it for
    CIFAR-10. Convolutions have a bias only with `norm="none"`.

    Source: He et al. 2016, arXiv:1512.03385, table 1.

    Args:
        block: what the stages are made of.
        counts: number of blocks of each stage.
    """
    channels = input_shape[0]
    bias = norm == "none"
    stem = (
        ConvBlock(channels, 64, 3, norm=norm, bias=bias)
        if is_small(input_shape)
        else ConvBlock(channels, 64, 7, 2, norm=norm, bias=bias, pool=(3, 2, 1))
    )
    blocks: OrderedDict[str, nn.Module] = OrderedDict(stem=stem)
    channels = 64
    for stage, (count, (width, stride)) in enumerate(zip(counts, STAGES, strict=True), start=1):
        for number in range(count):
            out_channels = width * block.expansion
            name = f"stage{stage}{ascii_lowercase[number]}"
            blocks[name] = block(channels, out_channels, 1 if number else stride, norm=norm)
            channels = out_channels
    blocks["head"] = Head(channels, num_classes, pool="gap")
    return nn.Sequential(blocks)

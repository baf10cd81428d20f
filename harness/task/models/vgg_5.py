"""VGG-5, the network of FedAdapt and PipeLearn: three convolutions and two dense layers.

Layers as in PipeLearn's public config: conv 32, pool, conv 64, pool, conv 64, fc 128, fc classes; batch norm
behind every convolution, biases throughout.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import nn

from harness.task.models.blocks import HALVE, ConvBlock, Dense
from harness.task.models.heads import Head
from harness.task.models.model_info import ModelInfo, require_at_least

INFO = ModelInfo("VGG-5", "Wu et al. 2022, FedAdapt, arXiv:2107.04271; layers of its group's code", ("image",))


def build(input_shape: tuple[int, ...], num_classes: int, *, norm: str = "batch", **_: Any) -> nn.Sequential:
    """Return VGG-5 for images [C, H, W] of 4x4 or more; 5 blocks. Raises ConfigError on a smaller input."""
    require_at_least(INFO.title, input_shape, 4)
    channels, height, width = input_shape
    features = 64 * (height // 4) * (width // 4)
    return nn.Sequential(
        OrderedDict(
            conv1=ConvBlock(channels, 32, norm=norm, pool=HALVE),
            conv2=ConvBlock(32, 64, norm=norm, pool=HALVE),
            conv3=ConvBlock(64, 64, norm=norm),
            fc1=Dense(features, 128, pool="flatten"),
            fc2=Head(128, num_classes),
        )
    )

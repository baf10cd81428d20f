"""What the VGGs share: 3x3 convolutions, poolings between them, and 3 dense layers, each layer a block."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from harness.task.models.blocks import HALVE, ConvBlock, Dense
from harness.task.models.heads import Head
from harness.task.models.model_info import ModelInfo, require_at_least


def vgg(
    info: ModelInfo,
    convolutions: tuple[tuple[int, bool], ...],
    input_shape: tuple[int, ...],
    num_classes: int,
    norm: str,
) -> nn.Sequential:
    """Return a VGG for images [C, H, W] of 32x32 or more: `conv1`, `conv2`, ..., `fc1`, `fc2`, `fc3`.

    The dense part takes the last feature map as it is: 512 features at 32x32, 25,088 at 224x224 (as in the
    paper). With `norm="none"` it is the paper's network. Biases throughout; dropout 0.5 behind the two hidden
    dense layers.

    Source: Simonyan & Zisserman 2015, arXiv:1409.1556, table 1.

    Args:
        convolutions: output channels, and whether a pooling follows; five poolings in all.

    Raises:
        ConfigError: a side of the image is shorter than 32 pixels.
    """
    require_at_least(info.title, input_shape, 32)
    channels, height, width = input_shape
    blocks: OrderedDict[str, nn.Module] = OrderedDict()
    for number, (out_channels, pooled) in enumerate(convolutions, start=1):
        blocks[f"conv{number}"] = ConvBlock(channels, out_channels, norm=norm, pool=HALVE if pooled else None)
        channels = out_channels
    features = channels * (height // 32) * (width // 32)
    blocks["fc1"] = Dense(features, 4096, dropout=0.5, pool="flatten")
    blocks["fc2"] = Dense(4096, 4096, dropout=0.5)
    blocks["fc3"] = Head(4096, num_classes)
    return nn.Sequential(blocks)

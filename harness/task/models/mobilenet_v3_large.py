"""MobileNetV3-Large: a stem, 15 inverted residuals, a 1x1 convolution and two dense layers."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, NamedTuple

from torch import nn

from harness.task.models.blocks import ConvBlock, Dense
from harness.task.models.heads import Head
from harness.task.models.model_info import ModelInfo
from harness.task.models.residual_blocks import InvertedResidual

INFO = ModelInfo("MobileNetV3-Large", "Howard et al. 2019, arXiv:1905.02244, table 1", ("image",))


class Row(NamedTuple):
    """One inverted residual of the paper's table 1."""

    kernel: int
    expanded: int
    out: int
    squeeze: bool
    activation: str
    stride: int


TABLE = (
    Row(3, 16, 16, False, "relu", 1),
    Row(3, 64, 24, False, "relu", 2),
    Row(3, 72, 24, False, "relu", 1),
    Row(5, 72, 40, True, "relu", 2),
    Row(5, 120, 40, True, "relu", 1),
    Row(5, 120, 40, True, "relu", 1),
    Row(3, 240, 80, False, "hardswish", 2),
    Row(3, 200, 80, False, "hardswish", 1),
    Row(3, 184, 80, False, "hardswish", 1),
    Row(3, 184, 80, False, "hardswish", 1),
    Row(3, 480, 112, True, "hardswish", 1),
    Row(3, 672, 112, True, "hardswish", 1),
    Row(5, 672, 160, True, "hardswish", 2),
    Row(5, 960, 160, True, "hardswish", 1),
    Row(5, 960, 160, True, "hardswish", 1),
)


def build(input_shape: tuple[int, ...], num_classes: int, *, norm: str = "batch", **_: Any) -> nn.Sequential:
    """Return MobileNetV3-Large for images [C, H, W] of any size; 19 blocks.

    Strides are the paper's at every size: the stem halves a 32x32 image too (cut 1 is 16x16x16), and behind
    block `bneck13` such an image is a single pixel, where batch norm needs a batch of at least 2 to train.
    Batch norm has eps 0.001 as in torchvision, but momentum 0.1 in place of its 0.01, with which the running
    statistics lag so far behind that after 300 updates on 8x8 digits the evaluated accuracy is chance. The
    hidden dense layer drops 0.2 of its outputs. Convolutions have a bias only with `norm="none"`.
    """
    channels = input_shape[0]
    bias = norm == "none"
    blocks: OrderedDict[str, nn.Module] = OrderedDict(
        stem=ConvBlock(channels, 16, 3, 2, norm=norm, activation="hardswish", bias=bias, eps=0.001)
    )
    channels = 16
    for number, row in enumerate(TABLE, start=1):
        blocks[f"bneck{number}"] = InvertedResidual(
            channels,
            row.expanded,
            row.out,
            row.kernel,
            row.stride,
            squeeze=row.squeeze,
            activation=row.activation,
            norm=norm,
        )
        channels = row.out
    blocks["conv"] = ConvBlock(channels, 960, 1, norm=norm, activation="hardswish", bias=bias, eps=0.001)
    blocks["fc1"] = Dense(960, 1280, activation="hardswish", dropout=0.2, pool="gap")
    blocks["fc2"] = Head(1280, num_classes)
    return nn.Sequential(blocks)

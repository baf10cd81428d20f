"""MobileNetV2, width 1.0: a stem, 17 inverted residuals, a 1x1 convolution and a head."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

from torch import nn

from harness.task.models.blocks import ConvBlock
from harness.task.models.heads import Head
from harness.task.models.mobile_networks import Row, inverted_residuals
from harness.task.models.model_info import ModelInfo

INFO = ModelInfo("MobileNetV2", "Sandler et al. 2018, arXiv:1801.04381, table 2", ("image",))

TABLE = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""The paper's t, c, n, s: expansion factor, output channels, repetitions, stride of the first."""
STEM, LAST = 32, 1280
_EPS = 1e-5


def build(input_shape: tuple[int, ...], num_classes: int, *, norm: str = "batch", **_: Any) -> nn.Sequential:
    """Return MobileNetV2 for images [C, H, W] of any size; 20 blocks.

    Strides are the paper's at every size: behind block `bneck14` a 32x32 image is a single pixel, where batch norm
    needs a batch of at least 2 to train. The head drops 0.2 of its inputs, as torchvision's. Convolutions have a
    bias only with `norm="none"`.
    """
    bias = norm == "none"
    blocks: OrderedDict[str, nn.Module] = OrderedDict(
        stem=ConvBlock(input_shape[0], STEM, 3, 2, norm=norm, activation="relu6", bias=bias, eps=_EPS)
    )
    blocks.update(inverted_residuals(STEM, _rows(), norm, _EPS))
    blocks["conv"] = ConvBlock(TABLE[-1][1], LAST, 1, norm=norm, activation="relu6", bias=bias, eps=_EPS)
    blocks["head"] = Head(LAST, num_classes, pool="gap", dropout=0.2)
    return nn.Sequential(blocks)


def _rows() -> Iterator[Row]:
    channels = STEM
    for factor, out, count, stride in TABLE:
        for number in range(count):
            yield Row(3, factor * channels, out, False, "relu6", 1 if number else stride)
            channels = out

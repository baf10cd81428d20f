"""What the MobileNets share: rows of inverted residuals, and the two V3 networks around them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import NamedTuple

from torch import nn

from harness.task.models.blocks import ConvBlock, Dense
from harness.task.models.heads import Head
from harness.task.models.residual_blocks import InvertedResidual

_V3_EPS = 0.001  # torchvision's
_V3_STEM = 16


class Row(NamedTuple):
    """One inverted residual of a paper's table."""

    kernel: int
    expanded: int
    out: int
    squeeze: bool
    activation: str
    stride: int


def inverted_residuals(in_channels: int, rows: Iterable[Row], norm: str, eps: float) -> OrderedDict[str, nn.Module]:
    """Return the blocks `bneck1`, `bneck2`, ..., one for each row; `eps` is the norm's."""
    blocks: OrderedDict[str, nn.Module] = OrderedDict()
    channels = in_channels
    for number, row in enumerate(rows, start=1):
        blocks[f"bneck{number}"] = InvertedResidual(
            channels,
            row.expanded,
            row.out,
            row.kernel,
            row.stride,
            squeeze=row.squeeze,
            activation=row.activation,
            norm=norm,
            eps=eps,
        )
        channels = row.out
    return blocks


def mobilenet_v3(
    rows: tuple[Row, ...], hidden: int, input_shape: tuple[int, ...], num_classes: int, norm: str
) -> nn.Sequential:
    """Return a MobileNetV3 for images [C, H, W] of any size: `stem`, the rows, `conv`, `fc1`, `fc2`.

    Strides are the paper's at every size: the stem halves a 32x32 image too (cut 1 is 16x16x16), and the last
    rows see such an image as a single pixel, where batch norm needs a batch of at least 2 to train.
    Batch norm has eps 0.001 as in torchvision, but momentum 0.1 in place of its 0.01, with which the running
    statistics lag so far behind that after 300 updates on 8x8 digits the evaluated accuracy is chance. The
    hidden dense layer drops 0.2 of its outputs. Convolutions have a bias only with `norm="none"`.

    Source: Howard et al. 2019, arXiv:1905.02244, tables 1 and 2.

    Args:
        rows: the inverted residuals; the convolution behind them has as many channels as the last one expands to.
        hidden: features of the hidden dense layer.
    """
    bias = norm == "none"
    last = rows[-1]
    blocks: OrderedDict[str, nn.Module] = OrderedDict(
        stem=ConvBlock(input_shape[0], _V3_STEM, 3, 2, norm=norm, activation="hardswish", bias=bias, eps=_V3_EPS)
    )
    blocks.update(inverted_residuals(_V3_STEM, rows, norm, _V3_EPS))
    blocks["conv"] = ConvBlock(last.out, last.expanded, 1, norm=norm, activation="hardswish", bias=bias, eps=_V3_EPS)
    blocks["fc1"] = Dense(last.expanded, hidden, activation="hardswish", dropout=0.2, pool="gap")
    blocks["fc2"] = Head(hidden, num_classes)
    return nn.Sequential(blocks)

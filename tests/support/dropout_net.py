"""A small network with dropout on both sides of a cut, for the contract between testbeds."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from harness.task.models.blocks import HALVE, ConvBlock, Dense
from harness.task.models.heads import Head


def build(input_shape: tuple[int, ...], num_classes: int, *, norm: str = "batch") -> nn.Sequential:
    """Return three blocks for images [C, H, W] of 4 x 4 or more."""
    channels, height, width = input_shape
    first = nn.Sequential(ConvBlock(channels, 8, norm=norm, pool=HALVE), nn.Dropout(0.25))
    return nn.Sequential(
        OrderedDict(
            conv=first,
            dense=Dense(8 * (height // 2) * (width // 2), 16, dropout=0.5, pool="flatten"),
            head=Head(16, num_classes),
        )
    )

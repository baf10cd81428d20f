"""A small convolutional network for signals, such as 9 channels of 128 samples from motion sensors."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import nn

from harness.task.models.blocks import HALVE, ConvBlock1d, Dense
from harness.task.models.heads import Head
from harness.task.models.model_info import ModelInfo, require_at_least

INFO = ModelInfo("CNN-1D", "Ammeter's own: VGG-5's plan along one dimension", ("signal",))


def build(input_shape: tuple[int, ...], num_classes: int, *, norm: str = "batch", **_: Any) -> nn.Sequential:
    """Return the network for signals [C, L] of 8 samples or more; 5 blocks; ConfigError on a shorter one.

    Convolutions of kernel 5 with 32, 64 and 64 channels, each halving the length, then fc 128 and fc classes.
    """
    require_at_least(INFO.title, input_shape, 8)
    channels, length = input_shape
    return nn.Sequential(
        OrderedDict(
            conv1=ConvBlock1d(channels, 32, 5, norm=norm, pool=HALVE),
            conv2=ConvBlock1d(32, 64, 5, norm=norm, pool=HALVE),
            conv3=ConvBlock1d(64, 64, 5, norm=norm, pool=HALVE),
            fc1=Dense(64 * (length // 8), 128, pool="flatten"),
            fc2=Head(128, num_classes),
        )
    )

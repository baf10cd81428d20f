"""VGG-11 (configuration A) with 8 convolutions and 3 dense layers, each a block."""

from __future__ import annotations

from typing import Any

from torch import nn

from harness.task.models.model_info import ModelInfo
from harness.task.models.vggs import vgg

INFO = ModelInfo("VGG-11", "Simonyan & Zisserman 2015, arXiv:1409.1556, table 1 A", ("image",))

CONVOLUTIONS = (
    (64, True),
    (128, True),
    (256, False),
    (256, True),
    (512, False),
    (512, True),
    (512, False),
    (512, True),
)
"""Output channels, and whether a pooling follows."""


def build(input_shape: tuple[int, ...], num_classes: int, *, norm: str = "batch", **_: Any) -> nn.Sequential:
    """Return VGG-11 for images [C, H, W] of 32x32 or more; 11 blocks; details and errors as in `vgg`."""
    return vgg(INFO, CONVOLUTIONS, input_shape, num_classes, norm)

"""MobileNetV3-Small: a stem, 11 inverted residuals, a 1x1 convolution and two dense layers."""

from __future__ import annotations

from typing import Any

from torch import nn

from harness.task.models.mobile_networks import Row, mobilenet_v3
from harness.task.models.model_info import ModelInfo

INFO = ModelInfo("MobileNetV3-Small", "Howard et al. 2019, arXiv:1905.02244, table 2", ("image",))

TABLE = (
    Row(3, 16, 16, True, "relu", 2),
    Row(3, 72, 24, False, "relu", 2),
    Row(3, 88, 24, False, "relu", 1),
    Row(5, 96, 40, True, "hardswish", 2),
    Row(5, 240, 40, True, "hardswish", 1),
    Row(5, 240, 40, True, "hardswish", 1),
    Row(5, 120, 48, True, "hardswish", 1),
    Row(5, 144, 48, True, "hardswish", 1),
    Row(5, 288, 96, True, "hardswish", 2),
    Row(5, 576, 96, True, "hardswish", 1),
    Row(5, 576, 96, True, "hardswish", 1),
)
HIDDEN = 1024


def build(input_shape: tuple[int, ...], num_classes: int, *, norm: str = "batch", **_: Any) -> nn.Sequential:
    """Return MobileNetV3-Small for images [C, H, W] of any size; 15 blocks; details as in `mobilenet_v3`.

    The 1x1 convolution behind the rows has no squeeze-excitation: table 2 marks one there, but neither the
    authors' code nor torchvision has it, and the published 2.5 million parameters are without it.
    """
    return mobilenet_v3(TABLE, HIDDEN, input_shape, num_classes, norm)

"""MobileNetV3-Large: a stem, 15 inverted residuals, a 1x1 convolution and two dense layers."""

from __future__ import annotations

from typing import Any

from torch import nn

from harness.task.models.mobile_networks import Row, mobilenet_v3
from harness.task.models.model_info import ModelInfo

INFO = ModelInfo("MobileNetV3-Large", "Howard et al. 2019, arXiv:1905.02244, table 1", ("image",))

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
HIDDEN = 1280


def build(input_shape: tuple[int, ...], num_classes: int, *, norm: str = "batch", **_: Any) -> nn.Sequential:
    """Return MobileNetV3-Large for images [C, H, W] of any size; 19 blocks; details as in `mobilenet_v3`."""
    return mobilenet_v3(TABLE, HIDDEN, input_shape, num_classes, norm)

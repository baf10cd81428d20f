"""ResNet-34: a stem, 16 basic residual blocks and a head."""

from __future__ import annotations

from typing import Any

from torch import nn

from harness.task.models.model_info import ModelInfo
from harness.task.models.residual_blocks import ResidualBlock
from harness.task.models.residual_networks import residual_network

INFO = ModelInfo("ResNet-34", "He et al. 2016, arXiv:1512.03385, table 1", ("image",))

COUNTS = (3, 4, 6, 3)
"""Residual blocks of each stage."""


def build(input_shape: tuple[int, ...], num_classes: int, *, norm: str = "batch", **_: Any) -> nn.Sequential:
    """Return ResNet-34 for images [C, H, W] of any size; 18 blocks; stem, names and biases as in `residual_network`."""
    return residual_network(ResidualBlock, COUNTS, input_shape, num_classes, norm)

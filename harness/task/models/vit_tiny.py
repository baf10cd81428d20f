"""ViT-Tiny: patch embedding, 12 encoder blocks and a head on the class token."""

from __future__ import annotations

from typing import Any

from torch import nn

from harness.task.models.model_info import ModelInfo
from harness.task.models.vision_transformers import vision_transformer

INFO = ModelInfo(
    "ViT-Tiny", "Touvron et al. 2021, arXiv:2012.12877, table 1 (DeiT-Ti, without distillation)", ("image",)
)

DIM, HEADS = 192, 3


def build(input_shape: tuple[int, ...], num_classes: int, **_: Any) -> nn.Sequential:
    """Return ViT-Tiny for images [C, H, W]; 14 blocks; patches and errors as in `vision_transformer`.

    `norm` does not apply: layer norm stays.
    """
    return vision_transformer(INFO, DIM, HEADS, input_shape, num_classes)

"""What a model file says about itself, and the checks of an input shape that model files share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from harness.errors import ConfigError
from harness.task.models.blocks import Norm

RANKS = {"image": 3, "signal": 2, "tokens": 1}
"""Kinds of data and the number of dimensions of one sample: [C, H, W], [C, L] and [L]."""

SMALL_PIXELS = 64
"""Images up to this side are small: ResNets get a gentler stem, transformers smaller patches."""

NORMS: tuple[str, ...] = get_args(Norm)
"""What may normalise a convolution: batch norm, group norm, nothing."""


@dataclass(frozen=True)
class ModelInfo:
    """Title for people, the paper the model is from, and the kinds of data (keys of `RANKS`) it accepts."""

    title: str
    paper: str
    kinds: tuple[str, ...]


def is_small(input_shape: tuple[int, ...]) -> bool:
    """Return whether the longer side of an image [C, H, W] is at most `SMALL_PIXELS`."""
    return max(input_shape[1:]) <= SMALL_PIXELS


def require_at_least(title: str, input_shape: tuple[int, ...], smallest: int) -> None:
    """Raise ConfigError if a spatial side of `input_shape` [C, ...] is shorter than `smallest`."""
    if min(input_shape[1:]) < smallest:
        sides = "x".join(map(str, input_shape[1:]))
        least = "x".join([str(smallest)] * len(input_shape[1:]))
        raise ConfigError(
            f"{title} does not fit an input of {sides}: its pooling leaves nothing; "
            f"the smallest input is {least}; resize the data or choose a smaller model"
        )

"""Swin-T: patches, four stages of window attention with patch merging between them, and a head on the mean."""

from __future__ import annotations

from collections import OrderedDict
from string import ascii_lowercase
from typing import Any

from torch import nn

from harness.errors import ConfigError
from harness.task.models.heads import TokenHead
from harness.task.models.model_info import ModelInfo, is_small
from harness.task.models.window_blocks import LAYER_NORM_EPS, PatchMap, PatchMerging, WindowBlock

INFO = ModelInfo("Swin-T", "Liu et al. 2021, arXiv:2103.14030, section 3.3", ("image",))

DIM = 96
STAGES = ((2, 3), (2, 6), (6, 12), (2, 24))
"""Blocks and heads of a stage; a stage is twice as wide as the one before."""
PATCH, WINDOW = 4, 7
SMALL_PATCH, SMALL_WINDOW = 2, 4


def build(input_shape: tuple[int, ...], num_classes: int, **_: Any) -> nn.Sequential:
    """Return Swin-T for images [C, H, W]; 17 blocks. `norm` does not apply: layer norm stays.

    Patches of 4 pixels and windows of 7 patches, as in the paper. Images up to 64 pixels get patches of 2 and windows
    of 4: OUR READING, since the paper has no small images; at 32x32 the stages' maps are 16, 8, 4 and 2 wide, so that
    two stages have several windows to shift. Every second block of a stage is shifted. No stochastic depth.

    Raises:
        ConfigError: patches and windows do not fill the image at every stage.
    """
    channels, height, width = input_shape
    patch, window = (SMALL_PATCH, SMALL_WINDOW) if is_small(input_shape) else (PATCH, WINDOW)
    _check_sides(height, width, patch, window)
    blocks: OrderedDict[str, nn.Module] = OrderedDict(embedding=PatchMap(channels, patch, DIM))
    dim, sides = DIM, (height // patch, width // patch)
    for stage, (count, heads) in enumerate(STAGES, start=1):
        if stage > 1:
            blocks[f"merge{stage - 1}"] = PatchMerging(dim, 2 * dim, sides)
            dim, sides = 2 * dim, (sides[0] // 2, sides[1] // 2)
        for number in range(count):
            blocks[f"stage{stage}{ascii_lowercase[number]}"] = WindowBlock(
                dim, heads, sides, window, 4 * dim, shifted=number % 2 == 1
            )
    blocks["head"] = TokenHead(dim, num_classes, pool="mean", eps=LAYER_NORM_EPS)
    return nn.Sequential(blocks)


def _check_sides(height: int, width: int, patch: int, window: int) -> None:
    shrinks = [patch * 2**stage for stage in range(len(STAGES))]
    maps = [(height // shrink, width // shrink) for shrink in shrinks]
    if height % shrinks[-1] == width % shrinks[-1] == 0 and all(
        side % min(window, *sides) == 0 for sides in maps for side in sides
    ):
        return
    raise ConfigError(
        f"{INFO.title} does not fit an image of {height}x{width}: four stages of patches of {patch} pixels and windows "
        f"of {window} patches do not fill it; resize the data to 16x16, 32x32, 64x64 or a multiple of 224"
    )

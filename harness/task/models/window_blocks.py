"""Composite blocks of Swin transformers.

Shapes: B batch, L patches of a map in rows, D width, N windows, T patches in a window, its side squared.

A map of patches crosses a cut as a sequence [B, L, D], as in the authors' code; every block knows its map's sides.

Source: Liu et al. 2021, arXiv:2103.14030.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.task.models.blocks import narrow
from harness.task.models.token_blocks import HIDDEN_SCORE, WEIGHT_STD, token_linear

LAYER_NORM_EPS = 1e-5
"""The authors', where ViT has 1e-6."""


def in_windows(x: Tensor, window: int) -> Tensor:
    """Return the map `x` [B, H, W, D] cut into windows in rows, [B, N, T, D]; `window` divides H and W."""
    batch, height, width, dim = x.shape
    cut = x.reshape(batch, height // window, window, width // window, window, dim)
    return cut.transpose(2, 3).reshape(batch, -1, window * window, dim)


def from_windows(x: Tensor, sides: tuple[int, int], window: int) -> Tensor:
    """Return the map [B, H, W, D] of `sides` H and W that was cut into `x` [B, N, T, D]."""
    height, width = sides
    batch, _, _, dim = x.shape
    cut = x.reshape(batch, height // window, width // window, window, window, dim)
    return cut.transpose(2, 3).reshape(batch, height, width, dim)


class PatchMap(nn.Module):
    """Image [B, C, H, W] -> [B, L, D]: linear patches in rows, then layer norm; no positions."""

    def __init__(self, in_channels: int, patch: int, dim: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(in_channels, dim, patch, patch)
        self.norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, L, D]."""
        out: Tensor = self.norm(self.projection(x).flatten(2).transpose(1, 2))
        return out


class WindowAttention(nn.Module):
    """Self-attention inside each window, with a learned bias for each relative position: [B, N, T, D] -> the same.

    Source: Liu et al. 2021, equation 4.
    """

    relative: Tensor

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = token_linear(dim, 3 * dim)
        self.output = token_linear(dim, dim)
        self.position_bias = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.position_bias, std=WEIGHT_STD)
        # a buffer of whole numbers is neither sent nor averaged
        self.register_buffer("relative", _relative_positions(window), persistent=False)

    def forward(self, x: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Return the attended values; where `hidden`, bool [N, T, T], a query (row) does not see a key."""
        batch, windows, tokens, dim = x.shape
        qkv: Tensor = self.qkv(x).view(batch, windows, tokens, 3, self.heads, dim // self.heads)
        query, key, value = qkv.permute(3, 0, 1, 4, 2, 5).unbind(0)  # each [B, N, heads, T, D/heads]
        # spelled out, as in MultiHeadAttention
        scores = query @ key.transpose(-2, -1) * (dim // self.heads) ** -0.5
        # an embedding, not an index: its gradient is summed in the same order every time
        scores = scores + F.embedding(self.relative, self.position_bias).permute(2, 0, 1)
        if hidden is not None:
            scores = scores.masked_fill(hidden.unsqueeze(1), HIDDEN_SCORE)
        attended = scores.softmax(dim=-1) @ value
        out: Tensor = self.output(attended.transpose(2, 3).reshape(batch, windows, tokens, dim))
        return out

    def extra_repr(self) -> str:
        """Return the number of heads and of patches in a window."""
        return f"heads={self.heads}, tokens={self.relative.shape[0]}"


class WindowBlock(nn.Module):
    """Pre-norm encoder block whose attention stays inside windows: [B, L, D] -> [B, L, D].

    With `shifted` the windows are displaced by half their side, cyclically; patches that meet only because the map
    was rolled do not see each other. A map of one window has no shift, and a window is never larger than the map.

    Source: Liu et al. 2021, equation 3 and figure 4.

    Args:
        dim: D, a multiple of `heads`.
        sides: height and width of the map, in patches; multiples of the window.
        window: side of a window, in patches.
        mlp_dim: hidden width of the MLP.
    """

    hidden: Tensor | None

    def __init__(
        self, dim: int, heads: int, sides: tuple[int, int], window: int, mlp_dim: int, *, shifted: bool
    ) -> None:
        super().__init__()
        self.dim, self.mlp_dim, self.sides = dim, mlp_dim, sides
        self._remake = functools.partial(type(self), dim, heads, sides, window, shifted=shifted)
        self.window = min(window, *sides)
        self.shift = self.window // 2 if shifted and min(sides) > self.window else 0
        self.attention_norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attention = WindowAttention(dim, heads, self.window)
        self.mlp_norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mlp = nn.Sequential(token_linear(dim, mlp_dim), nn.GELU(), token_linear(mlp_dim, dim))
        hidden = _strangers(sides, self.window, self.shift) if self.shift else None
        self.register_buffer("hidden", hidden, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, L, D]."""
        x = x + self._attend(self.attention_norm(x))
        out: Tensor = x + self.mlp(self.mlp_norm(x))
        return out

    def _attend(self, x: Tensor) -> Tensor:
        grid = x.view(x.shape[0], *self.sides, self.dim)
        if self.shift:
            grid = grid.roll((-self.shift, -self.shift), (1, 2))
        grid = from_windows(self.attention(in_windows(grid, self.window), self.hidden), self.sides, self.window)
        if self.shift:
            grid = grid.roll((self.shift, self.shift), (1, 2))
        return grid.reshape(x.shape)

    def narrowed(self, width: float) -> tuple[nn.Module, ...]:
        """Return a fresh copy with `width` times the MLP's width, and a projection to `width` times D."""
        block = self._remake(mlp_dim=narrow(self.mlp_dim, width))
        return block, token_linear(self.dim, narrow(self.dim, width), bias=False)

    def extra_repr(self) -> str:
        """Return the sides of the map and of a window, and the shift."""
        return f"sides={self.sides}, window={self.window}, shift={self.shift}"


class PatchMerging(nn.Module):
    """Four neighbours become one patch: [B, L, D] -> [B, L/4, D_out]; layer norm, then linear without bias.

    Source: Liu et al. 2021, section 3.1.

    Args:
        sides: height and width of the incoming map, in patches; even.
    """

    def __init__(self, dim: int, out_dim: int, sides: tuple[int, int]) -> None:
        super().__init__()
        self.out_dim, self.sides = out_dim, sides
        self._remake = functools.partial(type(self), dim, sides=sides)
        self.norm = nn.LayerNorm(4 * dim, eps=LAYER_NORM_EPS)
        self.reduction = token_linear(4 * dim, out_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, L/4, D_out]."""
        batch, _, dim = x.shape
        height, width = self.sides
        grid = x.view(batch, height // 2, 2, width // 2, 2, dim)
        # the authors' order of a square's corners: down the left column, then down the right one
        squares = grid.permute(0, 1, 3, 4, 2, 5).reshape(batch, -1, 4 * dim)
        out: Tensor = self.reduction(self.norm(squares))
        return out

    def narrowed(self, width: float) -> tuple[nn.Module, ...]:
        """Return a fresh copy with `width` times D_out."""
        return (self._remake(out_dim=narrow(self.out_dim, width)),)

    def extra_repr(self) -> str:
        """Return the sides of the incoming map."""
        return f"sides={self.sides}"


def _relative_positions(window: int) -> Tensor:
    """Return int64 [T, T]: which row of the bias table belongs to query t (row) and key u (column)."""
    places = torch.arange(window)
    down, right = places.repeat_interleave(window), places.repeat(window)
    down, right = (line[:, None] - line[None, :] + window - 1 for line in (down, right))
    return down * (2 * window - 1) + right


def _strangers(sides: tuple[int, int], window: int, shift: int) -> Tensor:
    """Return bool [N, T, T]: which two patches of a window come from different sides of the rolled map."""
    down, right = (
        torch.arange(side).ge(side - window).int() + torch.arange(side).ge(side - shift).int() for side in sides
    )
    region = in_windows((3 * down[:, None] + right[None, :])[None, :, :, None], window)[0, :, :, 0]
    return region[:, :, None] != region[:, None, :]

"""Composite blocks of the transformers. Shapes: B batch, L sequence length, D width, H heads.

Padding travels with the activation: a padded position is a row of zeros. The token embedding writes it, every
masked block keeps it and reads its mask from it, so that one tensor is all that crosses a cut. A method that
adds noise to activations makes those rows look like text.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from harness.errors import ConfigError, suggestion
from harness.task.models.blocks import narrow

PAD_ID = 0
"""The token id that fills a text up to the sequence length."""
LAYER_NORM_EPS = 1e-6
WEIGHT_STD = 0.02  # Dosovitskiy et al. 2021 and Devlin et al. 2019 both start here
HIDDEN_SCORE = -1e4  # for padded keys: exp() of it is 0 and, unlike -inf, an all-padded row stays finite


def token_linear(in_features: int, out_features: int, *, bias: bool = True) -> nn.Linear:
    """Return a linear layer with truncated-normal weights (std 0.02) and zero bias."""
    linear = nn.Linear(in_features, out_features, bias=bias)
    nn.init.trunc_normal_(linear.weight, std=WEIGHT_STD)
    if bias:
        nn.init.zeros_(linear.bias)
    return linear


def real_positions(x: Tensor) -> Tensor:
    """Return bool [B, L]: which rows of `x` [B, L, D] are not padding, that is, not all zero."""
    return x.ne(0).any(dim=-1)


class PatchEmbedding(nn.Module):
    """Image [B, C, H, W] -> [B, 1 + patches, D]: linear patches, class token first, learned positions added.

    Source: Dosovitskiy et al. 2021, arXiv:2010.11929, equation 1.
    """

    def __init__(self, in_channels: int, num_patches: int, patch: int, dim: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(in_channels, dim, patch, patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.positions = nn.Parameter(torch.zeros(1, 1 + num_patches, dim))
        nn.init.trunc_normal_(self.class_token, std=WEIGHT_STD)
        nn.init.trunc_normal_(self.positions, std=WEIGHT_STD)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, 1 + patches, D]."""
        patches = self.projection(x).flatten(2).transpose(1, 2)
        class_token = self.class_token.expand(x.shape[0], -1, -1)
        return torch.cat([class_token, patches], dim=1) + self.positions

    def extra_repr(self) -> str:
        """Return the number of positions."""
        return f"positions={self.positions.shape[1]}"


class TokenEmbedding(nn.Module):
    """Token ids int64 [B, L] -> [B, L, D]: embedding plus learned positions; `PAD_ID` gives zeros."""

    def __init__(self, vocabulary: int, length: int, dim: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, dim)
        self.positions = nn.Parameter(torch.zeros(1, length, dim))
        nn.init.trunc_normal_(self.tokens.weight, std=WEIGHT_STD)
        nn.init.trunc_normal_(self.positions, std=WEIGHT_STD)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, L, D] for ids [B, L]."""
        embedded: Tensor = self.tokens(x) + self.positions
        return embedded.masked_fill(x.eq(PAD_ID).unsqueeze(-1), 0.0)

    def extra_repr(self) -> str:
        """Return the number of positions."""
        return f"positions={self.positions.shape[1]}"


class MultiHeadAttention(nn.Module):
    """Self-attention, [B, L, D] -> [B, L, D]. Source: Vaswani et al. 2017, section 3.2.2."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = token_linear(dim, 3 * dim)
        self.output = token_linear(dim, dim)

    def forward(self, x: Tensor, score_offset: Tensor | None = None) -> Tensor:
        """Return the attended values; `score_offset` [B, 1, 1, L] is added to every query's scores."""
        batch, length, dim = x.shape
        qkv: Tensor = self.qkv(x).view(batch, length, 3, self.heads, dim // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [B, H, L, D/H]
        # spelled out: the fused kernels differ between devices, and so would the traced work
        scores = query @ key.transpose(-2, -1) * (dim // self.heads) ** -0.5
        if score_offset is not None:
            scores = scores + score_offset
        attended = scores.softmax(dim=-1) @ value
        out: Tensor = self.output(attended.transpose(1, 2).reshape(batch, length, dim))
        return out

    def extra_repr(self) -> str:
        """Return the number of heads."""
        return f"heads={self.heads}"


class EncoderBlock(nn.Module):
    """Pre-norm transformer encoder block, [B, L, D] -> [B, L, D]: attention, then MLP, each residual.

    Source: Dosovitskiy et al. 2021, equations 2 and 3.

    Args:
        dim: D, a multiple of `heads`.
        mlp_dim: hidden width of the MLP.
        masked: rows of zeros are padding: no position attends to them and they stay zero.
    """

    def __init__(self, dim: int, heads: int, mlp_dim: int, *, masked: bool = False) -> None:
        super().__init__()
        self.dim, self.mlp_dim, self.masked = dim, mlp_dim, masked
        self._remake = functools.partial(type(self), dim, heads, masked=masked)
        self.attention_norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attention = MultiHeadAttention(dim, heads)
        self.mlp_norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mlp = nn.Sequential(token_linear(dim, mlp_dim), nn.GELU(), token_linear(mlp_dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, L, D]."""
        real = real_positions(x) if self.masked else None
        offset = None
        if real is not None:
            offset = torch.zeros_like(real, dtype=x.dtype).masked_fill(~real, HIDDEN_SCORE)[:, None, None, :]
        x = x + self.attention(self.attention_norm(x), offset)
        x = x + self.mlp(self.mlp_norm(x))
        return x if real is None else x.masked_fill(~real.unsqueeze(-1), 0.0)

    def narrowed(self, width: float) -> tuple[nn.Module, ...]:
        """Return a fresh copy with `width` times the MLP's width, and a projection to `width` times D.

        The residual stream keeps the input's D, so the output is narrowed behind the block; the projection
        has no bias and so leaves padding zero.
        """
        block = self._remake(mlp_dim=narrow(self.mlp_dim, width))
        return block, token_linear(self.dim, narrow(self.dim, width), bias=False)

    def extra_repr(self) -> str:
        """Return whether rows of zeros are padding."""
        return f"masked={self.masked}"


class TokenPool(nn.Module):
    """Layer norm and pooling of a sequence, [B, L, D] -> [B, D].

    "cls" takes the first position, "mean" averages the positions that are not padding (0 where all are).
    `eps` is the layer norm's.
    """

    def __init__(self, dim: int, pool: str, *, eps: float = LAYER_NORM_EPS) -> None:
        super().__init__()
        if pool not in ("cls", "mean"):
            raise ConfigError(f"unknown pooling of tokens {pool!r}{suggestion(pool, ('cls', 'mean'))}")
        self.pool = pool
        self.norm = nn.LayerNorm(dim, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, D]."""
        if self.pool == "cls":
            first: Tensor = self.norm(x[:, 0])
            return first
        weight_BL1 = real_positions(x).to(x.dtype).unsqueeze(-1)  # noqa: N806 - shape suffix
        total: Tensor = (self.norm(x) * weight_BL1).sum(dim=1)
        return total / weight_BL1.sum(dim=1).clamp(min=1)

    def extra_repr(self) -> str:
        """Return the kind of pooling."""
        return f"pool={self.pool}"

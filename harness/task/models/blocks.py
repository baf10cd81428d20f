"""Plain composite blocks: convolution with norm, activation and pooling; and dense layers.

Shapes: B batch, C channels, H and W height and width, L length, F features.
No activation works in place: a block's input crosses the cut and must survive the forward pass.
"""

from __future__ import annotations

import functools
import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from harness.errors import ConfigError, suggestion

Norm = Literal["batch", "group", "none"]
Pool = tuple[int, int, int]
"""Kernel, stride and padding of a max pooling."""
HALVE: Pool = (2, 2, 0)
"""The pooling that halves every spatial side."""

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "hardswish": nn.Hardswish,
    "gelu": nn.GELU,
    "none": nn.Identity,
}
_CONV = {1: nn.Conv1d, 2: nn.Conv2d}
_BATCH_NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d}
_MAX_POOL = {1: nn.MaxPool1d, 2: nn.MaxPool2d}


def narrow(size: int, width: float) -> int:
    """Return `size` scaled by `width`, rounded, at least 1."""
    return max(1, round(size * width))


def activation_layer(name: str) -> nn.Module:
    """Return the activation called `name` ("relu", "relu6", "hardswish", "gelu", "none"); ConfigError if unknown."""
    if name not in _ACTIVATIONS:
        raise ConfigError(f"unknown activation {name!r}{suggestion(name, _ACTIVATIONS)}")
    return _ACTIVATIONS[name]()


def norm_layer(norm: str, channels: int, dimensions: int = 2, *, eps: float = 1e-5) -> nn.Module:
    """Return a normalisation of `channels` behind a convolution of 1 or 2 `dimensions`.

    Group norm has 16 channels to a group (Wu & He 2018, table 3), 8 where 16 does not divide, else one group:
    many small groups fail where the feature map is a single pixel.

    Raises:
        ConfigError: `norm` is not one of "batch", "group", "none".
    """
    if norm == "batch":
        return _BATCH_NORM[dimensions](channels, eps=eps)
    if norm == "group":
        per_group = next((n for n in (16, 8) if channels % n == 0), channels)
        return nn.GroupNorm(channels // per_group, channels, eps=eps)
    if norm == "none":
        return nn.Identity()
    raise ConfigError(f"unknown norm {norm!r}{suggestion(norm, get_args(Norm))}")


class ConvBlock(nn.Module):
    """Convolution, norm, activation, max pooling: [B, C_in, H, W] -> [B, C_out, H', W'].

    The convolution keeps the spatial size at stride 1 unless `padding` says otherwise. Weights start normal
    with the variance of He et al. 2015 (fan out), biases at 0.

    Args:
        norm: "batch", "group" or "none"; `eps` is the norm's.
        activation: see `activation_layer`.
        pool: kernel, stride and padding of a max pooling, or None.
        bias: whether the convolution has one.
    """

    dimensions = 2

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 3,
        stride: int = 1,
        padding: int | None = None,
        *,
        norm: str = "batch",
        activation: str = "relu",
        pool: Pool | None = None,
        groups: int = 1,
        bias: bool = True,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        padding = kernel // 2 if padding is None else padding
        self.out_channels = out_channels
        self._remake = functools.partial(
            type(self),
            in_channels,
            kernel=kernel,
            stride=stride,
            padding=padding,
            norm=norm,
            activation=activation,
            pool=pool,
            groups=groups,
            bias=bias,
            eps=eps,
        )
        conv = _CONV[self.dimensions]
        self.conv = conv(in_channels, out_channels, kernel, stride, padding, groups=groups, bias=bias)
        gain = 1 if activation == "none" else 2  # a rectifier halves the second moment
        fan_out = kernel**self.dimensions * out_channels // groups
        nn.init.normal_(self.conv.weight, std=math.sqrt(gain / fan_out))
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)
        self.norm = norm_layer(norm, out_channels, self.dimensions, eps=eps)
        self.activation = activation_layer(activation)
        self.pool = _MAX_POOL[self.dimensions](*pool) if pool else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return the pooled activation; shapes as in the class docstring."""
        out: Tensor = self.pool(self.activation(self.norm(self.conv(x))))
        return out

    def narrowed(self, width: float) -> tuple[nn.Module, ...]:
        """Return a fresh copy with `width` times the output channels, all else equal."""
        return (self._remake(out_channels=narrow(self.out_channels, width)),)


class ConvBlock1d(ConvBlock):
    """`ConvBlock` along one dimension: [B, C_in, L] -> [B, C_out, L']."""

    dimensions = 1


class Dense(nn.Module):
    """Linear layer, activation, dropout: [B, F_in] -> [B, F_out].

    Args:
        pool: what is done to an input [B, C, ...] first: "flatten", "gap" (mean over all but B and C) or
            "none".
        dropout: probability of dropping an output, 0 to 1.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        activation: str = "relu",
        dropout: float = 0.0,
        pool: str = "none",
    ) -> None:
        super().__init__()
        self.out_features = out_features
        self._remake = functools.partial(type(self), in_features, activation=activation, dropout=dropout, pool=pool)
        self.pool = FeaturePool(pool)
        self.linear = nn.Linear(in_features, out_features)
        self.activation = activation_layer(activation)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, F_out]."""
        out: Tensor = self.dropout(self.activation(self.linear(self.pool(x))))
        return out

    def narrowed(self, width: float) -> tuple[nn.Module, ...]:
        """Return a fresh copy with `width` times the output features, all else equal."""
        return (self._remake(out_features=narrow(self.out_features, width)),)


class FeaturePool(nn.Module):
    """A map as a vector, [B, C, ...] -> [B, F]: "flatten", "gap" (mean over all but B and C) or "none"."""

    def __init__(self, pool: str) -> None:
        super().__init__()
        if pool not in ("flatten", "gap", "none"):
            raise ConfigError(f"unknown pool {pool!r}{suggestion(pool, ('flatten', 'gap', 'none'))}")
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, F]; an input that is a vector already passes through."""
        if self.pool == "gap" and x.dim() > 2:
            return torch.flatten(x, 2).mean(dim=2)
        return x if self.pool == "none" else torch.flatten(x, 1)

    def extra_repr(self) -> str:
        """Return the kind of pooling."""
        return f"pool={self.pool}"

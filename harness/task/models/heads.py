"""The last block of a model: pooling and the linear classifier.

Shapes: B batch, C channels, F features, L sequence length, D width, K classes.
"""

from __future__ import annotations

import functools

from torch import Tensor, nn

from harness.task.models.blocks import FeaturePool
from harness.task.models.token_blocks import LAYER_NORM_EPS, TokenPool, token_linear


class Head(nn.Module):
    """Classifier of maps and vectors: [B, C, ...] or [B, F] -> logits [B, K].

    `pool` as in `FeaturePool`; `dropout` is the probability of dropping a pooled feature, 0 to 1.
    """

    def __init__(self, in_features: int, num_classes: int, *, pool: str = "none", dropout: float = 0.0) -> None:
        super().__init__()
        self._remake = functools.partial(type(self), in_features, pool=pool, dropout=dropout)
        self.pool = FeaturePool(pool)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.linear = nn.Linear(in_features, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [B, K]."""
        out: Tensor = self.linear(self.dropout(self.pool(x)))
        return out

    def renewed(self, num_classes: int) -> Head:
        """Return a fresh copy for `num_classes`."""
        return self._remake(num_classes=num_classes)


class TokenHead(nn.Module):
    """Classifier of a sequence: norm and pooling as in `TokenPool`, then linear; [B, L, D] -> [B, K]."""

    def __init__(self, dim: int, num_classes: int, *, pool: str, eps: float = LAYER_NORM_EPS) -> None:
        super().__init__()
        self._remake = functools.partial(type(self), dim, pool=pool, eps=eps)
        self.pool = TokenPool(dim, pool, eps=eps)
        self.linear = token_linear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [B, K]."""
        out: Tensor = self.linear(self.pool(x))
        return out

    def renewed(self, num_classes: int) -> TokenHead:
        """Return a fresh copy for `num_classes`."""
        return self._remake(num_classes=num_classes)

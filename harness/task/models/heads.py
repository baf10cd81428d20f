"""The last block of a model: pooling and the linear classifier.

Shapes: B batch, C channels, F features, L sequence length, D width, K classes.
"""

from __future__ import annotations

import functools

from torch import Tensor, nn

from harness.task.models.blocks import FeaturePool
from harness.task.models.token_blocks import TokenPool, token_linear


class Head(nn.Module):
    """Classifier of maps and vectors: [B, C, ...] or [B, F] -> logits [B, K]; `pool` as in `FeaturePool`."""

    def __init__(self, in_features: int, num_classes: int, *, pool: str = "none") -> None:
        super().__init__()
        self._remake = functools.partial(type(self), in_features, pool=pool)
        self.pool = FeaturePool(pool)
        self.linear = nn.Linear(in_features, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [B, K]."""
        out: Tensor = self.linear(self.pool(x))
        return out

    def renewed(self, num_classes: int) -> Head:
        """Return a fresh copy for `num_classes`."""
        return self._remake(num_classes=num_classes)


class TokenHead(nn.Module):
    """Classifier of a sequence: norm and pooling as in `TokenPool`, then linear; [B, L, D] -> [B, K]."""

    def __init__(self, dim: int, num_classes: int, *, pool: str) -> None:
        super().__init__()
        self._remake = functools.partial(type(self), dim, pool=pool)
        self.pool = TokenPool(dim, pool)
        self.linear = token_linear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [B, K]."""
        out: Tensor = self.linear(self.pool(x))
        return out

    def renewed(self, num_classes: int) -> TokenHead:
        """Return a fresh copy for `num_classes`."""
        return self._remake(num_classes=num_classes)

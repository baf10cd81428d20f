"""A fingerprint of weights: equal for equal bits, so that runs on two testbeds can be held against each other."""

from __future__ import annotations

import hashlib
from typing import Any

from torch import Tensor, uint8
from torch.utils._pytree import tree_iter


def fingerprint(states: Any) -> str:
    """Return 16 hexadecimal digits of the shapes, types and bits of all tensors of a tree, in its order."""
    digest = hashlib.sha256()
    for leaf in tree_iter(states):
        if isinstance(leaf, Tensor):
            digest.update(f"{tuple(leaf.shape)} {leaf.dtype}".encode())
            digest.update(leaf.detach().cpu().contiguous().view(-1).view(uint8).numpy().data)
    return digest.hexdigest()[:16]

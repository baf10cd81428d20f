"""The auxiliary network: the small classifier that gives a device block a loss of its own.

Source: Ampere, arXiv:2507.07130, whose abstract says "lightweight" and "generation method". The rule below is
OUR READING: copy the first block of the server block with its output width scaled (by 0.5), and put a dense
classifier behind it. What is scaled depends on that block:

    convolution   the output channels; kernel, stride, pooling, norm and activation stay
    residual      likewise, so the shortcut becomes a convolution; MobileNetV3's expanded width stays
    encoder       the MLP's hidden width, and by a projection without bias the width behind the block; the
                  classifier is layer norm, the model's own pooling (class token or mean) and a linear layer
    dense         the output features
    head          nothing: it is a dense classifier already, and a fresh copy of it is the auxiliary network

A flattened classifier is small on small images only. With 1,000 classes of 224x224 it has 10^8 weights behind
an early cut; choose `pool="gap"` there.
"""

from __future__ import annotations

import contextlib
import math
from collections import OrderedDict
from typing import Literal, get_args

import torch
from torch import nn

from harness.errors import ConfigError, suggestion
from harness.task.models.blocks import Dense, FeaturePool, narrow
from harness.task.models.describe import check_cut, cut_shape, output_shape
from harness.task.models.heads import Head, TokenHead
from harness.task.models.token_blocks import TokenPool

Kind = Literal["half_layer", "linear", "mlp"]
PoolKind = Literal["flatten", "gap"]


def auxiliary(
    model: nn.Sequential,
    split_point: int,
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    kind: Kind = "half_layer",
    width: float = 0.5,
    pool: PoolKind = "flatten",
) -> nn.Sequential:
    """Return a fresh auxiliary network for `model[:split_point]`: [B, *cut] -> logits [B, num_classes].

    Its weights come from torch's global generator; `model` is neither changed nor shared. Where `model` is on
    the `meta` device, so is the result; else it is on torch's default device.

    Args:
        input_shape: of one sample of the model's input.
        kind: "half_layer" as in the module's docstring; "linear" is one linear layer on the activation
            (EcoFed's head); "mlp" has one hidden layer with ReLU, of `width` times the activation's channels.
        width: what the width is multiplied by, above 0 and up to 1.
        pool: how the classifier sees a feature map: "flatten" or "gap" (mean over all but the channels). A
            model that ends in a `TokenHead` keeps that head's pooling instead, and a copied head its own.

    Raises:
        ConfigError: `split_point` out of range, an unknown `kind` or `pool`, a `width` out of range, or a
            block of a user's model that has no `narrowed` method.
    """
    check_cut(model, split_point, type(model).__name__)
    _check_options(kind, width, pool)
    cut = cut_shape(model, split_point, input_shape)
    on_meta = any(parameter.is_meta for parameter in model.parameters())
    with torch.device("meta") if on_meta else contextlib.nullcontext():
        if kind == "half_layer":
            return _half_layer(model, split_point, cut, num_classes, width, pool)
        tokens = _token_head(model)
        if kind == "linear":
            return nn.Sequential(OrderedDict(head=_classifier(cut, num_classes, pool, tokens)))
        return _mlp(cut, num_classes, width, pool, tokens)


def _half_layer(
    model: nn.Sequential,
    split_point: int,
    cut: tuple[int, ...],
    num_classes: int,
    width: float,
    pool: PoolKind,
) -> nn.Sequential:
    block = model[split_point]
    tokens = _token_head(model)
    if isinstance(block, (Head, TokenHead)):
        return nn.Sequential(OrderedDict(head=block.renewed(num_classes)))
    if split_point == len(model) - 1:  # the last block of a user's model classifies, whatever its type
        return nn.Sequential(OrderedDict(head=_classifier(cut, num_classes, pool, tokens)))
    make_narrowed = getattr(block, "narrowed", None)
    if make_narrowed is None:
        name = [name for name, _ in model.named_children()][split_point]
        raise ConfigError(
            f"block {name!r} ({type(block).__name__}) behind split point {split_point} has no method "
            "narrowed(width), so no auxiliary network can be copied from it; "
            "add one, or choose the kind 'linear' or 'mlp'"
        )
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        (f"copy{number}", layer) for number, layer in enumerate(make_narrowed(width), start=1)
    )
    shape = output_shape(nn.Sequential(layers), cut)
    layers["head"] = _classifier(shape, num_classes, pool, tokens)
    return nn.Sequential(layers)


def _mlp(
    cut: tuple[int, ...], num_classes: int, width: float, pool: PoolKind, tokens: TokenHead | None
) -> nn.Sequential:
    if tokens is not None and len(cut) == 2:
        channels = features = cut[1]
        vector: nn.Module = TokenPool(channels, tokens.pool.pool)
    else:
        channels, features = cut[0], _num_features(cut, pool)
        vector = FeaturePool(pool)
    hidden = narrow(channels, width)
    return nn.Sequential(OrderedDict(pool=vector, hidden=Dense(features, hidden), head=Head(hidden, num_classes)))


def _classifier(shape: tuple[int, ...], num_classes: int, pool: PoolKind, tokens: TokenHead | None) -> nn.Module:
    """Return the dense classifier of a sample of `shape`; a sequence is pooled as in the head `tokens`."""
    if tokens is not None and len(shape) == 2:
        return TokenHead(shape[1], num_classes, pool=tokens.pool.pool)
    return Head(_num_features(shape, pool), num_classes, pool=pool)


def _token_head(model: nn.Sequential) -> TokenHead | None:
    last = model[-1]
    return last if isinstance(last, TokenHead) else None


def _num_features(shape: tuple[int, ...], pool: PoolKind) -> int:
    return shape[0] if pool == "gap" else math.prod(shape)


def _check_options(kind: str, width: float, pool: str) -> None:
    for what, value, options in (("kind", kind, get_args(Kind)), ("pool", pool, get_args(PoolKind))):
        if value not in options:
            raise ConfigError(f"unknown auxiliary {what} {value!r}{suggestion(value, options)}")
    if not 0 < width <= 1:
        raise ConfigError(f"auxiliary width {width} is outside 0..1 (0 excluded); Ampere's half is 0.5")

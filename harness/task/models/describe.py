"""What a model costs and what crosses its cuts, found without computing anything (on torch's `meta` device).

`p` is the split point: the number of blocks on the device.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from harness.errors import ConfigError


def parameters(module: nn.Module) -> int:
    """Return the number of parameters of `module`, trainable or not; a shared one counts once."""
    return sum(parameter.numel() for parameter in module.parameters())


def float_buffers(module: nn.Module) -> int:
    """Return the number of floating-point buffer elements of `module`, e.g. batch norm's statistics."""
    return sum(buffer.numel() for buffer in module.buffers() if buffer.is_floating_point())


def macs(module: nn.Module, input_shape: tuple[int, ...], dtype: torch.dtype | None = None) -> int:
    """Return the multiply-accumulates of one sample's forward pass.

    Counts convolutions, linear layers and attention's two matrix products; not biases, norms, activations,
    pooling.

    Args:
        input_shape: of one sample, without the batch.
        dtype: of the input; None means int64 in front of an embedding, else the type of the first weights.

    Raises:
        ConfigError: `module` does not accept `input_shape`.
    """
    counter = FlopCounterMode(display=False)
    with counter:
        _run_on_meta(module, input_shape, dtype)
    flops: int = counter.get_total_flops()
    return flops // 2  # the counter takes a multiply-accumulate for two operations


def output_shape(module: nn.Module, input_shape: tuple[int, ...], dtype: torch.dtype | None = None) -> tuple[int, ...]:
    """Return the shape of one sample behind `module`; arguments and errors as in `macs`."""
    return tuple(_run_on_meta(module, input_shape, dtype).shape[1:])


def cut_shape(
    model: nn.Sequential, p: int, input_shape: tuple[int, ...], dtype: torch.dtype | None = None
) -> tuple[int, ...]:
    """Return the shape of one sample's activation at cut `p`, without the batch; arguments as in `macs`.

    `p` = 0 gives the input's own shape, `p` = len(model) that of the logits.

    Raises:
        ConfigError: the model does not accept `input_shape`, or `p` is outside 0..len(model).
    """
    if not 0 <= p <= len(model):
        raise ConfigError(f"cut {p} is outside 0..{len(model)}, the number of blocks: {_numbered(model)}")
    return output_shape(model[:p], input_shape, dtype)


def check_cut(model: nn.Sequential, p: int, name: str) -> None:
    """Raise ConfigError unless `p` leaves at least one block of the model called `name` on each side."""
    if not 1 <= p < len(model):
        raise ConfigError(
            f"split point {p} is outside 1..{len(model) - 1} for model {name!r}; "
            f"it is the number of blocks on the device, out of {_numbered(model)}"
        )


def _numbered(model: nn.Sequential) -> str:
    blocks = (block_name for block_name, _ in model.named_children())
    return ", ".join(f"{number} {block_name}" for number, block_name in enumerate(blocks, start=1))


def _run_on_meta(module: nn.Module, input_shape: tuple[int, ...], dtype: torch.dtype | None) -> Tensor:
    """Return the output of a batch of one, in evaluation mode, as a tensor without data."""
    batch = torch.empty((1, *input_shape), dtype=dtype or _input_dtype(module), device="meta")
    on_meta = _copy_on_meta(module).eval()
    try:
        with torch.no_grad(), torch.device("meta"):
            output: Tensor = on_meta(batch)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"{type(module).__name__} does not accept a sample of shape {tuple(input_shape)}: {reason}"
        ) from error
    return output


def _input_dtype(module: nn.Module) -> torch.dtype:
    """Return int64 if the first layer with parameters is an embedding, else that layer's own type."""
    for layer in module.modules():
        weight = next(layer.parameters(recurse=False), None)
        if weight is not None and next(layer.children(), None) is None:
            return torch.int64 if isinstance(layer, nn.Embedding) else weight.dtype
    return torch.float32


def _copy_on_meta(module: nn.Module) -> nn.Module:
    """Return a copy of `module` whose parameters and buffers have no data; no data is copied on the way."""
    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        empty = torch.empty_like(parameter, device="meta")
        memo[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
    for buffer in module.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(module, memo)

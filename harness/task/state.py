"""A module's parameters and running statistics in one flat buffer.

`FlatState` re-points every parameter and floating buffer of a module into one contiguous tensor: parameters
first, then floating buffers. Copying, averaging and sending a model is then one operation on one tensor. Gradients
stay apart, one per parameter: autograd hands them over without a copy, where a flat buffer would have to be zeroed
and added to.

Integer buffers (batch normalisation's num_batches_tracked) stay where they are: nothing reads them unless a
norm has momentum=None, so they are neither sent nor averaged, and the bytes of a model are
4 x (parameters + floating buffers).
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn


class FlatState:
    """The flat view of a module.

    Args:
        values: what `copy` returned of a module of the same form: start with that instead of the module's own
            numbers, and share its memory until either is written to.

    Attributes:
        flat: float32 [parameters + floating buffers]; writing to it changes the module.
        parameters: the module's parameters, views of `flat`; what an optimiser steps.
        num_parameters, num_buffers: how many of each.

    Raises:
        ValueError: parameters are not all float32.
    """

    def __init__(self, module: nn.Module, values: Tensor | None = None) -> None:
        named = list(module.named_parameters())
        buffers = [(name, b) for name, b in module.named_buffers() if b.is_floating_point()]
        wrong = [name for name, tensor in (*named, *buffers) if tensor.dtype != torch.float32]
        if wrong:
            raise ValueError(f"{wrong[0]} is not float32; Ammeter trains in float32")
        self.num_parameters = sum(p.numel() for _, p in named)
        self.num_buffers = sum(b.numel() for _, b in buffers)
        device = named[0][1].device if named else (buffers[0][1].device if buffers else torch.device("cpu"))
        size = self.num_parameters + self.num_buffers
        self.flat = torch.empty(size, device=device) if values is None else torch._lazy_clone(values)
        self.parameters: list[nn.Parameter] = []
        offset = 0
        tied = _places(module)
        with torch.no_grad():
            for _, tensor in (*named, *buffers):
                size = tensor.numel()
                view = self.flat[offset : offset + size].view(tensor.shape)
                if values is None:
                    view.copy_(tensor)
                if isinstance(tensor, nn.Parameter):
                    parameter = nn.Parameter(view, requires_grad=tensor.requires_grad)
                    self.parameters.append(parameter)
                    for owner, leaf in tied[id(tensor)]:  # several, where weights are tied
                        owner._parameters[leaf] = parameter
                else:
                    for owner, leaf in tied[id(tensor)]:
                        owner._buffers[leaf] = view
                offset += size

    def copy(self, buffers: bool = True) -> Tensor:
        """Return a copy, float32 [parameters + floating buffers] (or without the buffers)."""
        return (self.flat if buffers else self.flat[: self.num_parameters]).clone()

    def load(self, values: Tensor) -> None:
        """Overwrite with what `copy` returned, with or without buffers.

        Raises:
            ValueError: another length.
        """
        if values.shape[0] not in (self.flat.shape[0], self.num_parameters):
            raise ValueError(
                f"a state of {values.shape[0]} numbers does not fit a block of {self.num_parameters} parameters and "
                f"{self.num_buffers} buffers"
            )
        with torch.no_grad():
            self.flat[: values.shape[0]].copy_(values)

    def zero_gradient(self) -> None:
        """Forget accumulated gradients."""
        for parameter in self.parameters:
            parameter.grad = None


def hollow(module: nn.Module) -> nn.Module:
    """Return a copy of `module` whose parameters and floating buffers have no numbers, for `FlatState` to fill."""
    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        empty = torch.empty_like(parameter, device="meta")
        memo[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
    for buffer in module.buffers():
        if buffer.is_floating_point():
            memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(module, memo)


def _places(module: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    """Return where each parameter and buffer is registered, by the tensor's identity."""
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    for owner in module.modules():
        for leaf, tensor in (*owner._parameters.items(), *owner._buffers.items()):
            if tensor is not None:
                places.setdefault(id(tensor), []).append((owner, leaf))
    return places

"""Tracing: run a function once and count, operator by operator, what it asks of a machine.

A `TorchDispatchMode` sees every operator below autograd, forward and backward, on real and on meta tensors
alike, so the first call of a function in `learn` mode is traced while it really runs, and in `timing` mode it
runs on meta tensors, which have shapes and no values.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

from harness.cost.work import Work

aten = torch.ops.aten

_MATMUL = {aten.mm, aten.addmm, aten.bmm, aten.baddbmm, aten.addmv, aten.mv, aten.dot}
_CONVOLUTION = {aten.convolution, aten.convolution_backward}
_NORM = {
    aten.native_batch_norm,
    aten.native_batch_norm_backward,
    aten.native_layer_norm,
    aten.native_layer_norm_backward,
    aten.native_group_norm,
    aten.native_group_norm_backward,
}
# Gathers read what they return, not all they choose from.
_GATHER = {aten.index, aten.index_select, aten.gather, aten.embedding}
# Allocation and bookkeeping: no kernel runs, nothing is moved.
_FREE = {
    aten.empty,
    aten.empty_like,
    aten.empty_strided,
    aten.new_empty,
    aten.new_empty_strided,
    aten.detach,
    aten.lift_fresh,
    aten._local_scalar_dense,
    aten._unsafe_view,
    aten._has_compatible_shallow_copy_type,
    aten.set_,
}


def _bytes(values: Any) -> int:
    return sum(t.numel() * t.element_size() for t in tree_iter(values) if isinstance(t, torch.Tensor))


def _groups(packet: Any, args: tuple[Any, ...]) -> tuple[int, int]:
    """Return (groups, input channels) of a convolution's arguments."""
    if packet is aten.convolution:
        return int(args[8]), int(args[0].shape[1])
    return int(args[9]), int(args[1].shape[1])


class Tracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operators that run inside it; `work()` gives the totals."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.conv_flops = self.matmul_flops = self.flops = 0.0
        self.depthwise_bytes = self.norm_bytes = self.other_bytes = 0.0
        self.operators = 0
        self.live_bytes = 0
        self.peak_bytes = 0
        self._alive: dict[int, tuple[weakref.ref[Any], int]] = {}
        self._mutated: dict[int, tuple[torch.Tensor, int]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func._schema.is_mutable and isinstance(args[0], torch.Tensor) and args[0].is_meta:
            target = args[0]
            if target.untyped_storage()._cdata not in self._alive:  # it was there before
                self._mutated.setdefault(id(target), (target, target._version))
        out = func(*args, **kwargs)
        self._allocated(out, args)
        packet = func._overloadpacket
        if func.is_view or packet in _FREE:
            return out
        self.operators += 1
        flops = 0.0
        if packet in flop_registry:
            flops = float(flop_registry[packet](*args, **kwargs, out_val=out))
            self.flops += flops
        if packet in _CONVOLUTION:
            groups, channels = _groups(packet, args)
            if groups > 1 and groups == channels:
                self.depthwise_bytes += _bytes((args, kwargs, out))
            else:
                self.conv_flops += flops
        elif packet in _MATMUL:
            self.matmul_flops += flops
        elif packet in _NORM:
            # per-channel statistics are left out: which of them an operator returns differs between devices
            self.norm_bytes += _bytes((args, kwargs, out[0]))
        elif packet in _GATHER:
            self.other_bytes += 2 * _bytes(out) + _bytes(args[1:])
        else:
            self.other_bytes += _bytes((args, kwargs, out))
        return out

    def _allocated(self, out: Any, args: tuple[Any, ...]) -> None:
        """Follow the storages that operators allocate until they are freed."""
        existing = {t.untyped_storage()._cdata for t in tree_iter(args) if isinstance(t, torch.Tensor)}
        for tensor in tree_iter(out):
            if not isinstance(tensor, torch.Tensor):
                continue
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key in existing or key in self._alive:
                continue
            size = storage.nbytes()
            self._alive[key] = (weakref.ref(storage, lambda _, key=key: self._freed(key)), size)  # type: ignore[misc]
            self.live_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)

    def _freed(self, key: int) -> None:
        self.live_bytes -= self._alive.pop(key)[1]

    def forgive(self) -> None:
        """Give meta tensors that were written to their old versions back.

        In timing mode one set of shapes stands for every device's weights and a forward's graph is kept for good:
        a step that autograd would take for a change under an open graph has changed nothing.
        """
        if self._mutated:
            # views of one buffer share a counter: the first version recorded is the one to end with
            tensors, versions = zip(*reversed(self._mutated.values()), strict=True)
            torch._C._autograd._unsafe_set_version_counter(tensors, versions)

    def work(self, kept_bytes: int = 0) -> Work:
        """Return the totals so far."""
        return Work(
            conv_flops=self.conv_flops,
            matmul_flops=self.matmul_flops,
            depthwise_bytes=self.depthwise_bytes,
            norm_bytes=self.norm_bytes,
            other_bytes=self.other_bytes,
            operators=self.operators,
            flops=self.flops,
            peak_bytes=self.peak_bytes,
            kept_bytes=kept_bytes,
        )


_GRAPH_BYTES = "_ammeter_graph_bytes"


def _graphs(tree: Any) -> list[torch.Tensor]:
    return [t for t in tree_iter(tree) if isinstance(t, torch.Tensor) and t.grad_fn is not None]


def trace(fn: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Any, Work]:
    """Run `fn(*args)` once and return its value and its work.

    A returned tensor with an autograd graph keeps that graph's memory until a later computation takes the
    tensor as an argument: the first is charged `kept_bytes`, the second releases them (our accounting rule;
    a graph that is dropped unused stays charged).
    """
    released = round(sum(getattr(tensor, _GRAPH_BYTES, 0.0) for tensor in _graphs(args)))
    tracer = Tracer()
    with tracer:
        value = fn(*args)
    tracer.forgive()
    held = tag_graphs(value, tracer.live_bytes)
    return value, tracer.work(held - released)


def tag_graphs(value: Any, held_bytes: int) -> int:
    """Write on the returned graphs how much they hold together; return that, 0 if there are none."""
    graphs = _graphs(value)
    for tensor in graphs:
        setattr(tensor, _GRAPH_BYTES, held_bytes / len(graphs))
    return held_bytes if graphs else 0

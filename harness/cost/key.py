"""The key a computation is known by: function + signature of its object + structure of its arguments.

Two computations with equal keys cost the same on the same machine, so the second is not traced. Keyed by the
function alone, different cuts of a model would share a price; keyed by the bound method, every device's trainer
would be traced anew. So an object whose method is computed must say what it is: `signature`, a string naming
architecture, cut, optimiser, mode and dtype. Lambdas, partials and local functions are refused: they have no identity.
"""

from __future__ import annotations

from collections.abc import Callable
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch

from harness.errors import ProtocolError

Key = tuple[Any, ...]

_KEY = "_ammeter_key"


def _tensor(tensor: torch.Tensor) -> Any:
    try:
        shape = getattr(tensor, _KEY)
    except AttributeError:
        shape = (tuple(tensor.shape), tensor.dtype)
        if tensor.is_meta:  # shapes of meta tensors are all they have; remember them
            setattr(tensor, _KEY, shape)
    return (*shape, tensor.requires_grad)


def _sequence(sequence: Any) -> Any:
    return tuple([structure(value) for value in sequence])


def _mapping(mapping: dict[Any, Any]) -> Any:
    return tuple([(name, structure(value)) for name, value in mapping.items()])


def _itself(value: Any) -> Any:
    return value


_STRUCTURES: dict[type, Callable[[Any], Any]] = {
    torch.Tensor: _tensor,
    torch.nn.Parameter: _tensor,
    type(None): _itself,
    bool: lambda flag: (bool, flag),  # True == 1
    int: _itself,
    str: _itself,
    float: lambda _: float,  # a number with a fraction scales values, not shapes
    list: _sequence,
    tuple: _sequence,
    dict: _mapping,
}


def structure(value: Any) -> Any:
    """Return what an argument contributes to the key: shapes and dtypes of tensors, values of whole numbers.

    Raises:
        ProtocolError: an object without a `signature`.
    """
    try:
        return _STRUCTURES[type(value)](value)
    except KeyError:
        pass
    try:
        return value.signature
    except AttributeError:
        raise ProtocolError(
            f"compute() was given an argument of type {type(value).__name__!r} that has no `signature`; give it one "
            "(a string that says all its cost depends on) or pass tensors and plain values"
        ) from None


_named: dict[Any, bool] = {}


def _check_named(fn: Callable[..., Any]) -> None:
    if isinstance(fn, BuiltinFunctionType) and isinstance(fn.__self__, (ModuleType, type, type(None))):
        return
    if isinstance(fn, FunctionType) and not {"<lambda>", "<locals>"} & set(fn.__qualname__.split(".")):
        return
    raise ProtocolError(
        f"compute() was given {fn!r}, which has no identity to price it by; use a function of a module, or a "
        "method of an object with a `signature`"
    )


def key(fn: Callable[..., Any], args: tuple[Any, ...]) -> Key:
    """Return the hashable key of `fn(*args)`.

    Raises:
        ProtocolError: a lambda, a local function, a partial, or an object without a `signature`.
    """
    if type(fn) is MethodType:
        owner: Any = fn.__self__
        try:
            own = owner.signature
        except AttributeError:
            raise ProtocolError(
                f"compute() was given a method of {type(owner).__name__!r}, which has no `signature`; give it one "
                "that names architecture, cut, optimiser, mode and dtype"
            ) from None
        return (fn.__func__, own, *[structure(arg) for arg in args]) if args else (fn.__func__, own)
    if fn not in _named:
        _check_named(fn)
        _named[fn] = True
    return (fn, *[structure(arg) for arg in args])


def name(fn: Callable[..., Any]) -> str:
    """Return the name under which a computation is recorded."""
    return getattr(fn, "__name__", type(fn).__name__)

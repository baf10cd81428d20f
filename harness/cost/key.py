"""The key a computation is known by: function + signature of its object + structure of its arguments.

Two computations with equal keys cost the same on the same machine, so the second is not traced. Keyed by the
function alone, different cuts of a model would share a price; keyed by the bound method, every device's trainer
would be traced anew. So an object whose method is computed must say what it is: `signature`, a string naming
architecture, cut, optimiser, mode and dtype. Lambdas, partials and local functions are refused: they have no identity.

A key lives in one process; its `digest` names the same computation in every process, and in both modes.
"""

from __future__ import annotations

import hashlib
import re
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


def digest(key: Key) -> str:
    """Return 16 hexadecimal digits: equal for equal keys in every process, on every machine, in both modes.

    Raises:
        ProtocolError: a signature that is not a string or plain values.
    """
    return hashlib.sha256(_text(key).encode()).hexdigest()[:16]


def _text(value: Any) -> str:
    """Write a part of a key so that different parts have different texts."""
    if isinstance(value, tuple):
        return f"({','.join(map(_text, value))})"
    if isinstance(value, FunctionType | BuiltinFunctionType):
        owner = getattr(value, "__self__", None)  # of a builtin: its module or class
        module = value.__module__ or getattr(owner, "__name__", "")
        users = _USERS_METHOD.match(module)
        return f"{users[1] if users else module}.{value.__qualname__}"
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    by_address: Any = object.__repr__
    if type(value).__repr__ is by_address:
        raise ProtocolError(f"the signature {value!r} is not the same in another process; make it a string")
    return repr(value)


_USERS_METHOD = re.compile(r"(users_method_.*)_[0-9a-f]{8}$")
"""The name under which harness.method loads a file of the user's own; the digits stand for where it lies."""


def name(fn: Callable[..., Any]) -> str:
    """Return the name under which a computation is recorded."""
    return getattr(fn, "__name__", type(fn).__name__)

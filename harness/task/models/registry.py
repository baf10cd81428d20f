"""Find a model by name, or load a user's own, and refuse what does not fit the data.

A model's name is its file's name in this folder with dashes for underscores; a user's own is
"path/file.py:function".
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

import harness.task.models as package
from harness.errors import ConfigError, suggestion
from harness.task.models.model_info import NORMS, RANKS, ModelInfo


def names() -> list[str]:
    """Return the names of all models in this folder, sorted."""
    return sorted(_modules())


def info(name: str) -> ModelInfo:
    """Return what a model says about itself; a user's own accepts every kind of data.

    Raises:
        ConfigError: no such model.
    """
    if _is_users_own(name):
        return ModelInfo(name, "the user's own", tuple(RANKS))
    described: ModelInfo = _module(name).INFO
    return described


def build(
    name: str,
    kind: str,
    input_shape: tuple[int, ...],
    num_classes: int,
    vocabulary: int = 0,
    norm: str = "batch",
) -> nn.Sequential:
    """Return a fresh model with at least two named blocks, float32, in training mode.

    The weights come from torch's global generator alone (`torch.manual_seed`); under `torch.device("meta")`
    nothing is allocated.

    Args:
        name: one of `names()`, or "path/file.py:function" relative to the working directory. That function is
            called as `function(input_shape, num_classes)`, plus `vocabulary=` and `norm=` if it names them.
        kind: what a sample is: "image", "signal" or "tokens".
        input_shape: of one sample: [C, H, W], [C, L] or [L].
        vocabulary: number of token ids including padding (id 0); only for tokens.
        norm: "batch", "group" or "none", for the convolutions; transformers keep their layer norm.

    Raises:
        ConfigError: unknown name, kind or norm; a model that does not accept this kind or this shape; a
            user's file that is missing, lacks the function or returns no `nn.Sequential`.
    """
    accepted = info(name).kinds
    if kind not in accepted:
        raise ConfigError(
            f"model {name!r} does not accept data of kind {kind!r}, only {', '.join(accepted)}; "
            f"models for {kind}: {', '.join(_names_for(kind)) or 'none'}"
        )
    if len(input_shape) != RANKS[kind] or min(input_shape) < 1:
        raise ConfigError(
            f"input shape {tuple(input_shape)} is not that of one sample of kind {kind!r}, "
            f"which has {RANKS[kind]} positive dimension(s)"
        )
    if num_classes < 1:
        raise ConfigError(f"model {name!r} needs at least one class, got {num_classes}")
    if norm not in NORMS:
        raise ConfigError(f"unknown norm {norm!r} for model {name!r}{suggestion(norm, NORMS)}")
    if _is_users_own(name):
        return _build_users_own(name, input_shape, num_classes, vocabulary=vocabulary, norm=norm)
    model: nn.Sequential = _module(name).build(input_shape, num_classes, norm=norm, vocabulary=vocabulary)
    return model


def _names_for(kind: str) -> list[str]:
    return [name for name, module in sorted(_modules().items()) if kind in module.INFO.kinds]


def _modules() -> dict[str, ModuleType]:
    """Return every module of this folder that describes a model, by the model's name."""
    modules = (
        importlib.import_module(f"{package.__name__}.{found.name}") for found in pkgutil.iter_modules(package.__path__)
    )
    return {
        module.__name__.rpartition(".")[2].replace("_", "-"): module for module in modules if hasattr(module, "INFO")
    }


def _module(name: str) -> ModuleType:
    modules = _modules()
    if name not in modules:
        raise ConfigError(f"unknown model {name!r}{suggestion(name, modules)}")
    return modules[name]


def _is_users_own(name: str) -> bool:
    return name.rpartition(":")[0].endswith(".py")


def _build_users_own(name: str, input_shape: tuple[int, ...], num_classes: int, **offered: Any) -> nn.Sequential:
    function = _load(name)
    taken = inspect.signature(function).parameters
    wanted = {key: value for key, value in offered.items() if key in taken}
    model = function(input_shape, num_classes, **wanted)
    if not isinstance(model, nn.Sequential):
        raise ConfigError(
            f"{name} returned a {type(model).__name__}, not an nn.Sequential; "
            "wrap the network's blocks in nn.Sequential, so that it can be split between them"
        )
    if len(model) < 2:
        raise ConfigError(f"{name} returned an nn.Sequential of {len(model)} block(s); a split needs at least 2")
    return model


def _load(name: str) -> Callable[..., Any]:
    """Return the function that "path/file.py:function" names; what the file itself raises is left alone."""
    path_text, _, function_name = name.rpartition(":")
    path = Path(path_text).expanduser().resolve()
    if not path.is_file():
        raise ConfigError(f"model {name!r}: there is no file {path}")
    module_name = f"_users_{path.stem}_{zlib.crc32(str(path).encode()):08x}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"model {name!r}: {path} cannot be loaded as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # so that the model's classes can be found again, e.g. by pickle
    spec.loader.exec_module(module)
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ConfigError(
            f"model {name!r}: {path} has no function {function_name!r}"
            + suggestion(function_name, [found for found in vars(module) if not found.startswith("_")])
        )
    return function  # type: ignore[no-any-return]

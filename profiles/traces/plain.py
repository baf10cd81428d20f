"""Plain values out of JSON or a pickle. A pickle may hold containers, numbers and text, and can call nothing."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path
from typing import Any

from harness.errors import ProfileError

PICKLES = ("", ".pkl", ".pickle")
"""Suffixes of pickles; FedScale's have none."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it names {module}.{name}, and a table of figures names nothing")


def load(path: Path) -> Any:
    """Return the value that a .json file or a pickle (.pkl, .pickle, or no suffix) holds.

    Raises:
        ProfileError: it cannot be read, or is not plain.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ProfileError(f"{path}: cannot be read: {error.strerror}; check the path") from None
    if not data:
        raise ProfileError(f"{path}: is empty; it should hold a table of figures")
    if path.suffix not in PICKLES:
        return _json(path, data)
    try:
        return _Unpickler(io.BytesIO(data)).load()
    except Exception as error:  # a broken pickle may raise anything
        raise ProfileError(f"{path}: is no pickle of plain values: {error}; convert it to JSON") from None


def _json(path: Path, data: bytes) -> Any:
    try:
        return json.loads(data)
    except json.JSONDecodeError as error:
        raise ProfileError(f"{path}:{error.lineno}: is not JSON: {error.msg}; mend it there") from None
    except (UnicodeDecodeError, RecursionError):
        raise ProfileError(f"{path}: is not JSON text; is the format right?") from None


def mapping(value: Any, place: str) -> dict[str, Any]:
    """Return a mapping whose keys are words or whole numbers, the keys as words.

    Raises:
        ProfileError: it is none, or has no entry.
    """
    if not isinstance(value, dict) or not value:
        raise ProfileError(f"{place}: holds no mapping with entries but {_shown(value)}")
    if odd := [key for key in value if isinstance(key, bool) or not isinstance(key, str | int)]:
        raise ProfileError(f"{place}: key {_shown(odd[0])} is neither a word nor a whole number")
    return {str(key): item for key, item in value.items()}


def figure(value: Any, place: str) -> float:
    """Return a finite number of at least 0.

    Raises:
        ProfileError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ProfileError(f"{place}: {_shown(value)} is not a number")
    if not 0 <= value < float("inf"):
        raise ProfileError(f"{place}: {_shown(value)} is negative or not finite")
    return float(value)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."

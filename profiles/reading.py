"""A profile's YAML text into a checked model, or one line that says which key of which file is wrong."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from harness import reading
from harness.errors import ProfileError, suggestion
from profiles.figure import Figure

Model = TypeVar("Model", bound=BaseModel)


def read_mapping(text: str, place: str) -> dict[str, Any]:
    """Return the mapping that a YAML text holds.

    Args:
        text: the file's text.
        place: the file's name, for the error.

    Raises:
        ProfileError: the text is not YAML, or not a mapping, or gives a key twice.
    """
    try:
        content = reading.load(text)
    except reading.NotYaml as error:
        raise ProfileError(f"{place}: {error}; mend the YAML there") from None
    if not isinstance(content, dict):
        raise ProfileError(f"{place}: holds no mapping of keys to values; a shipped profile shows the form")
    return content


def check(content: dict[str, Any], model: type[Model], place: str) -> Model:
    """Return `content` as a checked `model`.

    Raises:
        ProfileError: one line with the file, the key, what is wrong with it and what to do.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        first, *others = error.errors(include_url=False)
        known = set(_field_names(model))
        more = f" (and {len(others)} more)" if others else ""
        raise ProfileError(f"{place}: {_problem(dict(first), known)}{more}") from None


def _problem(error: dict[str, Any], known: Iterable[str]) -> str:
    """Say in words what pydantic found, with the dotted key before it."""
    keys = [str(key) for key in error["loc"] if key != "[key]"]
    where = ".".join(keys)
    kind, value = error["type"], error["input"]
    if kind == "board":
        return str(error["msg"])
    if kind == "missing":
        return f"{where}: is missing; add it"
    if kind == "extra_forbidden":
        return f"{where}: is no key of a profile{suggestion(keys[-1], known)}"
    if kind == "figure_range":
        return f"{where}: {error['msg']}; correct the figure"
    if kind == "model_type" and error["ctx"]["class_name"] == Figure.__name__:
        return f"{where}: {value!r} is no mapping; write {{value: ..., status: ..., source: ...}}"
    said = str(error["msg"])
    shown = repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:57]}..."
    return f"{where}: {said[:1].lower()}{said[1:]}, not {shown}"


def _field_names(model: type[BaseModel]) -> Iterator[str]:
    """Yield every key that a file of this model may hold, at any depth."""
    for name, field in model.model_fields.items():
        yield name
        for inner in _models_in(field.annotation):
            yield from _field_names(inner)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _models_in(argument)

"""Pydantic's complaints in the user's words: file and key, what is wrong, what was probably meant."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from harness.errors import ConfigError, suggestion

Model = TypeVar("Model", bound=BaseModel)


def validated(model: type[Model], data: Any, where: str) -> Model:
    """Return `model(**data)`.

    Args:
        where: file and section, e.g. "quickstart.yaml: testbed"; keys are named below it.

    Raises:
        ConfigError: one line per complaint.
    """
    if not isinstance(data, dict):
        raise ConfigError(f"{where}: expected a mapping of settings, found {data!r}")
    try:
        return model(**data)
    except ValidationError as error:
        raise ConfigError("\n".join(_complaint(model, problem, where) for problem in error.errors())) from None
    except TypeError as error:  # a key that is no string
        raise ConfigError(f"{where}: {error}") from None


def _complaint(model: type[BaseModel], problem: Any, where: str) -> str:
    # union branches and validators add parts to the path that are no keys of the file
    path = [str(part) for part in problem["loc"] if not (isinstance(part, str) and not _is_key(part))]
    key = ".".join(path)
    place = where
    if key:  # "file: section" + key -> "file: section.key"
        place = f"{where}.{key}" if ": " in where else f"{where}: {key}"
    if problem["type"] == "extra_forbidden":
        return f"{place}: unknown key{suggestion(path[-1], _known(model, path[:-1]))}"
    if problem["type"] == "missing":
        return f"{place}: is missing"
    text = problem["msg"].removeprefix("Value error, ")
    shown = "" if isinstance(problem["input"], dict) else f" (found {problem['input']!r})"
    return f"{place}: {text[:1].lower()}{text[1:]}{shown}"


def _is_key(part: str) -> bool:
    return part.replace("_", "").replace("-", "").isalnum() and not part.startswith("function-") and part.islower()


def _known(model: type[BaseModel], path: list[str]) -> list[str]:
    """Return the keys that a model knows at that path."""
    current: Any = model
    for part in path:
        if part.isdigit():
            continue
        fields = getattr(current, "model_fields", {})
        if part not in fields:
            return []
        current = _section(fields[part].annotation)
    return list(getattr(current, "model_fields", {}))


def _section(annotation: Any) -> Any:
    """Return the first model class inside an annotation such as list[Group] or Link | str."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        found = _section(inner)
        if found is not None:
            return found
    return None

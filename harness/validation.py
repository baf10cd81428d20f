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
    odd = [key for key in data if not isinstance(key, str)]
    if odd:
        raise ConfigError(f"{where}: key {odd[0]!r} is a {type(odd[0]).__name__}; keys are words")
    try:
        return model(**data)
    except ValidationError as error:
        problems = error.errors()
        told = [problem for problem in problems if not _beside_the_point(problem, problems)]
        raise ConfigError("\n".join(_complaint(model, problem, where) for problem in told)) from None


def _complaint(model: type[BaseModel], problem: Any, where: str) -> str:
    keys, section = _walk(model, problem["loc"])
    place = where
    if keys:  # "file: section" + key -> "file: section.key"
        place = f"{where}.{keys}" if ": " in where else f"{where}: {keys}"
    if problem["type"] == "value_error" and problem["msg"].startswith(f"Value error, {keys}."):
        place = where  # the validator names the key itself
    if problem["type"] == "extra_forbidden":
        return f"{place}: unknown key{suggestion(str(problem['loc'][-1]), getattr(section, 'model_fields', ()))}"
    if problem["type"] == "missing":
        return f"{place}: is missing"
    text = problem["msg"].removeprefix("Value error, ")
    shown = "" if isinstance(problem["input"], dict | list) else f" (found {problem['input']!r})"
    return f"{place}: {text[:1].lower()}{text[1:]}{shown}"


def _walk(model: type[BaseModel], loc: tuple[int | str, ...]) -> tuple[str, Any]:
    """Return where a complaint is, as a.b[2].c, and the model whose key is last.

    pydantic's path also names branches of unions and validators; those are no keys of the file and are left out.
    """
    text = ""
    section: Any = model  # the model that the next key belongs to
    annotation: Any = model
    for position, part in enumerate(loc):
        fields = getattr(section, "model_fields", None)
        if isinstance(part, int):
            text += f"[{part}]"
        elif fields is not None and part in fields:
            text += f".{part}"
            annotation = fields[part].annotation
            section = _section(annotation)
        elif position == len(loc) - 1 and not _is_branch(part, annotation):
            text += f".{part}"
    return text.removeprefix("."), section


def _is_branch(part: str, annotation: Any) -> bool:
    """Whether a part of pydantic's path names one of the types that a value may have, not a key."""
    return part in _type_names(annotation) or part.startswith(
        ("function-", "list[", "dict[", "constrained-", "literal[")
    )


def _type_names(annotation: Any) -> set[str]:
    """Return the names of all types inside an annotation: {"str", "dict", ...} for list[str | dict[str, Any]]."""
    names: set[str] = set()
    for inner in getattr(annotation, "__args__", ()):
        names |= {getattr(inner, "__name__", "")} | _type_names(inner)
    return names


def _beside_the_point(problem: Any, others: list[Any]) -> bool:
    """A mapping was given where a name or a mapping may stand, and the mapping has a complaint of its own."""
    prefix = problem["loc"][:-1]
    is_branch = problem["type"] in ("string_type", "none_required") and isinstance(problem["input"], dict)
    return is_branch and any(other is not problem and other["loc"][: len(prefix)] == prefix for other in others)


def _section(annotation: Any) -> Any:
    """Return the first model class inside an annotation such as list[Group] or Link | str."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        found = _section(inner)
        if found is not None:
            return found
    return None

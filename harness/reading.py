"""YAML as people write it, read strictly: 15.8e9 is a number, a key given twice is an error, nothing is executed."""

from __future__ import annotations

import re
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """Constructs plain values only."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                problem = f"key {key.value!r} is given twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


class NotYaml(ValueError):  # noqa: N818 - a finding about the text
    """A text that cannot be read; `line` is where, counted from 1, None if not known."""

    def __init__(self, problem: str, line: int | None = None) -> None:
        super().__init__(problem if line is None else f"line {line}: {problem}")
        self.problem = problem
        self.line = line


def load(text: str) -> Any:
    """Return the value that a YAML text holds.

    Raises:
        NotYaml: it is not YAML, gives a key twice, or refers to itself.
    """
    try:
        value = yaml.load(text, Loader=_Loader)
        _check_finite(value, 0)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark is not None else None
        raise NotYaml(error.problem or "not YAML", line) from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2026-99-99
        raise NotYaml(" ".join(str(error).split())) from None
    return value


def _check_finite(value: Any, depth: int) -> None:
    """Refuse an alias that contains itself."""
    if depth > 50:
        raise ValueError("it is nested too deeply, or an alias contains itself")
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            _check_finite(item, depth + 1)

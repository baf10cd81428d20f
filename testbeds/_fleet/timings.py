"""Times of computations as a real testbed measured them on each node, in a file:

    {"format": 1, "nodes": {"device-0": {"0123456789abcdef": {"name": "step", "seconds": 0.123, "count": 40}}}}

By node and by digest of the computation (harness.cost.key), which is the same on every testbed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.errors import ConfigError

FORMAT = 1


@dataclass(frozen=True)
class Timing:
    """How long one computation took on one node.

    Attributes:
        name: of the function, for people.
        seconds: the mean.
        count: over how many calls.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    name: str
    seconds: Annotated[float, Field(ge=0)]
    count: Annotated[int, Field(ge=1)]


Timings = dict[str, dict[str, Timing]]
"""By node and digest."""


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    format: Literal[1]
    nodes: dict[str, dict[Annotated[str, Field(pattern="^[0-9a-f]{16}$")], Timing]]


def read(path: Path) -> Timings:
    """Return what a file of timings says.

    Raises:
        ConfigError: it is not there, or not such a file.
    """
    try:
        return _File.model_validate_json(path.read_bytes()).nodes
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except ValidationError as error:
        problem = error.errors()[0]
        keys = ".".join(str(part) for part in problem["loc"] if part != "[key]")
        said = f"{keys and f'{keys}: '}{problem['msg'][:1].lower()}{problem['msg'][1:]}"
        raise ConfigError(f"{path}: {said}; measured times are JSON of format {FORMAT} (docs/experiments.md)") from None


def write(path: Path, timings: Mapping[str, Mapping[str, Timing]]) -> None:
    """Write timings where `read` finds them."""
    nodes = {
        node: {digest: asdict(timing) for digest, timing in sorted(found.items())} for node, found in timings.items()
    }
    path.write_text(json.dumps({"format": FORMAT, "nodes": nodes}, indent=1) + "\n", encoding="utf-8")

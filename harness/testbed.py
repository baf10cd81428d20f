"""A testbed is a package under `testbeds` with `Config`, `check` and `run`: found by name, like a method.

`Config` knows `num_devices` and the `roles` of its nodes. Where a run is made with more than its settings, it has
`files(data_root)`, the paths of the files it names, by name, and `profiles()`, a hash of every profile it names, by id:
both are part of a run's id. `check(config, where, data_root)` raises ConfigError or ProfileError for what types cannot
say. `run(spec, recorder, data_root, progress)` runs one RunSpec, writes its rows to the recorder and returns an
`Outcome`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import BaseModel

from harness.errors import ConfigError, suggestion
from harness.validation import validated


@dataclass
class NodeInfo:
    """What a node ran on, for the run's record.

    `power_idle_w` and `power_load_w` are None where the profile does not know them.
    """

    name: str
    role: str
    profile: str
    memory_bytes: int
    power_idle_w: float | None = None
    power_load_w: float | None = None


@dataclass
class Outcome:
    """What a testbed reports of a finished run beside its rows.

    Messages: sent = consumed + unread + undelivered + in_flight, or the records are broken.

    Attributes:
        end_s: when the run was over, seconds on the testbed's clock.
        nodes: what each node ran on.
        clock: "virtual" or "wall".
        notes: what a reader of the numbers should know (how links were shared, which throttle was active).
        partition: sample indices of each client.
        histogram: samples per client and class.
        fingerprints: of evaluated weights, in order: [node, label, round, fingerprint (harness.task.fingerprint)].
        timings: what each node has computed and how long it took, by name and digest (harness.cost.key.digest).
    """

    end_s: float = 0.0
    sent: int = 0
    consumed: int = 0
    unread: int = 0
    undelivered: int = 0
    in_flight: int = 0
    clock: str = "virtual"
    nodes: list[NodeInfo] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)
    partition: list[Any] = field(default_factory=list)
    histogram: Any = None
    fingerprints: list[list[Any]] = field(default_factory=list)
    timings: dict[str, Any] = field(default_factory=dict)


def names() -> list[str]:
    """Return the names of the testbeds, sorted."""
    package = importlib.import_module("testbeds")
    return sorted(found.name for found in pkgutil.iter_modules(package.__path__) if not found.name.startswith("_"))


def load(name: str) -> ModuleType:
    """Import a testbed by name.

    Raises:
        ConfigError: no such testbed.
    """
    if name not in names():
        raise ConfigError(f"testbed.name: {name!r} is no testbed{suggestion(name, names())}")
    return importlib.import_module(f"testbeds.{name}")


def name_of(module: ModuleType) -> str:
    """Return the name under which `load` finds a testbed."""
    return module.__name__.rpartition(".")[2]


def files(bed: BaseModel, data_root: Path | None) -> dict[str, Path]:
    """Return the files that a testbed's settings name, by their names there.

    Args:
        data_root: where they may lie; None = $AMMETER_DATA.
    """
    found: dict[str, Path] = bed.files(data_root) if hasattr(bed, "files") else {}
    return found


def profiles(bed: BaseModel) -> dict[str, str]:
    """Return a hash of the values of every profile that a testbed's settings name, by its id."""
    found: dict[str, str] = bed.profiles() if hasattr(bed, "profiles") else {}
    return found


def configured(section: Mapping[str, Any], where: str, data_root: Path | None = None) -> tuple[ModuleType, BaseModel]:
    """Return the testbed that an experiment's `testbed` section names, and its checked settings.

    Args:
        data_root: where the files that it names may lie; None = $AMMETER_DATA.

    Raises:
        ConfigError, ProfileError: by key.
    """
    settings = dict(section)
    try:
        module = load(str(settings.pop("name", "virtual")))
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    bed: BaseModel = validated(module.Config, settings, f"{where}: testbed")
    module.check(bed, f"{where}: testbed", data_root)
    return module, bed

"""Experiment files: one YAML file, validated, with overrides and sweeps, resolved into runs with an identity.

    name: quickstart
    mode: learn                       # learn = really trained; timing = priced only, shapes without values
    seeds: [1, 2, 3]
    target_accuracy: 0.9
    task: {data: digits, model: vgg-5, partition: {kind: dirichlet, alpha: 0.5}}
    training: {rounds: 20, local_epochs: 1, batch_size: 16}
    methods: [fedavg, {name: ampere, split_point: 1, label: Ampere}]
    testbed: {name: virtual, devices: [{profile: rpi-4-4g, count: 4}], ...}
    sweep: {testbed.network.up_bps: [1e6, 1e7]}

Every combination of method, seed and swept values is a run. A run's id is a hash of all that decides its
outcome, so a sweep that is started again skips the runs it has.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import yaml
from pydantic import BaseModel, Field

from harness import method as methods
from harness import testbed as testbeds
from harness.errors import ConfigError, suggestion
from harness.task.config import Section, TaskConfig, TrainingConfig
from harness.validation import validated

FORMAT = 1
"""Version of what a run's numbers mean; part of the id, so that runs of another format are not taken for new."""


class MethodEntry(Section):
    """One method to compare.

    Attributes:
        name: a shipped method, or a file of the user's own (./mine.py).
        label: its name in tables and legends; default: the method's name.
        settings: the method's own settings, checked by its Config.
        training: what differs from the experiment's training section for this method.
    """

    name: str
    label: str
    settings: dict[str, Any]
    training: dict[str, Any]


class Experiment(Section):
    """A whole experiment file, except that `methods`, `testbed` and `sweep` are checked by who knows them."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    title: str = ""
    mode: Literal["learn", "timing"] = "learn"
    seeds: list[int] = Field(default=[1], min_length=1)
    target_accuracy: float | None = Field(default=None, gt=0, le=1)
    task: TaskConfig = TaskConfig()
    training: TrainingConfig = TrainingConfig()
    methods: list[str | dict[str, Any]] = Field(min_length=1)
    testbed: dict[str, Any]
    sweep: dict[str, list[Any]] = Field(default_factory=dict)


@dataclass(frozen=True)
class RunSpec:
    """One run, resolved: everything that decides its outcome.

    Attributes:
        experiment: name of the experiment.  label: the method's name in tables.
        swept: the swept values of this run, by key.
    """

    experiment: str
    label: str
    mode: str
    seed: int
    target_accuracy: float | None
    method: methods.Method
    config: methods.MethodConfig
    task: TaskConfig
    training: TrainingConfig
    testbed: ModuleType
    bed: BaseModel
    swept: dict[str, Any]

    def resolved(self) -> dict[str, Any]:
        """Return the run as plain data: what is hashed and written to experiment.yaml."""
        return {
            "format": FORMAT,
            "experiment": self.experiment,
            "label": self.label,
            "mode": self.mode,
            "seed": self.seed,
            "target_accuracy": self.target_accuracy,
            "method": {"name": self.method.name, **self.config.model_dump(mode="json")},
            "task": self.task.model_dump(mode="json"),
            "training": self.training.model_dump(mode="json"),
            "testbed": {"name": testbeds.name_of(self.testbed), **self.bed.model_dump(mode="json")},
            "sweep": self.swept,
        }

    @property
    def id(self) -> str:
        """12 hexadecimal digits: hash of the resolved run without what only labels it."""
        decisive = {k: v for k, v in self.resolved().items() if k not in ("experiment", "target_accuracy", "sweep")}
        text = json.dumps(decisive, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]


# ---- reading ---------------------------------------------------------------------------------------------------


def shipped() -> list[str]:
    """Return the names of the shipped experiments."""
    folder = files("harness.experiments")
    return sorted(entry.name[: -len(".yaml")] for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def read(source: str, overrides: Iterable[str] = ()) -> Experiment:
    """Read an experiment file (or a shipped one by name) and apply overrides of the form a.b=value.

    Raises:
        ConfigError: anything that is wrong with it, by file and key.
    """
    text, where = _text(source)
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{where}:{mark.line + 1}" if mark else where
        raise ConfigError(f"{place}: not YAML: {getattr(error, 'problem', error)}") from None
    if not isinstance(data, dict):
        found = "empty" if data is None else f"a {type(data).__name__}"
        raise ConfigError(f"{where}: is {found}; an experiment is a mapping with at least name, methods and testbed")
    data = _numbers(data)
    for override in overrides:
        key, value = override_value(override)
        assign(data, key, value, f"override {override!r}")
    return parse(data, where)


def parse(data: dict[str, Any], where: str = "experiment") -> Experiment:
    """Validate an experiment given as plain data.

    Raises:
        ConfigError: by key, with a suggestion where one is near.
    """
    return validated(Experiment, data, where)


def _text(source: str) -> tuple[str, str]:
    path = Path(source)
    if path.suffix not in (".yaml", ".yml") and not path.exists():
        if source not in shipped():
            raise ConfigError(f"{source!r} is neither a file nor a shipped experiment{suggestion(source, shipped())}")
        return files("harness.experiments").joinpath(f"{source}.yaml").read_text(), source
    try:
        return path.read_text(encoding="utf-8"), str(path)
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a folder; give the experiment's .yaml file in it") from None
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; shipped experiments: {', '.join(shipped())}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a text file (byte {error.start} is not UTF-8)") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None


def _numbers(value: Any) -> Any:
    """Turn strings like 1e6, which YAML 1.1 does not take for numbers, into numbers."""
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    if isinstance(value, str) and value[:1].isdigit() and "e" in value.lower():
        try:
            return float(value)
        except ValueError:
            return value
    return value


def override_value(override: str) -> tuple[str, Any]:
    """Split "a.b=value" into key and YAML value.

    Raises:
        ConfigError: it has another form.
    """
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r}: write key=value, e.g. -s training.rounds=3")
    try:
        return key, _numbers(yaml.safe_load(text)) if text else None
    except yaml.YAMLError:
        raise ConfigError(f"override {override!r}: {text!r} is not a YAML value") from None


def assign(data: dict[str, Any], key: str, value: Any, where: str) -> None:
    """Set data["a"]["b"] for key "a.b"; numbers index lists, and a name finds the list's entry of that name.

    Raises:
        ConfigError: the path goes through something that is neither.
    """
    parts = key.split(".")
    node: Any = data
    for position, part in enumerate(parts):
        last = position == len(parts) - 1
        if isinstance(node, list):
            index = _index(node, part, where)
            if last:
                node[index] = value
                return
            if isinstance(node[index], str):
                node[index] = {"name": node[index]}
            node = node[index]
        elif isinstance(node, dict):
            if last:
                node[part] = value
                return
            node = node.setdefault(part, {})
        else:
            raise ConfigError(f"{where}: {'.'.join(parts[:position])} is a {type(node).__name__}, not a section")


def _index(entries: list[Any], part: str, where: str) -> int:
    if part.isdigit() and int(part) < len(entries):
        return int(part)
    for index, entry in enumerate(entries):
        name = entry.get("label", entry.get("name")) if isinstance(entry, dict) else entry
        if name == part:
            return index
    raise ConfigError(f"{where}: the list has no entry {part!r}; it has {len(entries)} (counted from 0)")


# ---- methods -------------------------------------------------------------------------------------------------


def _entry(entry: str | dict[str, Any], position: int, where: str) -> MethodEntry:
    here = f"{where}: methods.{position}"
    if isinstance(entry, str):
        return MethodEntry(name=entry, label=_label(entry), settings={}, training={})
    settings = dict(entry)
    name = settings.pop("name", None)
    if not isinstance(name, str):
        raise ConfigError(f"{here}: a method is a name, or a mapping with `name` and its settings")
    training = settings.pop("training", {})
    label = settings.pop("label", None) or _label(name)
    if not isinstance(training, dict):
        raise ConfigError(f"{here}.training: expected a mapping of settings, found {training!r}")
    return MethodEntry(name=name, label=str(label), settings=settings, training=training)


def _label(name: str) -> str:
    return Path(name).stem if name.endswith(".py") else name


# ---- resolving -------------------------------------------------------------------------------------------------


def runs(experiment: Experiment, where: str = "experiment") -> list[RunSpec]:
    """Resolve an experiment into its runs: swept values x methods x seeds, all checked.

    Raises:
        ConfigError, ProfileError: unknown names or keys, values that are not allowed, two methods of one label.
    """
    found = list(_runs(experiment, where))
    labels = [(spec.label, spec.seed, json.dumps(spec.swept, sort_keys=True)) for spec in found]
    for label, seed, _ in labels:
        if labels.count((label, seed, _)) > 1:
            raise ConfigError(f"{where}: methods: two are called {label!r}; give one of them a `label`")
    return found


def _runs(experiment: Experiment, where: str) -> Iterator[RunSpec]:
    keys = list(experiment.sweep)
    base = experiment.model_dump(mode="python")
    for values in itertools.product(*(experiment.sweep[key] for key in keys)):
        data = copy.deepcopy(base)
        for key, value in zip(keys, values, strict=True):
            assign(data, key, copy.deepcopy(value), f"{where}: sweep.{key}")
        point = parse(data, where) if keys else experiment
        swept = dict(zip(keys, values, strict=True))
        for position, given in enumerate(point.methods):
            entry = _entry(given, position, where)
            here = f"{where}: methods.{position}"
            try:
                method = methods.load(entry.name)
            except ConfigError as error:
                raise ConfigError(f"{here}: {error}") from None
            config = validated(method.config, entry.settings, here)
            training = point.training
            if entry.training:
                merged = {**point.training.model_dump(), **entry.training}
                if "local_steps" in entry.training:
                    merged.pop("local_epochs", None)
                if "local_epochs" in entry.training:
                    merged.pop("local_steps", None)
                training = validated(TrainingConfig, merged, f"{here}.training")
            testbed, bed = testbeds.configured(point.testbed, where)
            for seed in point.seeds:
                yield RunSpec(
                    experiment=point.name,
                    label=entry.label,
                    mode=point.mode,
                    seed=seed,
                    target_accuracy=point.target_accuracy,
                    method=method,
                    config=config,
                    task=point.task,
                    training=training,
                    testbed=testbed,
                    bed=bed,
                    swept=swept,
                )

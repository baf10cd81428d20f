"""Real runs beside the runs that were to predict them: the error of every predicted figure, per node and in total.

An error is (predicted - measured) / measured. It is met if the difference is within what its tolerance allows:

    makespan, round time            5 % of what was measured
    compute, transfer up and down   8 %, per node
    idle by cause                   10 % of the cause, or 1 % of the makespan where that is more, per node
    wire bytes                      1 % where messages are above 10 kB on average: below, headers decide
    interface bytes                 1 % likewise: the kernel's own counters beside the bytes recorded in the same run
    messages, payload, weights      must be equal: else it is not the same computation

Compute seconds are those of a node's processor. A transfer's seconds are from its start to the arrival of its last
byte, summed over the messages of one device and direction. Overhead (ready, but not running) is real only, and told.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from harness.errors import ConfigError, StoreError, suggestion
from results.store import Run

TOTAL = "total"
"""What stands for a node where a figure is of the whole run."""

TOLERANCES: dict[str, float] = {
    "makespan": 0.05,
    "round_time": 0.05,
    "compute": 0.08,
    "transfer": 0.08,
    "idle": 0.10,
    "idle_of_makespan": 0.01,
    "wire": 0.01,
    "interface": 0.01,
}
"""Relative, by kind of quantity; an idle cause may be off by the larger of its two."""

LEAST_MEAN_BYTES = 10_000
"""Below this mean message wire bytes are told, and not judged."""

CAUSES = ("dependency", "straggler", "transfer", "unselected")
COLUMNS = (
    "label",
    "seed",
    "node",
    "quantity",
    "unit",
    "predicted",
    "measured",
    "error",
    "tolerance",
    "allowed",
    "met",
)

_RANK = {"device": 0, "edge": 1, "server": 2}


def tolerances(given: Mapping[str, float]) -> dict[str, float]:
    """Return the tolerances with those given laid over the defaults.

    Raises:
        ConfigError: an unknown kind of quantity, or a tolerance that is none.
    """
    for kind, value in given.items():
        if kind not in TOLERANCES:
            raise ConfigError(f"--tolerance {kind}: no such quantity{suggestion(kind, TOLERANCES)}")
        if not (math.isfinite(value) and value >= 0):
            raise ConfigError(f"--tolerance {kind}={value:g}: give a fraction from 0, e.g. {kind}=0.05 for 5 %")
    return TOLERANCES | dict(given)


@dataclass(frozen=True)
class _Figure:
    """One figure of both runs.

    Attributes:
        allowed: by how much it may be off, in its unit; None = it is told, and not judged.
    """

    node: str
    quantity: str
    unit: str
    predicted: float
    measured: float
    allowed: float | None

    def row(self) -> dict[str, Any]:
        off = self.predicted - self.measured
        if self.measured:
            error, tolerance = off / self.measured, None if self.allowed is None else self.allowed / abs(self.measured)
        else:  # nothing was measured: what is allowed is no share of it
            error = 0.0 if not off else math.copysign(math.inf, off)
            tolerance = None if self.allowed is None else math.inf if self.allowed else 0.0
        return {
            "node": self.node,
            "quantity": self.quantity,
            "unit": self.unit,
            "predicted": self.predicted,
            "measured": self.measured,
            "error": error,
            "tolerance": np.nan if tolerance is None else tolerance,
            "allowed": np.nan if self.allowed is None else self.allowed,
            "met": pd.NA if self.allowed is None else abs(off) <= self.allowed,
        }


@dataclass
class _Made:
    """What is compared of one run.

    Attributes:
        roles: of its nodes, by name, in order.  environment: its environment.json.
        delivered: messages that have arrived.
    """

    run: Run
    environment: dict[str, Any] = field(init=False)
    idle: pd.DataFrame = field(init=False)
    delivered: pd.DataFrame = field(init=False)

    def __post_init__(self) -> None:
        path = self.run.folder / "environment.json"
        try:
            self.environment = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise StoreError(f"{path}: cannot be read ({error}); delete the run's folder and run it again") from None
        self.idle = self.run.table("idle").set_index("node")
        columns = ["src", "dst", "status", "payload_bytes", "wire_bytes", "started_s", "arrived_s"]
        transfer = self.run.table("transfer", columns).astype({"src": str, "dst": str})
        self.delivered = transfer[transfer["status"] == "delivered"]

    @property
    def roles(self) -> dict[str, str]:
        return {str(name): str(role) for name, role in self.idle["role"].items()}

    @property
    def makespan_s(self) -> float:
        return float(self.run.summary["makespan_s"])

    @property
    def round_s(self) -> float:
        """Mean length of a round, NaN if none was finished."""
        return float(self.run.table("rounds")["duration_s"].mean())

    def transfers(self) -> pd.DataFrame:
        """Return seconds, messages, payload_bytes and wire_bytes by node and way; ("total", way) for all nodes.

        A message is that of its end which is farther from the server (of two equal ones: of its sender), and goes up
        if that one sends it.
        """
        roles, messages = self.roles, self.delivered
        src, dst = (messages[column].map(lambda name: _RANK[roles[name]]) for column in ("src", "dst"))
        up = src <= dst
        labelled = messages.assign(
            node=messages["src"].where(up, messages["dst"]),
            way=np.where(up, "up", "down"),
            seconds=messages["arrived_s"] - messages["started_s"],
            messages=1,
        )
        figures = ["seconds", "messages", "payload_bytes", "wire_bytes"]
        by_node = labelled.groupby(["node", "way"], sort=False)[figures].sum()
        total = labelled.groupby("way", sort=False)[figures].sum()
        total.index = pd.MultiIndex.from_product([[TOTAL], total.index], names=["node", "way"])
        return pd.concat([by_node, total])

    @property
    def fingerprints(self) -> Counter[tuple[Any, ...]]:
        """Of the weights that were scored: how often each (node, label, round, bits)."""
        return Counter(tuple(found) for found in self.environment.get("weights", []))

    @property
    def known_share(self) -> float | None:
        """Which share of the compute seconds rests on measured times; None where there were none to rest on."""
        timings = self.environment.get("testbed", {}).get("timings")
        return None if timings is None else float(timings["share"])


def known_share(run: Run) -> float | None:
    """Return which share of a predicted run's compute seconds rests on measured times; None without such times."""
    return _Made(run).known_share


def errors(real: Run, predicted: Run, given: Mapping[str, float] | None = None) -> pd.DataFrame:
    """Compare a real run with the one that was to predict it.

    Args:
        given: tolerances that differ from TOLERANCES.

    Returns:
        COLUMNS: `error` and `tolerance` as fractions of what was measured, `allowed` in the unit; `met` is NA and
        `tolerance` NaN where a figure is told and not judged. `node` is "total" for figures of the run.

    Raises:
        ConfigError: an unknown tolerance, or runs of different nodes.
        StoreError: a run's folder is damaged.
    """
    measured, expected = _Made(real), _Made(predicted)
    if measured.roles != expected.roles:
        raise ConfigError(f"{real.folder} and {predicted.folder} are runs of different nodes; compare equal testbeds")
    allowed = tolerances(given or {})
    rows = [figure.row() for figure in _figures(measured, expected, allowed)]
    table = pd.DataFrame(rows).astype({"met": "boolean", "predicted": float, "measured": float})
    table.insert(0, "label", _label(real))
    table.insert(1, "seed", real.summary["seed"])
    return table[list(COLUMNS)]


def _label(run: Run) -> str:
    """Return the method's label, with the swept values if the run stands for one point of a sweep."""
    points = run.summary["points"]
    point = points[0] if len(points) == 1 else {}
    return str(run.summary["label"]) + "".join(f", {key}={value}" for key, value in point.items())


def _figures(measured: _Made, predicted: _Made, allowed: Mapping[str, float]) -> Iterator[_Figure]:
    span_s = measured.makespan_s
    yield _figure(TOTAL, "makespan", "s", predicted.makespan_s, span_s, allowed["makespan"])
    if not math.isnan(measured.round_s):
        yield _figure(TOTAL, "round time", "s", predicted.round_s, measured.round_s, allowed["round_time"])
    for node in measured.roles:
        real_s, expected_s = (float(made.idle["compute"][node]) for made in (measured, predicted))
        yield _figure(node, "compute", "s", expected_s, real_s, allowed["compute"])
    yield from _transfers(measured.transfers(), predicted.transfers(), allowed)
    for cause in CAUSES:
        for node in measured.roles:
            real_s, expected_s = (float(made.idle[cause][node]) for made in (measured, predicted))
            if real_s or expected_s:
                most_s = max(allowed["idle"] * real_s, allowed["idle_of_makespan"] * span_s)
                yield _Figure(node, f"idle: {cause}", "s", expected_s, real_s, most_s)
    for node in measured.roles:
        real_s, expected_s = (float(made.idle["overhead"][node]) for made in (measured, predicted))
        yield _Figure(node, "idle: overhead", "s", expected_s, real_s, None)
    yield from _interfaces(measured, allowed["interface"])
    yield from _weights(measured, predicted)


def _figure(node: str, quantity: str, unit: str, predicted: float, measured: float, share: float | None) -> _Figure:
    """A figure that may be off by a share of what was measured."""
    return _Figure(node, quantity, unit, predicted, measured, None if share is None else share * abs(measured))


def _transfers(measured: pd.DataFrame, predicted: pd.DataFrame, allowed: Mapping[str, float]) -> Iterator[_Figure]:
    keys = list(dict.fromkeys([*measured.index, *predicted.index]))
    measured, predicted = (table.reindex(keys).fillna(0.0) for table in (measured, predicted))
    for node, way in keys:
        if node != TOTAL:
            expected_s, real_s = (float(table["seconds"][node, way]) for table in (predicted, measured))
            yield _figure(node, f"transfer {way}", "s", expected_s, real_s, allowed["transfer"])
    for node, way in keys:
        if node != TOTAL:
            continue
        real = measured.loc[(node, way)]
        large = real["payload_bytes"] > LEAST_MEAN_BYTES * real["messages"]
        for quantity, column, share in (
            ("messages", "messages", 0.0),
            ("payload", "payload_bytes", 0.0),
            ("wire bytes", "wire_bytes", allowed["wire"] if large else None),
        ):
            unit = "B" if column.endswith("_bytes") else ""
            expected = float(predicted[column][node, way])
            yield _figure(TOTAL, f"{quantity} {way}", unit, expected, float(real[column]), share)


def _interfaces(measured: _Made, share: float) -> Iterator[_Figure]:
    """The kernel's counters of each node's interface beside what the run has recorded, where a testbed reads them."""
    counters = measured.environment.get("testbed", {}).get("interfaces", {})
    for node, counted in counters.items():
        for way, end, column in (("out", "src", "tx"), ("in", "dst", "rx")):
            mine = measured.delivered[measured.delivered[end] == node]
            large = mine["payload_bytes"].sum() > LEAST_MEAN_BYTES * len(mine)
            crossed = float(counted.get(f"ip_{column}_bytes", counted[f"{column}_bytes"]))
            recorded = float(mine["wire_bytes"].sum())
            yield _figure(node, f"interface bytes {way}", "B", recorded, crossed, share if large else None)


def _weights(measured: _Made, predicted: _Made) -> Iterator[_Figure]:
    """Weights that were scored in both runs: equal bit for bit, if the prediction really trained."""
    real, expected = measured.fingerprints, predicted.fingerprints
    if real and expected:
        yield _figure(TOTAL, "equal weights", "", float((real & expected).total()), float(real.total()), 0.0)


# ---- summary -----------------------------------------------------------------------------------------------------


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Return one row per method and quantity: its worst figure over nodes and seeds.

    Args:
        table: as from `errors`, of any number of runs.

    Returns:
        label, quantity, node, seed, unit, predicted, measured, error and tolerance of the figure that uses most of
        what it is allowed; `mean_error`: mean of all absolute errors that are finite; `met`: whether all are (NA where
        none is judged).
    """
    rows = []
    for (label, quantity), mine in table.groupby(["label", "quantity"], sort=False):
        worst = mine.iloc[int(_used(mine).to_numpy().argmax())]
        finite = mine["error"].abs()[np.isfinite(mine["error"])]
        row = {"label": label, "quantity": quantity}
        row |= {key: worst[key] for key in ("node", "seed", "unit", "predicted", "measured", "error", "tolerance")}
        judged = mine["met"].dropna()
        row |= {"mean_error": finite.mean(), "met": bool(judged.all()) if len(judged) else pd.NA}
        rows.append(row)
    return pd.DataFrame(rows).astype({"met": "boolean"})


def _used(table: pd.DataFrame) -> pd.Series[float]:
    """Return how much of what it is allowed each figure uses: above 1 it is not met; where none is judged, its size."""
    off = (table["predicted"] - table["measured"]).abs()
    if table["allowed"].isna().all():
        return off
    used = off / table["allowed"].where(table["allowed"] > 0)
    used = used.where(table["allowed"] > 0, np.where(off > 0, np.inf, 0.0))
    return used.where(table["allowed"].notna(), -1.0)


def missed(table: pd.DataFrame) -> pd.DataFrame:
    """Return the figures that are beyond their tolerance."""
    return table[~table["met"].fillna(True).astype(bool)]


def presented(summed: pd.DataFrame) -> pd.DataFrame:
    """Return a summary as text for people."""
    several = summed["seed"].nunique() > 1
    rows = []
    for row in summed.to_dict("records"):
        node = row["node"] if row["node"] != TOTAL else ""
        told = pd.isna(row["met"])
        shown = {
            "method": str(row["label"]),
            "quantity": str(row["quantity"]),
            "worst at": ", ".join(filter(None, (node, f"seed {row['seed']}" if several else ""))) or "–",
            "predicted": _value(row["predicted"], row["unit"]),
            "measured": _value(row["measured"], row["unit"]),
            "error": "" if told else _percent(row["error"], "+.1f"),
            "mean |error|": "" if told else _percent(row["mean_error"], ".1f"),
            "tolerance": "told only" if told else _tolerance(row),
            "met": "" if told else "yes" if row["met"] else "NO",
        }
        rows.append(shown)
    return pd.DataFrame(rows)


def _tolerance(row: Mapping[Any, Any]) -> str:
    return "equal" if row["tolerance"] == 0 else _percent(row["tolerance"], ".0f")


def _value(value: float, unit: str) -> str:
    if unit == "s":
        return f"{value:.3f} s"
    scale, prefix = next(((s, p) for s, p in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if unit and value >= s), (1.0, ""))
    return f"{value / scale:,.{3 if prefix else 0}f} {prefix}{unit}".strip()


def _percent(fraction: float, form: str) -> str:
    return f"{100 * fraction:{form}} %" if math.isfinite(fraction) else "–"

"""One run in one flat record, and its rounds: everything that a paper's table quotes, derived from the rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from harness.testbed import Outcome
from results.idle import CAUSES, COLUMNS

Rows = np.ndarray[Any, Any]


def summarise(
    resolved: Mapping[str, Any],
    run_id: str,
    variant: str,
    outcome: Outcome,
    tables: Mapping[str, pd.DataFrame],
    idle: pd.DataFrame,
) -> dict[str, Any]:
    """Return the run's figures by name; units end the names, shares are fractions.

    `variant` names the settings without the seed: runs of one variant are repeats of each other.

    Device figures are means over devices unless the name says otherwise. Throughput counts the training samples
    that devices computed on, over the makespan. Energy is known where every device's profile knows its power.
    """
    end_s = outcome.end_s
    roles = {node.name: node.role for node in outcome.nodes}
    devices = [name for name, role in roles.items() if role == "device"]
    compute, transfer, metric = tables["compute"], tables["transfer"], tables["metric"]
    by_role = compute["node"].astype(object).map(roles)
    flops = compute["flops"].groupby(by_role).sum()
    seconds: dict[str, dict[str, float]] = idle.set_index("node").to_dict("index")  # type: ignore[assignment]
    summary: dict[str, Any] = {
        "run_id": run_id,
        "experiment": resolved["experiment"],
        "label": resolved["label"],
        "method": resolved["method"]["name"],
        "seed": resolved["seed"],
        "mode": resolved["mode"],
        "testbed": resolved["testbed"]["name"],
        "clock": outcome.clock,
        "devices": len(devices),
        "sweep": dict(resolved["sweep"]),
        "target_accuracy": resolved["target_accuracy"],
        "makespan_s": end_s,
        "variant": variant,
        "rounds": _rounds_made(tables["mark"]),
        **_traffic(transfer, roles),
        "device_flops": float(flops.get("device", 0.0)),
        "server_flops": float(flops.get("server", 0.0)),
        "throughput_samples_per_s": float(compute["samples"][by_role == "device"].sum()) / end_s if end_s else 0.0,
        **_quality(metric, resolved["target_accuracy"]),
        **_idle(seconds, devices, "device", end_s),
        **_idle(seconds, ["server"], "server", end_s),
        **_memory(tables["mark"], devices),
        "device_energy_j": _energy(outcome, seconds, devices),
        "messages": outcome.sent,
    }
    return summary


def _traffic(transfer: pd.DataFrame, roles: Mapping[str, str]) -> dict[str, int]:
    """Payload and wire bytes that arrived: at the server (up), from it (down), or between the others (lan)."""
    lost = transfer[transfer["status"].astype(object) != "delivered"]
    transfer = transfer[transfer["status"].astype(object) == "delivered"]
    src = transfer["src"].astype(object).map(roles)
    dst = transfer["dst"].astype(object).map(roles)
    figures: dict[str, int] = {}
    for name, chosen in (
        ("up", dst == "server"),
        ("down", src == "server"),
        ("lan", (src != "server") & (dst != "server")),
    ):
        if name == "lan" and not chosen.any():
            continue
        for kind in ("payload", "wire"):
            figures[f"{kind}_{name}_bytes"] = int(transfer.loc[chosen, f"{kind}_bytes"].sum())
    figures["wire_bytes"] = int(transfer["wire_bytes"].sum())
    figures["undelivered_bytes"] = int(lost["payload_bytes"].sum())
    return figures


def _rounds_made(mark: pd.DataFrame) -> int:
    """How many rounds the server has finished."""
    ended = mark[(mark["kind"] == "round_end") & (mark["node"].astype(object) == "server")]
    return int(ended["number"].nunique())


def _quality(metric: pd.DataFrame, target: float | None) -> dict[str, Any]:
    """Accuracy of the global model: final, best, as a curve of [at_s, accuracy], and when it reached the target."""
    rows = metric[metric["name"].astype(object) == "global/accuracy"].sort_values("at_s", kind="stable")
    curve = [[float(at_s), float(value)] for at_s, value in zip(rows["at_s"], rows["value"], strict=True)]
    values = [value for _, value in curve]
    return {
        "accuracy": values[-1] if values else None,
        "best_accuracy": max(values, default=None),
        "time_to_accuracy_s": _reached(curve, target),
        "accuracy_curve": curve,
    }


def _reached(curve: Sequence[Sequence[float]], target: float | None) -> float | None:
    """When a curve first reached the target; None = never."""
    return next((at_s for at_s, value in curve if target is not None and value >= target), None)


def retarget(summary: Mapping[str, Any], target: float | None) -> dict[str, Any]:
    """Return a summary with another target accuracy."""
    reached = _reached(summary["accuracy_curve"], target)
    return {**summary, "target_accuracy": target, "time_to_accuracy_s": reached}


def _idle(
    seconds: Mapping[str, Mapping[str, float]], nodes: Sequence[str], role: str, end_s: float
) -> dict[str, float]:
    mean = {column: float(np.mean([seconds[node][column] for node in nodes])) for column in COLUMNS}
    idle_s = sum(mean[cause] for cause in CAUSES)
    figures = {f"{role}_compute_s": mean["compute"], f"{role}_idle_s": idle_s}
    figures |= {f"{role}_idle_{cause}_s": mean[cause] for cause in CAUSES}
    figures |= {
        f"{role}_done_s": mean["done"],
        f"{role}_idle_fraction": idle_s / end_s if end_s else 0.0,
    }
    return figures


def _memory(mark: pd.DataFrame, devices: Sequence[str]) -> dict[str, int]:
    peaks = mark[mark["kind"] == "peak_memory"].set_index("node")["number"]
    return {
        "peak_device_memory_bytes": int(max((peaks.get(name, 0) for name in devices), default=0)),
        "peak_server_memory_bytes": int(peaks.get("server", 0)),
    }


def _energy(outcome: Outcome, seconds: Mapping[str, Mapping[str, float]], devices: Sequence[str]) -> float | None:
    """Energy of all devices in joules: load power while computing, idle power else; None if any is unknown."""
    total = 0.0
    for node in outcome.nodes:
        if node.name in devices:
            if node.power_idle_w is None or node.power_load_w is None:
                return None
            busy = seconds[node.name]["compute"]
            total += busy * node.power_load_w + (outcome.end_s - busy) * node.power_idle_w
    return total


def rounds(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Return one row per round of the server: round, start_s, end_s, duration_s, payload bytes of its messages."""
    mark, transfer = tables["mark"], tables["transfer"]
    mark = mark[mark["node"].astype(object) == "server"]
    start = mark[mark["kind"] == "round_start"].drop_duplicates("number").set_index("number")["at_s"]
    end = mark[mark["kind"] == "round_end"].drop_duplicates("number").set_index("number")["at_s"]
    table = pd.DataFrame({"start_s": start, "end_s": end})
    table["duration_s"] = table["end_s"] - table["start_s"]
    payload = transfer.groupby("round")["payload_bytes"].sum()
    table["payload_bytes"] = payload.reindex(table.index).fillna(0).astype(np.int64)
    return table.rename_axis("round").reset_index()


def metrics(metric: pd.DataFrame) -> pd.DataFrame:
    """Return one row per scored model and round: model ("global", "auxiliary"), round, at_s, accuracy, loss."""
    if metric.empty:
        return pd.DataFrame(columns=["model", "round", "at_s", "accuracy", "loss"])
    split = metric["name"].astype(str).str.split("/", n=1, expand=True)
    long = pd.DataFrame(
        {
            "model": split[0],
            "figure": split[1],
            "round": metric["round"],
            "at_s": metric["at_s"],
            "value": metric["value"],
        }
    )
    wide = long.pivot_table(index=["model", "round", "at_s"], columns="figure", values="value", sort=False)
    return wide.reset_index().rename_axis(columns=None)

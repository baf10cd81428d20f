"""What the record of a run says beside its rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from harness import record
from harness.controller.members import Member
from harness.record import Recorder


def write_losses(found: Sequence[Mapping[str, Any]], recorder: Recorder, end_s: float) -> None:
    """Write who was lost and who came back (see harness.controller.losses.Losses) as marks of the run."""
    mark, ids = recorder.mark, recorder.id
    for loss in found:
        kind = record.LOST if "at_s" in loss else record.RETURNED
        at_s = float(loss["at_s" if kind == record.LOST else "returned_s"])
        node = ids(loss["node"])
        mark.append(mark.pack(node, 0, kind, node, loss["incarnation"], min(at_s, end_s)))


def clocks(members: Iterable[Member]) -> dict[str, dict[str, float]]:
    """Return how each node's clock was aligned, in real seconds (see harness.controller.members.Bundle)."""
    return {
        member.name: {
            "offset_s": member.bundle.offset_s,
            "residual_s": member.bundle.residual_s,
            "drift_s": member.bundle.drift_s,
        }
        for member in members
    }


_FIGURES = ("paced", "late", "late_s", "cpu_s", "still_computing", "still_running")


def pacing(members: Iterable[Member]) -> dict[str, dict[str, Any]]:
    """Return how many computations of each node were paced, how many of them late, by how much, and its CPU time.

    `still_computing`, `still_running`: a computation, or an activity, that did not end when the run did.
    """
    return {
        member.name: {key: member.bundle.stopped[key] for key in _FIGURES}
        for member in members
        if member.bundle.stopped is not None
    }


def timings(members: Iterable[Member]) -> dict[str, dict[str, dict[str, Any]]]:
    """Return what each node has computed, by digest (see harness.worker.processor.Processor.timings)."""
    return {
        member.name: {row.pop("digest"): row for row in map(dict, member.bundle.stopped.get("timings", list))}
        for member in members
        if member.bundles and member.bundle.stopped is not None
    }

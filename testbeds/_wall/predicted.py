"""The virtual testbed that predicts a run on the wall clock: the same nodes on the same links, another time."""

from __future__ import annotations

from typing import Any

from testbeds._fleet.config import Fleet
from testbeds._wall.config import WallFleet


def predicted(bed: WallFleet, timings: str | None) -> dict[str, Any]:
    """Return the `testbed` section whose runs predict those of `bed`; times are of the run, whatever the dilation.

    Links of a section that says `shaped: false` are as fast as the host, which is taken for endless.

    Args:
        timings: file of the times that its computations were measured to take (testbeds._fleet.timings); None = they
            are priced by the boards' profiles.
    """
    section: dict[str, Any] = bed.model_dump(mode="json", include=set(Fleet.model_fields))
    if not getattr(bed, "shaped", True):
        section["network"] = {}
        groups = [*section["devices"], section["server"], *([section["edges"]] if bed.edges is not None else [])]
        for group in groups:
            group["network"] = {}
        if bed.edges is not None:
            section["edges"]["lan"] = {}
    section |= {
        "name": "virtual",
        "medium": "separate",  # as on every wall clock: check_wall
        "framing": "tls" if bed.tls else "tcp",
        "threads": bed.threads or 1,
        "backlog_mib": bed.backlog_mib,
    }
    if timings is not None:
        section["timings"] = timings
    return section

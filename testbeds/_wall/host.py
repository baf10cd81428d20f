"""The host under a run: what else it did meanwhile."""

from __future__ import annotations

import os
import time
from typing import Any

import psutil


class HostWatch:
    """Looks at the host's processors from its making on."""

    def __init__(self) -> None:
        self._began_s = time.monotonic()
        self._before = psutil.cpu_times()
        self._load_before = os.getloadavg()

    def notes(self) -> dict[str, Any]:
        """Return shares of all processors' time: busy, stolen by a hypervisor, idle; and the load before and after."""
        now = psutil.cpu_times()
        passed = {key: getattr(now, key) - getattr(self._before, key) for key in now._fields}
        total = sum(passed.values()) or 1.0
        steal = passed.get("steal", 0.0)
        idle = passed.get("idle", 0.0) + passed.get("iowait", 0.0)
        return {
            "seconds": round(time.monotonic() - self._began_s, 3),
            "busy": round(1 - (idle + steal) / total, 4),
            "steal": round(steal / total, 4),
            "idle": round(idle / total, 4),
            "load_before": list(self._load_before),
            "load_after": list(os.getloadavg()),
        }

"""The availability that a testbed section names: its file, and what each device draws of it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from harness.errors import ProfileError, suggestion
from harness.randomness import stream
from profiles.traces import library
from profiles.traces.availability import Availability
from testbeds._fleet.recorded import resolved
from testbeds.virtual import sections


def availability(
    section: sections.Availability, seed: int, devices: Iterable[str], data_root: Path | None = None
) -> dict[str, tuple[Availability, float]]:
    """Return, per device that is not there always, when it is, and where in that log a run begins (s).

    Raises:
        ProfileError: by file and line, or device.
    """
    logs: dict[str, Availability] = {}
    if section.file is not None:
        path = resolved(section.file, data_root)
        logs = dict(library.presence(path))
        if section.name is not None:
            if section.name not in logs:
                raise ProfileError(f"{path}: has no log {section.name!r}{suggestion(section.name, logs)}")
            logs = {section.name: logs[section.name]}
    names = list(logs)
    found = {}
    for device in devices:
        if device in section.devices:
            intervals = tuple((float(a), float(b)) for a, b in section.devices[device])
            found[device] = (Availability(f"devices.{device}", intervals, section.period_s), 0.0)
        elif names:
            which, phase = stream(seed, device, "availability").random(2).tolist()
            log = logs[names[int(which * len(names))]]
            offset_s = phase * (log.period_s or 0.0) if section.offset == "random" else section.offset
            found[device] = (log, offset_s)
    return {device: drawn for device, drawn in found.items() if not drawn[0].always}

"""The traces of a file, by format; read once while the file does not change."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Literal

from harness.errors import ProfileError
from profiles.trace import RateTrace
from profiles.traces import availability, fedscale, mahimahi, pensieve, table
from profiles.traces.availability import Availability

Format = Literal["csv", "mahimahi", "pensieve", "fedscale"]


def rates(
    path: Path,
    form: Format,
    source: str | None = None,
    mode: str | None = None,
    column: str = "down_kbps",
    step_s: float | None = None,
) -> Mapping[str, RateTrace]:
    """Return the traces of a file by name; a format with one trace per file names it by the file's name.

    Args:
        source, mode, column: which traces of a table (csv).
        step_s: resample to steps of this length; Mahimahi: 1 s if None.

    Raises:
        ProfileError: by file and line.
    """
    return _rates(path, *_stamp(path), form, source, mode, column, step_s)


def presence(path: Path) -> Mapping[str, Availability]:
    """Return the availability of the devices in a file by name.

    Raises:
        ProfileError: by file and line.
    """
    return _presence(path, *_stamp(path))


def _stamp(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
    except OSError as error:
        raise ProfileError(f"{path}: cannot be read: {error.strerror}; check the path") from None
    if path.is_dir():
        raise ProfileError(f"{path}: is a folder; give a file in it")
    return stat.st_mtime_ns, stat.st_size


@lru_cache(maxsize=32)
def _rates(
    path: Path,
    mtime_ns: int,  # noqa: ARG001 - read again when it changes
    size: int,  # noqa: ARG001
    form: Format,
    source: str | None,
    mode: str | None,
    column: str,
    step_s: float | None,
) -> Mapping[str, RateTrace]:
    if form == "mahimahi":
        return {path.name: mahimahi.read(path, step_s)}
    if form == "pensieve":
        found: Mapping[str, RateTrace] = {path.name: pensieve.read(path)}
    elif form == "fedscale":
        found = fedscale.rates(path)
    else:
        found = table.read(path, source, mode, column)
    return found if step_s is None else {name: trace.resampled(step_s) for name, trace in found.items()}


@lru_cache(maxsize=8)
def _presence(path: Path, mtime_ns: int, size: int) -> Mapping[str, Availability]:  # noqa: ARG001
    return availability.read(path)

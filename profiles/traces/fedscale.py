"""FedScale's device capacities: per client the milliseconds per sample and the rate of its link, one for all times.

Source of the format: github.com/SymbioticLab/FedScale, benchmark/dataset/data/device_info/client_device_capacity, a
pickle {client: {"computation": ms per sample, "communication": kbit/s}}. Here: that, or the same as JSON, or a CSV with
the columns client, computation, communication. One rate stands for both directions: FedScale knows no other.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from harness.errors import ProfileError
from profiles.trace import RateTrace
from profiles.traces import plain
from profiles.traces.lines import number, numbered

COLUMNS = ("client", "computation", "communication")


@dataclass(frozen=True)
class Capacity:
    """What a client can do: `sample_s` seconds per sample of FedScale's reference model, `rate_bps` bits per second."""

    sample_s: float
    rate_bps: float


def read(path: Path) -> dict[str, Capacity]:
    """Read the capacities of all clients, by name.

    Raises:
        ProfileError: by file and line or client.
    """
    found = _from_csv(path) if path.suffix in (".csv", ".gz") else _from_mapping(path)
    for client, capacity in found.items():
        if not capacity.rate_bps:
            raise ProfileError(f"{path}: client {client}: communication is 0; nothing would ever arrive")
    return found


def rates(path: Path) -> dict[str, RateTrace]:
    """Read the same as traces of one rate.

    Raises:
        ProfileError: by file and line or client.
    """
    return {name: RateTrace(f"{path}: {name}", [0.0], [found.rate_bps], 1.0) for name, found in read(path).items()}


def _from_csv(path: Path) -> dict[str, Capacity]:
    rows = numbered(path)
    first = next(rows, None)
    if first is None or tuple(first[1].split(",")) != COLUMNS:
        raise ProfileError(f"{path}: does not begin with a line {','.join(COLUMNS)}; is it FedScale's table?")
    found: dict[str, Capacity] = {}
    for line, text in rows:
        place = f"{path}:{line}"
        row = text.split(",")
        if len(row) != len(COLUMNS):
            raise ProfileError(f"{place}: has {len(row)} columns, not {len(COLUMNS)}; mend or cut the file there")
        if row[0] in found:
            raise ProfileError(f"{place}: client {row[0]} is given twice; take one out")
        found[row[0]] = Capacity(
            number(row[1], "computation", place) / 1000, number(row[2], "communication", place) * 1000
        )
    if not found:
        raise ProfileError(f"{path}: has a header and nothing else; a row per client is needed")
    return found


def _from_mapping(path: Path) -> dict[str, Capacity]:
    found = {}
    for client, entry in plain.mapping(plain.load(path), str(path)).items():
        place = f"{path}: client {client}"
        figures = plain.mapping(entry, place)
        if missing := [key for key in COLUMNS[1:] if key not in figures]:
            raise ProfileError(f"{place}: has no {missing[0]}; it needs {' and '.join(COLUMNS[1:])}")
        ms, kbps = (plain.figure(figures[key], f"{place}: {key}") for key in COLUMNS[1:])
        found[client] = Capacity(ms / 1000, kbps * 1000)
    return found

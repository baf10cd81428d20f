"""Seconds, bytes and percentages as people write them: the unit goes by the magnitude."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Unit:
    """`value / size` is the number to show, `symbol` the unit to put behind it."""

    size: float
    symbol: str

    def show(self, value: float) -> str:
        """Return the value in this unit, without the symbol."""
        return number(value / self.size)

    def measured(self, value: float) -> str:
        """Return the value in this unit with three significant digits and the symbol."""
        return f"{_three_digits(value / self.size)} {self.symbol}" if math.isfinite(value) else "–"


SECONDS = (Unit(1e-6, "µs"), Unit(1e-3, "ms"), Unit(1, "s"), Unit(60, "min"), Unit(3600, "h"))
_SECONDS_FROM = (0.0, 1e-3, 1.0, 180.0, 3 * 3600.0)
BYTES = tuple(Unit(1000.0**i, symbol) for i, symbol in enumerate(("B", "kB", "MB", "GB", "TB", "PB")))
_BYTES_FROM = (0.0, *(unit.size for unit in BYTES[1:]))
BITS_PER_S = tuple(
    Unit(1000.0**i, symbol) for i, symbol in enumerate(("bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s"))
)
_BITS_FROM = (0.0, *(unit.size for unit in BITS_PER_S[1:]))


def _pick(units: tuple[Unit, ...], begins: tuple[float, ...], value: float) -> Unit:
    chosen = units[0]
    for unit, begin in zip(units, begins, strict=True):
        if value >= begin:
            chosen = unit
    return chosen


def seconds(value: float) -> Unit:
    """Return the unit for times up to `value` seconds: µs, ms, s, min from 3 min on, h from 3 h on."""
    return _pick(SECONDS, _SECONDS_FROM, value) if value > 0 else Unit(1, "s")


def size(value: float) -> Unit:
    """Return the decimal unit for sizes up to `value` bytes."""
    return _pick(BYTES, _BYTES_FROM, value)


def bandwidth(value: float) -> Unit:
    """Return the unit for bandwidths of which `value` bits per second is a typical one."""
    return _pick(BITS_PER_S, _BITS_FROM, value)


def number(value: float) -> str:
    """Return a number with three significant digits, no exponent up to a million, no trailing zeros."""
    if not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    if not 1e-3 <= abs(value) < 1e6:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    text = _three_digits(value)
    return text.rstrip("0").rstrip(".") if "." in text else text


def _three_digits(value: float) -> str:
    rounded = float(f"{value:.2e}")
    digits = 2 - math.floor(math.log10(abs(rounded))) if rounded else 0
    return f"{rounded if digits > 0 else value:.{max(0, digits)}f}"


def show_seconds(value: float) -> str:
    """Return e.g. "12.5 s", "4.20 min" or "31.0 h"."""
    return seconds(value).measured(value)


def show_bytes(value: float) -> str:
    """Return e.g. "0 B", "3.20 MB" or "1.05 GB"."""
    unit = size(value)
    return unit.measured(value) if unit.size > 1 else f"{value:.0f} B"


def show_percent(fraction: float) -> str:
    """Return a fraction as e.g. "81.3 %"."""
    return f"{100 * fraction:.1f} %" if math.isfinite(fraction) else "–"

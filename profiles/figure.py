"""One number of a profile: its value, how it is known, and where it comes from."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints
from pydantic_core import PydanticCustomError

Status = Literal["measured", "data-sheet", "computed", "inferred", "memory"]
"""How a figure is known, from firm to weak.

measured: somebody timed or metered it, and the source says who. data-sheet: a maker's or a standard's
figure, or a setting read in published code. computed: arithmetic on measured figures, spelled out in
the source. inferred: an assumption carries it. memory: recalled, not checked.
"""

_UNITS = (  # by the end of the key; the longest ending that fits comes first
    ("_flops_per_s", "FLOP/s"),
    ("_bytes_per_s", "B/s"),
    ("_bps", "bit/s"),
    ("_bytes", "B"),
    ("_fraction", "1"),
    ("_s", "s"),
    ("_w", "W"),
    ("cores", "cores"),
)


class Figure(BaseModel):
    """A number with its status and source; the unit is in the name of the key that holds it.

    A NaN, an infinity, a number in quotes, or a figure without a source is refused.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: Annotated[float, Field(strict=True, allow_inf_nan=False)]
    status: Status
    source: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class FigureRow(NamedTuple):
    """One figure as a row of a table, for printing."""

    figure: str
    value: float
    unit: str
    status: Status
    source: str


def unit(key: str) -> str:
    """Return the unit that the end of a figure's name stands for, "" when it names none."""
    return next((symbol for ending, symbol in _UNITS if key.endswith(ending)), "")


def _positive(figure: Figure) -> Figure:
    return _in_range(figure, figure.value > 0, "greater than 0")


def _not_negative(figure: Figure) -> Figure:
    return _in_range(figure, figure.value >= 0, "0 or more")


def _fraction(figure: Figure) -> Figure:
    return _in_range(figure, 0 <= figure.value < 1, "a fraction from 0 up to, not including, 1")


def _count(figure: Figure) -> Figure:
    return _in_range(figure, figure.value >= 1 and figure.value.is_integer(), "a whole number, 1 or more")


def _in_range(figure: Figure, holds: bool, wanted: str) -> Figure:
    if not holds:
        raise PydanticCustomError(
            "figure_range", "{value} must be {wanted}", {"value": f"{figure.value:g}", "wanted": wanted}
        )
    return figure


PositiveFigure = Annotated[Figure, AfterValidator(_positive)]
NonNegativeFigure = Annotated[Figure, AfterValidator(_not_negative)]
FractionFigure = Annotated[Figure, AfterValidator(_fraction)]
CountFigure = Annotated[Figure, AfterValidator(_count)]

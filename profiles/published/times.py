"""Published times of training steps, as read from a file: a shipped one by name, or the user's own."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from harness.errors import ProfileError, suggestion
from profiles.fit import RATES, Name
from profiles.reading import check, read_mapping

_Text = Annotated[str, StringConstraints(min_length=1)]
_Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Count = Annotated[int, Field(strict=True, ge=1)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Times(_Section):
    """Seconds of one step of a network; at least one of the three kinds.

    Attributes:
        step_s: forward, backward and update.
        frozen_s: with all but the last layer frozen.
        infer_s: forward in evaluation mode, by samples per batch.
        norm: "none" for a network that was timed without its normalisation layers.
    """

    step_s: _Seconds | None = None
    frozen_s: _Seconds | None = None
    infer_s: dict[_Count, _Seconds] = {}
    norm: Literal["batch", "none"] = "batch"

    @model_validator(mode="after")
    def _some(self) -> Times:
        if self.step_s is None and self.frozen_s is None and not self.infer_s:
            raise _error("no time is given; give step_s, frozen_s or infer_s")
        return self


class BoardTimes(_Section):
    """What was timed on one device.

    Attributes:
        like: another board of the file, of the same family and better known, that lends its proportions.
        fit: the figures to fit; the others are the profile's own.
        roof: whether the fit lets the profile's stream rate hold products up.
        steps: times by network.
    """

    like: str | None = None
    fit: tuple[Name, ...] = RATES
    roof: bool = False
    steps: dict[str, Times] = Field(min_length=1)


class Published(_Section):
    """One source's times, all under the same conditions.

    Attributes:
        input: shape of one sample.  classes: of the last layer.
        batch: samples per step of step_s and frozen_s.
        boards: by device profile.
    """

    title: _Text
    source: _Text
    input: tuple[_Count, ...] = Field(min_length=1, max_length=3)
    classes: _Count
    batch: _Count | None = None
    boards: dict[str, BoardTimes] = Field(min_length=1)

    @model_validator(mode="after")
    def _known(self) -> Published:
        for name, board in self.boards.items():
            if board.like is not None and (board.like == name or board.like not in self.boards):
                raise _error(f"boards.{name}.like: {board.like!r} is no other board of this file")
            for network, times in board.steps.items():
                if self.batch is None and (times.step_s is not None or times.frozen_s is not None):
                    raise _error(f"boards.{name}.steps.{network}: is a time of a step; give the file its 'batch'")
        return self


def _error(message: str) -> PydanticCustomError:
    return PydanticCustomError("board", "{message}", {"message": message})


def names() -> list[str]:
    """Return the names of the shipped sources."""
    entries = (entry.name for entry in files("profiles.published").iterdir())
    return sorted(name.removesuffix(".yaml") for name in entries if name.endswith(".yaml"))


def read(name: str) -> Published:
    """Return a shipped source by its name, or the user's own .yaml.

    Raises:
        ProfileError: there is none, or the file is not valid.
    """
    if name.endswith((".yaml", ".yml")):
        try:
            text = Path(name).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise ProfileError(f"{name}: cannot be read: {reason}; check the path") from None
        return check(read_mapping(text, name), Published, name)
    if name not in names():
        raise ProfileError(f"{name!r} is no published source of step times{suggestion(name, names())}")
    text = (files("profiles.published") / f"{name}.yaml").read_text(encoding="utf-8")
    return check(read_mapping(text, f"profiles/published/{name}.yaml"), Published, name)

from __future__ import annotations

from typing import Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, model_validator

from harness.errors import ConfigError
from harness.validation import validated


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Link(Section):
    up_bps: float | None = Field(default=None, gt=0)


class Group(Section):
    profile: str
    count: int = Field(default=1, ge=1)
    link: str | Link | None = None


class Schedule(Section):
    epochs: int | None = None
    steps: int | None = None

    @model_validator(mode="after")
    def _one(self) -> Schedule:
        if self.epochs and self.steps:
            raise ValueError("Give epochs or steps")
        return self


class Bed(Section):
    groups: list[Group] = Field(default=[], max_length=3)
    default: Group | None = None
    kind: Literal["tls", "tcp"] = "tls"
    schedule: Schedule = Schedule()


def complaint(data: Any, where: str = "mine.yaml") -> str:
    with pytest.raises(ConfigError) as caught:
        validated(Bed, data, where)
    return str(caught.value)


def test_what_is_right_comes_through() -> None:
    bed = validated(Bed, {"groups": [{"profile": "pi", "link": {"up_bps": 5}}], "kind": "tcp"}, "mine.yaml")
    assert bed == Bed(groups=[Group(profile="pi", link=Link(up_bps=5.0))], kind="tcp")


@pytest.mark.parametrize("where", ["mine.yaml", "mine.yaml: testbed"])
def test_the_place_is_the_file_and_the_key(where: str) -> None:
    """`where` names a file, or a file and a section; the key goes on behind it."""
    joined = f"{where}.kind" if ": " in where else f"{where}: kind"
    assert complaint({"kind": "udp"}, where).startswith(f"{joined}: input should be 'tls' or 'tcp' (found 'udp')")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"group": []}, "mine.yaml: group: unknown key; did you mean 'groups'?"),
        ({"zzzzz": 1}, "mine.yaml: zzzzz: unknown key; known: default, groups, kind, schedule"),
        (
            {"groups": [{"profile": "a"}, {"profile": "b", "cuont": 2}]},
            "groups[1].cuont: unknown key; did you mean 'count'?",
        ),
        ({"groups": [{"profile": "a", "link": {"up_bp": 2}}]}, "[0].link.up_bp: unknown key; did you mean 'up_bps'?"),
        ({"groups": [{"profile": "a", "link": {"up": 2}}]}, "mine.yaml: groups[0].link.up: unknown key; known: up_bps"),
        ({"default": {"profil": "a"}}, "default.profil: unknown key; did you mean 'profile'?"),
        ({"schedule": {"epoch": 1}}, "schedule.epoch: unknown key; did you mean 'epochs'?"),
        ({"groups": [{}]}, "mine.yaml: groups[0].profile: is missing"),
        (
            {"groups": [{"profile": "a", "count": 0}]},
            "groups[0].count: input should be greater than or equal to 1 (found 0)",
        ),
        ({"groups": [{"profile": "a", "count": "x"}]}, "groups[0].count: input should be a valid integer"),
        ({"schedule": {"epochs": 1, "steps": 1}}, "mine.yaml: schedule: give epochs or steps"),
        ({"groups": None}, "mine.yaml: groups: input should be a valid list (found None)"),
        ({"groups": {"profile": "a"}}, "mine.yaml: groups: input should be a valid list"),
    ],
)
def test_what_is_wrong_is_named_with_its_remedy(data: dict[str, Any], message: str) -> None:
    assert message in complaint(data)


def test_every_complaint_has_a_line() -> None:
    lines = complaint({"kind": "udp", "groups": [{}], "defualt": None}).splitlines()
    assert len(lines) == 3
    assert all(line.startswith("mine.yaml: ") for line in lines)


@pytest.mark.parametrize("data", [None, [], "text", 3])
def test_no_mapping_is_refused(data: Any) -> None:
    assert complaint(data) == f"mine.yaml: expected a mapping of settings, found {data!r}"


@pytest.mark.parametrize("key", ["Kind", "KIND", "kind of", "kind.of", "kindµ", "kind[0]", "", "$kind"])
def test_a_key_with_unusual_letters_is_named_as_it_is(key: str) -> None:
    assert f"{key}: unknown key" in complaint({key: "tls"})


@pytest.mark.parametrize("key", ["Epochs", "my epochs"])
def test_a_nested_key_with_unusual_letters_is_named_as_it_is(key: str) -> None:
    assert f"mine.yaml: schedule.{key}: unknown key; did you mean 'epochs'?" in complaint({"schedule": {key: 1}})


@pytest.mark.parametrize("key", [3, 1.5, True, None])
def test_a_key_that_is_no_string_is_refused_by_place(key: Any) -> None:
    assert complaint({key: 1}).startswith("mine.yaml: ")
    assert "schedule" in complaint({"schedule": {key: 1}})


def test_a_union_complains_about_the_form_that_was_meant() -> None:
    """A mapping was meant as a Link: that it is no string either is no help, and `link.str` is no key of the file."""
    text = complaint({"groups": [{"profile": "a", "link": {"up_bps": -1}}]})
    assert text == "mine.yaml: groups[0].link.up_bps: input should be greater than 0 (found -1)"


class Menu(Section):
    dishes: list[str | dict[str, Any]] = []


def test_the_branches_of_a_union_in_a_list_are_no_keys() -> None:
    with pytest.raises(ConfigError) as caught:
        validated(Menu, {"dishes": ["soup", 5]}, "mine.yaml")
    assert str(caught.value).splitlines() == [
        "mine.yaml: dishes[1]: input should be a valid string (found 5)",
        "mine.yaml: dishes[1]: input should be a valid dictionary (found 5)",
    ]

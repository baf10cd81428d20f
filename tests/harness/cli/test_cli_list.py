"""ammeter list profiles and ammeter show: how firm a device is, what a network carries, which steps were timed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from harness.cli import main as command
from profiles import library


def answer(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    capsys.readouterr()
    assert command.main([*words, "--format", "json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_list_profiles_says_how_firm_devices_are_and_what_networks_carry(capsys: pytest.CaptureFixture[str]) -> None:
    rows = {row["profile"]: row for row in answer(capsys, "list", "profiles")}
    assert set(rows) == {*library.devices(), *library.networks()}
    pi, scalar, network = rows["rpi-5-8g"], rows["desktop-ryzen-5600x"], rows["wifi-ac-pi4"]
    assert (pi["kind"], pi["tier"], pi["memory"]) == ("cpu", "roofline", "8 GiB")
    assert pi["measured"] == sum(row.status == "measured" for row in library.describe("rpi-5-8g"))
    assert (scalar["tier"], rows["jetson-nano-4g/5w"]["kind"]) == ("scalar", "gpu")
    assert (network["kind"], network["up"], network["rtt"], network["shared"]) == ("network", "108 Mb/s", "4 ms", "yes")
    assert network["tier"] == ""


def test_people_get_a_table_of_devices_and_one_of_networks(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["list", "profiles"]) == 0
    out = capsys.readouterr().out
    first, second = (line for line in out.splitlines() if line.strip().startswith("profile "))
    assert {"tier", "memory", "measured", "inferred", "recalled"} <= set(first.split())
    assert {"up", "down", "rtt", "shared"} <= set(second.split())


def test_show_prints_the_measured_steps(capsys: pytest.CaptureFixture[str]) -> None:
    rows = {row["figure"]: row for row in answer(capsys, "show", "rpi-4-8g")}
    step = rows["step of vit-base 3x224x224, batch 16"]
    assert (step["value"], step["unit"], step["status"]) == (57.41, "s", "measured")
    assert step["source"]


@pytest.mark.parametrize(
    ("profile", "said"),
    [
        ("rpi-9", "'rpi-9' is no device or network profile; did you mean"),
        ("jetson-tx2", "'jetson-tx2' has power modes; name one: 'jetson-tx2/maxn'"),
        ("jetson-tx2/50w", "'jetson-tx2' has no power mode '50w'; it has 'maxn', 'maxq'"),
    ],
)
def test_a_profile_that_is_none_is_one_sentence(capsys: pytest.CaptureFixture[str], profile: str, said: str) -> None:
    assert command.main(["show", profile]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert len(err.strip().splitlines()) == 1

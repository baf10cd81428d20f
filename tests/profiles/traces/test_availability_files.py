"""profiles/traces/availability.py: when devices are there, read and refused; and the real table."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from harness.errors import ProfileError
from profiles.traces import library
from profiles.traces.availability import Availability, read

HEADER = "user,trace_start_s,trace_end_s,ready_from_s,ready_to_s\n"


def test_a_table(tmp_path: Path):
    """Times count from the trace's start; of no length is left out; what touches is one; a user never there is none."""
    rows = "7,100,200,110,120\n7,100,200,130,130\n7,100,200,140,150\n7,100,200,150,160\n8,0,10,5,5\n"
    path = tmp_path / "a.csv"
    path.write_text(HEADER + rows)
    found = read(path)
    assert {name: (log.intervals_s, log.period_s) for name, log in found.items()} == {
        "7": (((10.0, 20.0), (40.0, 60.0)), 100.0)
    }


@pytest.mark.parametrize("form", ["json", "pickle"])
def test_fedscales_form(tmp_path: Path, form: str):
    value = {"3": {"active": [5, 50], "inactive": [20, 60], "finish_time": 100, "duration": 25, "model": "x"}}
    path = tmp_path / f"a.{form}"
    path.write_bytes(json.dumps(value).encode() if form == "json" else pickle.dumps(value))
    (log,) = read(path).values()
    assert (log.intervals_s, log.period_s) == (((5.0, 20.0), (50.0, 60.0)), 100.0)


def test_the_real_table():
    root = os.environ.get("AMMETER_DATA")
    if not root or not (Path(root) / "device-info").is_dir():
        pytest.skip("no real logs: set AMMETER_DATA to a folder that has device-info")
    found = library.presence(Path(root) / "device-info" / "phone_availability.csv.gz")
    assert len(found) == 704
    shares = [sum(b - a for a, b in log.intervals_s) / (log.period_s or 1.0) for log in found.values()]
    assert sum(shares) / len(shares) == pytest.approx(0.0958, abs=1e-3)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("", "no device in it is ever there"),
        ("7,100,200,110\n", "a.csv:2: has 4 columns"),
        ("7,100,200,110,x\n", "a.csv:2: ready_to_s 'x' is not a number"),
        ("7,100,200,110,250\n", "a.csv:2: 110 s to 250 s is not within the trace"),
        ("7,100,200,90,150\n", "a.csv:2: 90 s to 150 s is not within the trace"),
        ("7,100,200,150,140\n", "a.csv:2: 150 s to 140 s is not within"),
        ("7,100,200,110,150\n7,100,200,140,160\n", "a.csv:3: 140 s to 160 s .* before the interval above has ended"),
        ("7,100,200,110,150\n7,100,300,160,170\n", "a.csv:3: user 7 has another trace_start_s or trace_end_s"),
    ],
)
def test_a_wrong_table_is_refused_by_line(tmp_path: Path, rows: str, said: str):
    path = tmp_path / "a.csv"
    path.write_text(HEADER + rows)
    with pytest.raises(ProfileError, match=said):
        read(path)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"active": [1], "inactive": [2, 3], "finish_time": 9}, "1 times in `active` and 2 in `inactive`"),
        ({"active": [1], "finish_time": 9}, "inactive: is missing, or no list of seconds"),
        ({"active": [1], "inactive": [2]}, "finish_time: None is not a number"),
        ({"active": [1], "inactive": [20], "finish_time": 9}, "ends at 20 s, after the period of 9 s"),
        (
            {"active": [1, 3], "inactive": [4, 5], "finish_time": 9},
            "3 s to 5 s .* begins before the interval before it",
        ),
    ],
)
def test_a_wrong_mapping_is_refused(tmp_path: Path, entry: Any, said: str):
    (tmp_path / "a.json").write_text(json.dumps({"c": entry}))
    with pytest.raises(ProfileError, match=f"client c: (.*)?{said}"):
        read(tmp_path / "a.json")


def test_an_availability_is_in_order_and_not_empty():
    assert Availability("d", ((0.0, 9.0),), 9.0).always
    assert not Availability("d", ((0.0, 9.0),)).always
    for intervals in ((), ((2.0, 1.0),), ((-1.0, 1.0),), ((0.0, 1.0), (1.0, 2.0))):
        with pytest.raises(ProfileError):
            Availability("d", intervals, 10.0)

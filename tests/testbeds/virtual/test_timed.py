"""testbeds/virtual/timed.py and `timings`: computations that cost what was measured, and how many do.

Also that a computation has one digest in both modes, whatever the method: else a file of a real run fits no other.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from harness import experiment
from harness.cost.key import digest
from harness.errors import ConfigError
from harness.experiment import RunSpec
from harness.record import TIERS, Recorder
from harness.run import execute
from harness.testbed import Outcome
from testbeds._fleet.timings import Timing, Timings, write
from testbeds.virtual.run import build, pinned_threads
from testbeds.virtual.timed import coverage

METHODS: dict[str, Any] = {
    "fedavg": "fedavg",
    "null": "null",
    "sl": {"name": "sl", "split_point": 1},
    "splitfed_v1": {"name": "splitfed_v1", "split_point": 2},
    "splitfed_v2": {"name": "splitfed_v2", "split_point": 2},
    "ampere": {"name": "ampere", "split_point": 1, "server_epochs": 1},
    "ampere, half precision, on disk, with patience": {
        "name": "ampere",
        "split_point": 1,
        "server_epochs": 1,
        "activation_dtype": "float16",
        "store": "disk",
        "patience": 2,
    },
}


def spec(method: Any = "fedavg", mode: str = "timing", **bed: Any) -> RunSpec:
    """Two unequal devices, two rounds."""
    (found,) = experiment.runs(
        experiment.parse(
            {
                "name": "timed",
                "mode": mode,
                "seeds": [3],
                "task": {
                    "data": "digits",
                    "model": "vgg-5",
                    "partition": {"kind": "dirichlet", "alpha": 1.0, "samples": 70},
                    "test_samples": 8,
                    "validation_samples": 10,
                },
                "training": {"rounds": 2, "batch_size": 16},
                "methods": [copy.deepcopy(method)],
                "testbed": {
                    "devices": [{"profile": "rpi-4-4g"}, {"profile": "jetson-nano-4g/5w"}],
                    "network": {"up_bps": 1e6, "down_bps": 3e6},
                    **bed,
                },
            }
        )
    )
    return found


def computed(method: Any, mode: str) -> dict[str, str]:
    """The digest and name of everything that a run computes."""
    found = spec(method, mode)
    driver, _, _ = build(found, Recorder())
    with pinned_threads(1):
        driver.run(found.method.ends)
    names = {digest(key): entry.name for key, entry in driver.prices.entries.items()}
    assert {entry.digest for entry in driver.prices.entries.values()} == set(names)
    assert len(names) == len(driver.prices.entries)
    return names


@pytest.mark.parametrize("name", METHODS)
def test_a_computation_has_one_digest_in_both_modes(name: str):
    assert computed(METHODS[name], "timing") == computed(METHODS[name], "learn")


# ---- what is measured is what it costs ------------------------------------------------------------------------------


def played(found: RunSpec) -> tuple[Outcome, dict[str, list[tuple[str, float, str]]]]:
    """The outcome, and each node's computations: name, seconds, tier."""
    recorder = Recorder()
    outcome = execute(found, recorder)
    rows: dict[str, list[tuple[str, float, str]]] = {}
    for row in recorder.arrays()["compute"]:
        seconds = round(float(row["end_s"] - row["start_s"]), 9)
        rows.setdefault(recorder.names[row["node"]], []).append(
            (recorder.names[row["what"]], seconds, TIERS[row["tier"]])
        )
    return outcome, rows


def measured(name: str, seconds: float, *nodes: str) -> Timings:
    """All computations of that name, on these nodes."""
    known = {digest_: Timing(name, seconds, 5) for digest_, what in computed("fedavg", "learn").items() if what == name}
    assert known
    return dict.fromkeys(nodes, known)


@pytest.mark.parametrize("mode", ["timing", "learn"])
def test_what_is_in_the_file_costs_that_and_the_rest_what_the_profile_says(tmp_path: Path, mode: str):
    write(tmp_path / "t.json", measured("step", 7.5, "device-1"))
    plain, before = played(spec(mode=mode))
    outcome, after = played(spec(mode=mode, timings=str(tmp_path / "t.json")))
    assert after["device-0"] == before["device-0"]
    assert after["server"] == before["server"]
    assert [name for name, _, _ in after["device-1"]] == [name for name, _, _ in before["device-1"]]
    steps = [row for row in after["device-1"] if row[0] == "step"]
    assert set(steps) == {("step", 7.5, "measured")}
    others, others_before = ([row for row in rows["device-1"] if row[0] != "step"] for rows in (after, before))
    assert others == others_before
    assert others
    total = sum(seconds for rows in after.values() for _, seconds, _ in rows)
    notes = outcome.notes["timings"]
    assert notes["share"] == pytest.approx(7.5 * len(steps) / total, rel=1e-6)
    assert 0 < notes["known"] < notes["computations"]
    assert "timings" not in plain.notes
    assert outcome.end_s > plain.end_s


def test_a_run_of_which_everything_was_measured_rests_on_the_file(tmp_path: Path):
    everything = {d: Timing(name, 0.5, 1) for d, name in computed("fedavg", "learn").items()}
    write(tmp_path / "t.json", dict.fromkeys(("device-0", "device-1", "server"), everything))
    outcome, rows = played(spec(timings=str(tmp_path / "t.json")))
    assert outcome.notes["timings"]["known"] == outcome.notes["timings"]["computations"] > 5
    assert outcome.notes["timings"]["share"] == 1.0
    assert {row[1:] for found in rows.values() for row in found} == {(0.5, "measured")}


def test_what_a_crash_cuts_off_is_counted_up_to_it(tmp_path: Path):
    write(tmp_path / "t.json", measured("step", 1000.0, "device-0"))
    found = spec(timings=str(tmp_path / "t.json"), faults=[{"node": "device-0", "at_s": 100.0}])
    outcome, rows = played(found)
    cut = rows["device-0"][-1][1]
    assert 0 < cut < 100
    total = sum(seconds for found_ in rows.values() for _, seconds, _ in found_)
    assert outcome.notes["timings"]["share"] == pytest.approx(cut / total, rel=1e-6)


def test_a_file_of_other_computations_changes_nothing_and_says_so(tmp_path: Path):
    write(tmp_path / "t.json", {"server": {"0" * 16: Timing("step", 99.0, 1)}})
    plain, before = played(spec())
    outcome, after = played(spec(timings=str(tmp_path / "t.json")))
    assert (after, outcome.end_s) == (before, plain.end_s)
    notes = outcome.notes["timings"]
    assert (notes["known"], notes["share"]) == (0, 0.0)


def test_a_computation_counts_once_on_every_node_that_makes_it(tmp_path: Path):
    (known,) = computed("null", "timing")
    write(tmp_path / "t.json", {"device-1": {known: Timing("nothing", 0.25, 1)}})
    outcome, rows = played(spec("null", timings=str(tmp_path / "t.json")))
    assert max(map(len, rows.values())) > 1
    assert (outcome.notes["timings"]["computations"], outcome.notes["timings"]["known"]) == (len(rows), 1)
    assert "device-1" in rows


def test_where_nothing_was_computed_the_share_is_nothing():
    assert coverage([]) == {"computations": 0, "known": 0, "share": 0.0}


# ---- part of what a run is ------------------------------------------------------------------------------------------


def test_the_content_of_the_file_decides_the_id_and_its_absence_leaves_it_alone(tmp_path: Path):
    path = tmp_path / "t.json"
    write(path, measured("step", 1.0, "server"))
    once = spec(timings=str(path)).id
    assert spec(timings=str(path)).id == once
    write(path, measured("step", 2.0, "server"))
    assert len({spec(timings=str(path)).id, once, spec().id}) == 3
    assert "timings" not in spec().resolved()["testbed"]
    assert spec(timings=str(path)).resolved()["testbed"]["timings"] == str(path)


def test_it_is_looked_for_in_the_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AMMETER_DATA", str(tmp_path))
    write(tmp_path / "t.json", measured("step", 7.5, "device-1"))
    assert played(spec(timings="t.json"))[0].notes["timings"]["known"] > 0


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        (None, r"testbed.timings: .*t\.json: no such file"),
        ([], r"testbed.timings: .*t\.json: nodes: input should be an object"),
        ({"device-2": {}}, r"testbed.timings: .*t\.json: nodes: 'device-2' is no node here; did you mean 'device-"),
    ],
)
def test_a_bad_file_is_refused_by_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nodes: Any, said: str):
    monkeypatch.setenv("AMMETER_DATA", str(tmp_path))
    if nodes is not None:
        (tmp_path / "t.json").write_text(json.dumps({"format": 1, "nodes": nodes}))
    with pytest.raises(ConfigError, match=said):
        spec(timings="t.json")

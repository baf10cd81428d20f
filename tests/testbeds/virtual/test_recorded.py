"""testbeds/virtual/recorded.py and config.py: availability checked before a run, and recorded rates in a run."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from recorded_rates import CSV, write_rates

from harness import experiment, testbed
from harness.errors import AmmeterError, ConfigError, ProfileError
from harness.record import Recorder
from harness.run import execute

DEVICE = {"profile": "rpi-4-4g", "count": 3}


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder with recorded rates."""
    write_rates(tmp_path / "data")
    monkeypatch.setenv("AMMETER_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


# ---- refusals, by key -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"availability": {}}, "testbed.availability: give a `file` of logs, or `devices`"),
        ({"availability": {"file": "no.csv"}}, "x: testbed.availability: no.csv: no such file"),
        ({"availability": {"file": "t.csv"}}, "x: testbed.availability: .*t.csv: does not begin with a line user,"),
        ({"availability": {"devices": {"device-9": [[0, 1]]}}}, "availability.devices: 'device-9' is no device"),
        (
            {"availability": {"devices": {"device-0": [[1, 0]]}}},
            "x: testbed.availability: devices.device-0: 1 s to 0 s",
        ),
        ({"availability": {"devices": {"device-0": []}}}, "x: testbed.availability: devices.device-0: is never there"),
        (
            {"availability": {"devices": {"device-0": [[0, 1]]}}, "faults": [{"node": "device-0", "at_s": 3}]},
            r"x: testbed.faults\[0\].node: device-0 comes and goes as `availability` says",
        ),
    ],
)
@pytest.mark.usefixtures("data")
def test_what_is_wrong_is_said_by_key_before_anything_runs(section: dict[str, Any], said: str):
    with pytest.raises(AmmeterError, match=said) as caught:
        testbed.configured({"devices": [DEVICE], **section}, "x")
    assert isinstance(caught.value, ConfigError | ProfileError)


# ---- in an experiment -----------------------------------------------------------------------------------------------


def digests(sweep: dict[str, Any], seeds: list[int], root: Path | None = None) -> list[str]:
    parsed = experiment.parse(
        {
            "name": "recorded",
            "mode": "timing",
            "seeds": seeds,
            "task": {"data": "digits", "model": "vgg-5", "partition": {"samples": 96}, "test_samples": 8},
            "training": {"rounds": 2, "batch_size": 16},
            "methods": ["splitfed_v2"],
            "testbed": {
                "devices": [DEVICE],
                "network": {"up_trace": CSV | {"column": "down_kbps"}, "down_trace": CSV, "latency_s": 0.01},
                "server": {"network": {"up_bps": 1e6, "down_bps": 1e6}},
            },
            "sweep": sweep,
        }
    )
    found = []
    for spec in experiment.runs(parsed):
        recorder = Recorder()
        outcome = execute(spec, recorder, root)
        assert outcome.notes["sharing"] == "star"
        hashed = hashlib.sha256(repr(outcome.end_s).encode())
        for array in recorder.arrays().values():
            hashed.update(array.tobytes())
        found.append(hashed.hexdigest())
    return found


@pytest.mark.usefixtures("data")
def test_the_same_seed_plays_the_same_run_and_constant_another():
    """One experiment sweeps trace against constant."""
    sweep = {"testbed.network.playback": ["trace", "constant"], "testbed.network.offset": ["random", 0]}
    once = digests(sweep, [1, 2])
    assert once == digests(sweep, [1, 2])
    trace_random, trace_0 = once[0:2], once[2:4]
    constant_random, constant_0 = once[4:6], once[6:8]
    assert constant_random == constant_0  # a mean has no beginning
    assert len({*trace_random, *trace_0, *constant_random}) == 6

"""testbeds/virtual/recorded.py and config.py: traces in an experiment, drawn from the seed, checked before a run."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from harness import experiment, testbed
from harness.errors import AmmeterError, ConfigError, ProfileError
from harness.record import Recorder
from harness.run import execute
from testbeds.virtual.config import Config, check
from testbeds.virtual.machines import machines, topology
from testbeds.virtual.recorded import resolved, schedule
from testbeds.virtual.sections import Link

DEVICE = {"profile": "rpi-4-4g", "count": 3}


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder with a table of ten traces, and one trace in each other form."""
    rows = [
        f"s,t{i},{'bus' if i % 2 else 'foot'},{1000 * k},1000,{100 * (i + 1) + 50 * k},{10 * (i + 1) + k}\n"
        for i in range(10)
        for k in range(4)
    ]
    root = tmp_path / "data"
    root.mkdir()
    (root / "t.csv").write_text("source,trace,mode,t_ms,duration_ms,down_kbps,up_kbps\n" + "".join(rows))
    (root / "m.up").write_text("\n".join(str(7 * i) for i in range(1, 400)))
    (root / "p.txt").write_text("0 1\n1 1\n2 0\n3 4\n")
    (root / "bad.txt").write_text("0 1\n1 -1\n")
    monkeypatch.setenv("AMMETER_DATA", str(root))
    return root


def bed(network: Any, **settings: Any) -> Config:
    return Config(devices=[DEVICE], network=network, **settings)  # type: ignore[list-item]


def drawn(network: Any, seed: int = 1) -> list[tuple[Any, ...]]:
    """(trace, offset) of each device's up- and downlink; the rate where it is constant."""
    config = bed(network)
    found = machines(config, topology(config), seed)
    links = [link for name in topology(config).devices for link in (found[name].up, found[name].down)]
    return [
        (link.rate,) if link.schedule is None else (link.schedule.trace.name, link.schedule.offset_s) for link in links
    ]


CSV = {"file": "t.csv", "format": "csv", "source": "s"}


@pytest.mark.usefixtures("data")
def test_every_device_draws_a_trace_and_a_beginning_from_the_seed():
    network = {"up_trace": CSV, "down_trace": CSV}
    once, again, other = drawn(network), drawn(network), drawn(network, seed=2)
    assert once == again
    assert once != other
    assert len(set(once)) == 3  # both directions of a device are the same recording from the same moment
    assert once[::2] == once[1::2]


def test_an_offset_may_be_given_and_a_trace_named(data: Path):
    network = {"down_trace": CSV | {"name": "t3"}, "up_bps": 8e6, "offset": 1.5}
    assert drawn(network)[:2] == [(1e6,), (f"{data / 't.csv'}: t3", 1.5)]
    assert {name for name, _ in drawn({"up_bps": 8, "down_trace": CSV | {"mode": "bus"}})[1::2]} <= {
        f"{data / 't.csv'}: t{i}" for i in (1, 3, 5, 7, 9)
    }


@pytest.mark.usefixtures("data")
def test_constant_playback_keeps_the_mean_of_the_same_trace():
    network: dict[str, Any] = {"down_trace": CSV, "up_bps": 8.0}
    config, flat = bed(network), bed(network | {"playback": "constant"})
    played, constant = machines(config, topology(config), 5), machines(flat, topology(flat), 5)
    for name in ("device-0", "device-1", "device-2"):
        found = played[name].down.schedule
        assert found is not None
        assert constant[name].down.schedule is None
        assert constant[name].down.rate == found.trace.mean_bps / 8


@pytest.mark.usefixtures("data")
def test_a_direction_reads_its_own_column_unless_told_otherwise():
    link = Link.model_validate({"up_trace": CSV | {"name": "t0"}, "down_trace": CSV | {"name": "t0"}})
    ups, downs = schedule(link, "up", "n", 1), schedule(link, "down", "n", 1)
    assert ups is not None
    assert downs is not None
    assert (ups.trace.max_bps, downs.trace.max_bps) == (13e3, 250e3)
    stand_in = Link.model_validate({"up_trace": CSV | {"name": "t0", "column": "down_kbps"}})
    assert schedule(stand_in, "up", "n", 1).trace.max_bps == 250e3  # type: ignore[union-attr]


@pytest.mark.usefixtures("data")
def test_other_forms_and_steps():
    assert drawn({"up_trace": {"file": "m.up", "format": "mahimahi"}, "offset": 0.5})[0] == ("m.up", 0.5)
    assert drawn({"up_trace": {"file": "p.txt", "format": "pensieve", "step_s": 3.0}})[0] == (5e6 / 3 / 8,)


def test_where_files_are_looked_for(data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    assert resolved("t.csv") == data / "t.csv"
    (tmp_path / "t.csv").write_text("nearer")
    assert resolved("t.csv") == Path("t.csv")
    assert resolved(str(data / "t.csv")) == data / "t.csv"
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "x").write_text("")
    assert resolved("x", tmp_path / "more") == tmp_path / "more" / "x"
    with pytest.raises(ProfileError, match=r"y: no such file here, nor in .*data; check the path"):
        resolved("y")
    monkeypatch.delenv("AMMETER_DATA")
    with pytest.raises(ProfileError, match="y: no such file here, and no data folder is given; set AMMETER_DATA"):
        resolved("y")


def test_the_files_of_a_testbed_are_known(data: Path):
    config = bed(
        {"up_trace": CSV, "down_trace": CSV}, server={"network": {"up_trace": {"file": "p.txt", "format": "pensieve"}}}
    )
    assert config.files() == {"p.txt": data / "p.txt", "t.csv": data / "t.csv"}
    assert bed("lte").files() == {}


# ---- refusals, by key -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "said"),
    [
        (
            {"network": {"up_trace": {"file": "no.txt", "format": "pensieve"}}},
            "x: testbed.network.up_trace: no.txt: no such",
        ),
        (
            {"network": {"down_trace": {"file": "bad.txt", "format": "pensieve"}}},
            r"x: testbed.network.down_trace: .*bad.txt:2: rate -1 is negative",
        ),
        (
            {"devices": [DEVICE, DEVICE | {"network": {"down_trace": CSV | {"name": "t33"}}}]},
            r"x: testbed.devices\[1\].network.down_trace: .*t.csv: has no trace 't33'; did you mean 't3'",
        ),
        (
            {"server": {"network": {"down_trace": CSV | {"source": "r"}}}},
            r"x: testbed.server.network.down_trace: .*has no source 'r'",
        ),
        (
            {"edges": {"lan": {"up_trace": CSV | {"mode": "ship"}}}},
            r"x: testbed.edges.lan.up_trace: .*no trace has the mode 'ship'",
        ),
        ({"network": {"up_trace": CSV, "up_bps": 5}}, "testbed.network: give up_bps or up_trace, not both"),
        (
            {"network": {"up_trace": {"file": "m.up", "format": "mahimahi", "source": "s"}}},
            "testbed.network.up_trace: `source` is for csv; a mahimahi file has none",
        ),
        (
            {"network": {"up_trace": {"file": "p.txt", "format": "pensieve", "name": "s"}}},
            "testbed.network.up_trace: `name` chooses among several traces; a pensieve file has one",
        ),
        ({"network": {"up_trace": {"file": "p.txt", "format": "pensive"}}}, r"testbed.network.up_trace.format"),
        ({"network": {"up_bps": 5, "offset": -1}}, "testbed.network.offset"),
        ({"network": {"up_bps": 5, "playback": "fast"}}, "testbed.network.playback"),
        (
            {"medium": "shared", "network": {"up_bps": 5}},
            "x: testbed.medium: a shared medium needs the network's up_bps",
        ),
        (
            {"devices": [DEVICE | {"medium": "shared"}], "network": {"up_trace": CSV}},
            r"x: testbed.devices\[0\].medium: a shared medium has a constant rate",
        ),
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


def test_check_looks_in_the_folder_it_is_told(data: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("AMMETER_DATA")
    config = bed({"up_trace": CSV})
    check(config, "x", data)
    with pytest.raises(ProfileError, match="set AMMETER_DATA"):
        check(config, "x")


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

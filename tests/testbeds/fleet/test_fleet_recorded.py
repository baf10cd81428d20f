"""testbeds/_fleet/recorded.py: traces of links, drawn from the seed, checked before a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from recorded_rates import CSV, write_rates

from harness import testbed
from harness.errors import AmmeterError, ConfigError, ProfileError
from testbeds._fleet.config import Fleet, check_fleet
from testbeds._fleet.links import node_links, topology
from testbeds._fleet.recorded import resolved, schedule
from testbeds._fleet.sections import Link

DEVICE = {"profile": "rpi-4-4g", "count": 3}


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder with recorded rates."""
    write_rates(tmp_path / "data")
    monkeypatch.setenv("AMMETER_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def bed(network: Any, **settings: Any) -> Fleet:
    return Fleet(devices=[DEVICE], network=network, **settings)  # type: ignore[list-item]


def drawn(network: Any, seed: int = 1) -> list[tuple[Any, ...]]:
    """(trace, offset) of each device's up- and downlink; the rate where it is constant."""
    config = bed(network)
    found = node_links(config, topology(config), seed)
    links = [found[name] for name in topology(config).devices]
    ways = [way for link in links for way in ((link.up_bps, link.up), (link.down_bps, link.down))]
    return [(bps,) if played is None else (played.trace.name, played.offset_s) for bps, played in ways]


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
    assert drawn(network)[:2] == [(8e6,), (f"{data / 't.csv'}: t3", 1.5)]
    assert {name for name, _ in drawn({"up_bps": 8, "down_trace": CSV | {"mode": "bus"}})[1::2]} <= {
        f"{data / 't.csv'}: t{i}" for i in (1, 3, 5, 7, 9)
    }


@pytest.mark.usefixtures("data")
def test_constant_playback_keeps_the_mean_of_the_same_trace():
    network: dict[str, Any] = {"down_trace": CSV, "up_bps": 8.0}
    config, flat = bed(network), bed(network | {"playback": "constant"})
    played, constant = node_links(config, topology(config), 5), node_links(flat, topology(flat), 5)
    for name in ("device-0", "device-1", "device-2"):
        found = played[name].down
        assert found is not None
        assert constant[name].down is None
        assert constant[name].down_bps == played[name].down_bps == found.trace.mean_bps


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
    assert drawn({"up_trace": {"file": "p.txt", "format": "pensieve", "step_s": 3.0}})[0] == (5e6 / 3,)


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
    check_fleet(config, "x", data)
    with pytest.raises(ProfileError, match="set AMMETER_DATA"):
        check_fleet(config, "x")

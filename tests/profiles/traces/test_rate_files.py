"""profiles/traces: the forms in which rates are published, read and refused; and the real tables."""

from __future__ import annotations

import gzip
import json
import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import ProfileError
from profiles.traces import fedscale, library, mahimahi, pensieve, plain, table

HEADER = "source,trace,mode,t_ms,duration_ms,down_kbps,up_kbps\n"


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def real() -> Path:
    """The data folder with the published traces."""
    found = os.environ.get("AMMETER_DATA")
    if not found or not (Path(found) / "network-traces").is_dir():
        pytest.skip("no real traces: set AMMETER_DATA to a folder that has network-traces")
    return Path(found) / "network-traces" / "network_traces.csv.gz"


# ---- Mahimahi -------------------------------------------------------------------------------------------------------


def test_mahimahi_counts_opportunities_per_step(tmp_path: Path):
    """3 in the first second (that at 1000 ms is its last moment), none in the second, 1 in the half that is left."""
    found = mahimahi.read(written(tmp_path, "x.up", "0\n500\n1000\n2500\n"))
    assert (found.times_s, found.period_s) == ((0.0, 1.0, 2.0), 2.5)
    assert found.rates_bps == (3 * 12_000, 0, 24_000)
    fine = mahimahi.read(tmp_path / "x.up", step_s=0.5)
    assert fine.rates_bps == (2 * 24_000, 24_000, 0, 24_000)


@given(st.lists(st.integers(0, 9_000), min_size=1, max_size=80).map(sorted), st.sampled_from([0.1, 0.3, 1.0, 60.0]))
@settings(max_examples=50, deadline=None)
def test_mahimahi_loses_no_packet(tmp_path_factory: pytest.TempPathFactory, times: list[int], step_s: float):
    times[-1] = max(times[-1], 1)
    path = written(tmp_path_factory.mktemp("m"), "x", "\n".join(map(str, times)))
    found = mahimahi.read(path, step_s)
    assert found.period_s == times[-1] / 1000
    assert found.bytes_between(0.0, found.period_s) == pytest.approx(1500 * len(times), rel=1e-9)


# ---- Pensieve -------------------------------------------------------------------------------------------------------


def test_pensieve_rates_hold_up_to_their_time(tmp_path: Path):
    found = pensieve.read(written(tmp_path, "x", "0.5 9.9\n1.5 2.0\n4.5 0\n"))
    assert (found.times_s, found.rates_bps, found.period_s) == ((0.0, 1.0), (2e6, 0.0), 4.0)


# ---- the table ------------------------------------------------------------------------------------------------------


def test_a_table_holds_many_traces(tmp_path: Path):
    rows = "s,a,,0,1000,5,1\ns,a,,1000,500,7,2\ns,b,,0,1000,9,\nother,c,,0,1000,3,\n"
    found = table.read(written(tmp_path, "t.csv", HEADER + rows), "s")
    assert {name: (t.times_s, t.rates_bps, t.period_s) for name, t in found.items()} == {
        "a": ((0.0, 1.0), (5000.0, 7000.0), 1.5),
        "b": ((0.0,), (9000.0,), 1.0),
    }
    with pytest.raises(ProfileError, match=r"t\.csv:4: up_kbps of s is empty: it was not measured"):
        table.read(tmp_path / "t.csv", "s", column="up_kbps")


def test_a_zipped_table_reads_the_same(tmp_path: Path):
    text = HEADER + "s,a,,0,1000,5,1\n"
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(text.encode()))
    assert table.read(tmp_path / "t.csv.gz")["a"].rates_bps == (5000.0,)
    (tmp_path / "half.csv.gz").write_bytes(gzip.compress(text.encode())[:-9])
    with pytest.raises(ProfileError, match="no whole gzip file"):
        table.read(tmp_path / "half.csv.gz")
    (tmp_path / "no.csv.gz").write_text(text)
    with pytest.raises(ProfileError, match="cannot be read: Not a gzipped file"):
        table.read(tmp_path / "no.csv.gz")


def test_modes_choose_traces(tmp_path: Path):
    rows = "s,a,static/download,0,1000,5,1\ns,b,static/video,0,1000,7,2\n"
    path = written(tmp_path, "t.csv", HEADER + rows)
    assert list(table.read(path, "s", "*/video")) == ["b"]
    assert list(table.read(path, "s")) == ["a", "b"]
    with pytest.raises(ProfileError, match="no trace has the mode 'static/downlod'; did you mean 'static/download'"):
        table.read(path, "s", "static/downlod")


def test_what_is_known_of_the_irish_5g_set(tmp_path: Path):
    """Only its downloads load the link, and its up column is no capacity."""
    rows = "ireland-5g,a,static/download,0,1000,5,1\nireland-5g,b,static/netflix,0,1000,7,2\n"
    path = written(tmp_path, "t.csv", HEADER + rows)
    assert list(table.read(path, "ireland-5g")) == ["a"]
    assert list(table.read(path, "ireland-5g", "*")) == ["a", "b"]
    with pytest.raises(ProfileError, match="ireland-5g has no uplink: its up_kbps is the stream of acknowledgements"):
        table.read(path, "ireland-5g", column="up_kbps")


def test_the_real_table(real: Path):
    means = {}
    for source in ("norway-3g-hsdpa", "ghent-4g-lte", "ireland-5g"):
        found = library.rates(real, "csv", source)
        means[source] = (len(found), round(sum(t.mean_bps for t in found.values()) / len(found) / 1000))
    assert means["norway-3g-hsdpa"] == (86, 1150)
    assert means["ghent-4g-lte"] == (40, 31431)
    assert means["ireland-5g"][0] == 21
    trains = library.rates(real, "csv", "ghent-4g-lte", "train")
    assert trains
    assert all(name.startswith("report_train") for name in trains)
    with pytest.raises(ProfileError, match="has several sources; name one: norway-3g-hsdpa, ghent-4g-lte"):
        library.rates(real, "csv")


# ---- refusals, by line ----


@pytest.mark.parametrize(
    ("form", "text", "said"),
    [
        ("mahimahi", "", "x: has no delivery opportunity"),
        ("mahimahi", "0\n0\n", "x: has no delivery opportunity after 0 ms"),
        ("mahimahi", "5\n\n4\n", "x:3: time goes back from 5 ms to 4 ms"),
        ("mahimahi", "5\n-4\n", "x:2: '-4' is no millisecond"),
        ("mahimahi", "5\nfive\n", "x:2: 'five' is no millisecond"),
        ("mahimahi", "5\n6.5\n", "x:2: '6.5' is no millisecond"),
        ("pensieve", "", "x: has fewer than two lines"),
        ("pensieve", "0 1\n", "x: has fewer than two lines"),
        ("pensieve", "0 1\n1 2\n1 3\n", r"x:3: time does not rise \(1 s to 1 s\)"),
        ("pensieve", "0 1\n2 2\n1 3\n", r"x:3: time does not rise \(2 s to 1 s\)"),
        ("pensieve", "0 1\n2 -2\n", "x:2: rate -2 is negative"),
        ("pensieve", "0 1\n2 nan\n", "x:2: rate nan is negative or not finite"),
        ("pensieve", "0 1\n2 fast\n", "x:2: rate 'fast' is not a number"),
        ("pensieve", "0 1\n2\n", "x:2: '2' is not 'seconds Mbit/s'"),
        ("pensieve", "0 1\n2 0\n3 0\n", "x: its rate is 0 from beginning to end"),
        ("csv", "", "x: is empty; the first line names the columns"),
        ("csv", HEADER, "x: has a header and nothing else"),
        ("csv", "a,b\n1,2\n", "x:1: has no column source, trace, mode"),
        ("csv", HEADER + "s,a,,0,1000,5\n", "x:2: has 6 columns and the header 7"),
        ("csv", HEADER + "s,a,,0,1000,-5,\n", "x:2: down_kbps -5 is negative"),
        ("csv", HEADER + "s,a,,0,1000,5,\ns,a,,1000,1000,fast,\n", "x:3: down_kbps 'fast' is not a number"),
        ("csv", HEADER + "s,a,,0,1000,5,\ns,a,,1500,1000,5,\n", "x:3: nothing is known from 1 s to 1.5 s"),
        ("csv", HEADER + "s,a,,0,1000,5,\ns,a,,500,1000,5,\n", "x:3: time goes back from 1 s to 0.5 s"),
        ("csv", HEADER + "s,a,,0,0,5,\n", "x:2: time does not rise"),
        ("csv", HEADER + "s,a,,0,1000,0,\ns,a,,1000,1000,0,\n", "x: a: its rate is 0 from beginning to end"),
        ("csv", HEADER + "s,a,,0,1000,5,\nr,a,,0,1000,5,\n", "x:3: the file has several sources; name one: s, r"),
    ],
)
def test_a_wrong_file_is_refused_by_line(tmp_path: Path, form: library.Format, text: str, said: str):
    with pytest.raises(ProfileError, match=said):
        library.rates(written(tmp_path, "x", text), form)


@pytest.mark.parametrize("form", ["csv", "mahimahi", "pensieve"])
def test_what_is_no_text_or_not_there_is_refused(tmp_path: Path, form: library.Format):
    (tmp_path / "x").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(ProfileError, match="x: is not UTF-8 text"):
        library.rates(tmp_path / "x", form)
    with pytest.raises(ProfileError, match="nowhere: cannot be read: No such file"):
        library.rates(tmp_path / "nowhere", form)
    with pytest.raises(ProfileError, match="is a folder"):
        library.rates(tmp_path, form)


def test_a_file_is_read_again_when_it_has_changed(tmp_path: Path):
    path = written(tmp_path, "x", "0 1\n1 2\n")
    assert library.rates(path, "pensieve")["x"].mean_bps == 2e6
    written(tmp_path, "x", "0 1\n1 30\n")
    assert library.rates(path, "pensieve")["x"].mean_bps == 30e6
    assert library.rates(path, "pensieve", step_s=0.5)["x"].mean_bps == 30e6


# ---- FedScale and plain values ----

CLIENTS: dict[Any, Any] = {1: {"computation": 54.0, "communication": 5000}, 2: {"computation": 9, "communication": 8e3}}


@pytest.mark.parametrize("name", ["capacity", "capacity.pkl", "capacity.json", "capacity.csv"])
def test_capacities_in_every_form(tmp_path: Path, name: str):
    path = tmp_path / name
    if name.endswith(".csv"):
        path.write_text("client,computation,communication\n1,54,5000\n2,9,8000\n")
    else:
        path.write_bytes(json.dumps(CLIENTS).encode() if name.endswith(".json") else pickle.dumps(CLIENTS))
    assert fedscale.read(path) == {"1": fedscale.Capacity(0.054, 5e6), "2": fedscale.Capacity(0.009, 8e6)}
    assert {name: (t.constant, t.mean_bps) for name, t in library.rates(path, "fedscale").items()} == {
        "1": (True, 5e6),
        "2": (True, 8e6),
    }


class _Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch exploded",)


@pytest.mark.parametrize("value", [_Bomb(), {"a": _Bomb()}, OrderedDict(a=1), Path("x")])
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_names_anything_is_refused_unexecuted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: Any, protocol: int
):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "p"
    path.write_bytes(pickle.dumps(value, protocol))
    with pytest.raises(ProfileError, match="is no pickle of plain values: it names"):
        plain.load(path)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("data", [b"", b"\x80", b"garbage", pickle.dumps({1: 2})[:-3]])
def test_a_broken_pickle_is_refused(tmp_path: Path, data: bytes):
    (tmp_path / "p").write_bytes(data)
    with pytest.raises(ProfileError, match=r"p: is (empty|no pickle of plain values)"):
        plain.load(tmp_path / "p")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([], r"holds no mapping with entries but \[\]"),
        ({}, "holds no mapping with entries"),
        ({True: {"computation": 1, "communication": 1}}, "key True is neither a word nor a whole number"),
        ({"a": 3}, "client a: holds no mapping"),
        ({"a": {"computation": 1}}, "client a: has no communication"),
        ({"a": {"computation": 1, "communication": "5"}}, "client a: communication: '5' is not a number"),
        ({"a": {"computation": 1, "communication": True}}, "communication: True is not a number"),
        ({"a": {"computation": -1, "communication": 5}}, "computation: -1 is negative"),
        ({"a": {"computation": 1, "communication": float("nan")}}, "communication: nan is negative or not finite"),
        ({"a": {"computation": 1, "communication": 0}}, "client a: communication is 0"),
    ],
)
def test_capacities_that_are_none(tmp_path: Path, value: Any, said: str):
    (tmp_path / "p").write_bytes(pickle.dumps(value))
    with pytest.raises(ProfileError, match=said):
        fedscale.read(tmp_path / "p")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a,b\n", "does not begin with a line client,computation,communication"),
        ("client,computation,communication\n", "has a header and nothing else"),
        ("client,computation,communication\n1,2\n", "c.csv:2: has 2 columns"),
        ("client,computation,communication\n1,2,x\n", "c.csv:2: communication 'x' is not a number"),
        ("client,computation,communication\n1,2,3\n1,2,3\n", "c.csv:3: client 1 is given twice"),
    ],
)
def test_a_table_of_capacities_that_is_none(tmp_path: Path, text: str, said: str):
    with pytest.raises(ProfileError, match=said):
        fedscale.read(written(tmp_path, "c.csv", text))


def test_json_is_refused_by_line(tmp_path: Path):
    with pytest.raises(ProfileError, match=r"c\.json:2: is not JSON"):
        plain.load(written(tmp_path, "c.json", '{"a":\n oops}'))

"""The gallery, saving, styles, units, and what importing and drawing leave alone."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import matplotlib
import pandas as pd
import pytest
from matplotlib.figure import Figure

import plots
from harness.errors import ConfigError, StoreError
from plots import gallery, selection, style, units
from plots.tables import COLUMNS, Tables

NAMES = [
    "accuracy_by_round",
    "bandwidth_sweep",
    "bytes_by_kind",
    "device_count_sweep",
    "idle_by_cause",
    "reductions",
    "summary_bars",
    "time_to_accuracy",
    "timeline",
]
ROOT = Path(plots.__file__).parents[1]


# ---- the gallery -------------------------------------------------------------------------------------------


def test_every_figure_is_found_and_says_what_it_is() -> None:
    assert gallery.names() == NAMES
    for name in NAMES:
        module = gallery.figure(name)
        assert module.TITLE
        assert module.NEEDS
        assert module.draw.__doc__
        assert f"    {name}  " in (plots.__doc__ or "")


def test_a_new_file_is_a_new_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_figure.py").write_text("TITLE = 'Mine'\n")
    monkeypatch.setattr(plots, "__path__", [*plots.__path__, str(tmp_path)])
    try:
        assert "my_figure" in gallery.names()
    finally:
        sys.modules.pop("plots.my_figure", None)
        vars(plots).pop("my_figure", None)


@pytest.mark.slow
def test_draw_all_writes_what_it_can_and_reports_the_rest(tables: Tables, tmp_path: Path) -> None:
    drawn = gallery.draw_all(tables, tmp_path / "new" / "figures")
    assert sorted(drawn.skipped) == ["bandwidth_sweep", "device_count_sweep", "reductions"]
    assert drawn.skipped["device_count_sweep"] == gallery.figure("device_count_sweep").NEEDS
    assert sorted(drawn) == sorted((tmp_path / "new" / "figures").iterdir())
    assert {path.suffix for path in drawn} == {".pdf", ".png"}
    assert len(drawn) == 2 * 6
    for path in drawn:
        assert path.stat().st_size > 5000
        assert path.read_bytes().startswith(b"%PDF" if path.suffix == ".pdf" else b"\x89PNG")


def test_draw_all_draws_only_what_is_asked_for(tables: Tables, tmp_path: Path) -> None:
    drawn = gallery.draw_all(tables, tmp_path, only=["timeline", "timeline"])
    assert [path.name for path in drawn] == ["timeline.pdf", "timeline.png"]
    assert not drawn.skipped


def test_an_unknown_figure_is_refused_before_anything_is_drawn(tables: Tables, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no figure 'timelin'; did you mean 'timeline'\?"):
        gallery.draw_all(tables, tmp_path / "figures", only=["summary_bars", "timelin"])
    assert not (tmp_path / "figures").exists()


# ---- saving ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in NAMES if not name.endswith("sweep") and name != "reductions"])
def test_drawing_and_saving_twice_gives_the_same_bytes(tables: Tables, tmp_path: Path, name: str) -> None:
    module = gallery.figure(name)
    first = style.save(module.draw(tables), tmp_path / "a", name)
    figure = module.draw(tables)
    for folder in ("b", "c"):
        for one, other in zip(first, style.save(figure, tmp_path / folder, name), strict=True):
            assert one.read_bytes() == other.read_bytes()


def test_pdfs_hold_truetype_fonts_and_no_date(tables: Tables, tmp_path: Path) -> None:
    pdf, png = style.save(gallery.figure("summary_bars").draw(tables), tmp_path, "figure")
    assert b"CreationDate" not in pdf.read_bytes()
    assert b"/Type3" not in pdf.read_bytes()
    assert b"Software" not in png.read_bytes()


def test_a_folder_that_cannot_be_written_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot write the figure .*file/sub/x: .*; choose a folder"):
        style.save(Figure(), tmp_path / "file" / "sub", "x")


def test_saving_closes_a_figure_of_pyplot(tmp_path: Path) -> None:
    from matplotlib import pyplot

    pyplot.switch_backend("agg")
    figure = pyplot.figure()
    style.save(figure, tmp_path, "x")
    assert not pyplot.get_fignums()


def test_importing_and_drawing_needs_neither_torch_nor_pyplot() -> None:
    code = (
        "import sys, plots.gallery as g, plots.tables as t; g.draw_all(t.Tables(), 'nowhere');"
        "print([m for m in ('torch', 'matplotlib.pyplot') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_drawing_leaves_the_users_settings_alone_and_is_not_changed_by_them(tables: Tables, tmp_path: Path) -> None:
    module = gallery.figure("summary_bars")
    wanted = style.save(module.draw(tables), tmp_path, "a")[1].read_bytes()
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "red"}):
        before = dict(matplotlib.rcParams)
        path = style.save(module.draw(tables), tmp_path, "b")[1]
        assert dict(matplotlib.rcParams) == before
    assert path.read_bytes() == wanted


@pytest.mark.parametrize("name", NAMES)
def test_figures_are_as_wide_as_a_column_or_two(make: Callable[..., Tables], name: str) -> None:
    sweep = {"bandwidth_sweep": {"testbed.up_bps": [1e6, 1e7]}, "device_count_sweep": {"a.count": [2, 4]}}
    sweep["reductions"] = {"training.rounds": [10, 30]}
    figure = gallery.figure(name).draw(make(seeds=1, sweep=sweep.get(name)))
    assert figure.get_figwidth() in (style.COLUMN_IN, style.PAGE_IN)
    assert figure.get_figheight() < 5


# ---- styles and units --------------------------------------------------------------------------------------


def test_series_are_told_apart_in_order_of_appearance() -> None:
    looks = style.series(["a", "b", "a", *"cdefgh"])
    assert list(looks) == list("abcdefgh")
    assert len(set(looks.values())) == 8
    assert style.series(["a", "b"])["b"] == looks["b"]
    assert looks["h"].colour == looks["a"].colour
    assert looks["h"].line != looks["a"].line


def test_causes_and_kinds_have_fixed_colours() -> None:
    assert style.cause_colours(["done", "compute"]) == {
        "compute": style.CAUSES["compute"],
        "done": style.CAUSES["done"],
    }
    found = style.kind_colours(["mine", "gradient"])
    assert list(found) == ["gradient", "mine"]
    assert found["gradient"] == style.KINDS["gradient"]
    assert found["mine"] not in style.KINDS.values()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 s"),
        (4e-5, "40.0 µs"),
        (0.25, "250 ms"),
        (179, "179 s"),
        (180, "3.00 min"),
        (36000, "10.0 h"),
    ],
)
def test_seconds_go_by_their_magnitude(value: float, text: str) -> None:
    assert units.show_seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0 B"), (64, "64 B"), (1500, "1.50 kB"), (8.6e8, "860 MB"), (2.5e12, "2.50 TB")]
)
def test_bytes_go_by_their_magnitude(value: float, text: str) -> None:
    assert units.show_bytes(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (12, "12"), (0.5, "0.5"), (1234, "1234"), (9.999, "10"), (2e7, "2e7"), (float("nan"), "–")],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert units.number(value) == text


# ---- tables ------------------------------------------------------------------------------------------------


def test_missing_tables_are_empty_ones_with_their_columns() -> None:
    tables = Tables(metrics=pd.DataFrame(), idle=pd.DataFrame(columns=["run_id", "label", "seed"]))
    assert {name: tuple(getattr(tables, name).columns) for name in COLUMNS} == COLUMNS
    assert tables.labels == []


def test_a_missing_column_is_named(tables: Tables) -> None:
    with pytest.raises(StoreError, match="the traffic table has no column 'wire_bytes'"):
        Tables(traffic=tables.traffic.drop(columns="wire_bytes"))


def test_labels_are_in_order_of_the_summary(tables: Tables) -> None:
    backwards = replace(tables, metrics=tables.metrics.iloc[::-1], traffic=tables.traffic.iloc[::-1])
    assert backwards.labels == tables.labels == ["FedAvg", "SL", "SplitFed V1", "SplitFed V2", "Ampere"]


def test_only_keeps_the_rows_of_those_runs(tables: Tables) -> None:
    kept = tables.only(["SL/None/0"])
    assert kept.labels == ["SL"]
    assert set(kept.idle["run_id"]) == {"SL/None/0"}
    assert kept.target_accuracy == tables.target_accuracy


def test_one_configuration_does_nothing_where_there_is_only_one(tables: Tables) -> None:
    swept = tables.summary.assign(**{"sweep:seed": tables.summary["seed"], "sweep:method": tables.summary["label"]})
    given = replace(tables, summary=swept)
    assert selection.one_configuration(given) == (given, "")


@pytest.mark.parametrize("as_text", [True, False])
def test_one_configuration_takes_values_that_are_dicts(make: Callable[..., Tables], as_text: bool) -> None:
    networks = [{"up_bps": 5e6}, {"up_bps": 1e7}]
    tables = make(seeds=1, sweep={"testbed.network": [json.dumps(n) if as_text else n for n in networks]})
    kept, note = selection.one_configuration(tables)
    assert len(kept.summary) == 5
    assert note == "Of the sweep: testbed network = up_bps 5 Mbit/s"

"""Tables of many runs: sums, intervals by hand, what people read, and formats that can be read back."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from bench_nodes import letter
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from small_runs import benched, record_all, resolved, tiny

from harness.errors import StoreError
from harness.node import Node
from results import tables
from results.idle import COLUMNS
from results.store import Run, Store


def _run(label: str = "A", seed: int = 1, **changes: Any) -> Run:
    """A run with a summary and no folder."""
    summary: dict[str, Any] = dict.fromkeys(tables.FIGURES, 1.0)
    summary |= {
        "run_id": f"{label}-{seed}",
        "experiment": "by-hand",
        "label": label,
        "seed": seed,
        "variant": "v1",
        "mode": "learn",
        "points": [changes.pop("sweep", {})],
        "claims": [],
        "target_accuracy": 0.9,
    }
    return Run(Path(), summary | changes)


def _compared(*runs: Run) -> pd.DataFrame:
    return tables.comparison(tables.summaries(runs))


def _presented(*runs: Run) -> dict[str, str]:
    (row,) = tables.presented(_compared(*runs)).to_dict("records")
    return row


# ---- intervals --------------------------------------------------------------------------------------------------


def test_the_interval_is_students_t_over_seeds() -> None:
    """2, 4 and 9: mean 5, deviations 9 + 1 + 16 = 26, s = sqrt(13), so the half width is t sqrt(13 / 3).

    With two degrees of freedom t(p) = (2 p - 1) / sqrt(2 p (1 - p)): 4.302653 for p = 0.975.
    """
    t = 0.95 / math.sqrt(2 * 0.975 * 0.025)
    runs = [_run(seed=seed, makespan_s=value) for seed, value in ((1, 2.0), (2, 4.0), (3, 9.0))]
    (row,) = _compared(*runs).to_dict("records")
    assert row["seeds"] == 3
    assert row["makespan_s"] == 5.0
    assert row["makespan_s ±"] == pytest.approx(t * math.sqrt(13 / 3), rel=1e-9)


def test_two_seeds_have_one_degree_of_freedom() -> None:
    """1 and 3: mean 2, s = sqrt(2), s / sqrt(2) = 1, t(0.975, 1) = tan(0.475 pi) = 12.7062."""
    (row,) = _compared(_run(seed=1, makespan_s=1.0), _run(seed=2, makespan_s=3.0)).to_dict("records")
    assert (row["makespan_s"], row["makespan_s ±"]) == (2.0, pytest.approx(math.tan(0.475 * math.pi), rel=1e-9))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("ABC"), st.none() | st.floats(-1e6, 1e6)), min_size=1, max_size=20))
def test_intervals_of_many_methods_are_those_of_each(given_runs: list[tuple[str, float | None]]) -> None:
    """Against scipy's own interval of each method's values, in whatever order the runs come."""
    runs = [_run(label, seed, makespan_s=value) for seed, (label, value) in enumerate(given_runs)]
    compared = _compared(*runs).set_index("label")
    for label in compared.index:
        values = [value for name, value in given_runs if name == label and value is not None]
        row = compared.loc[label]
        assert row["seeds"] == sum(name == label for name, _ in given_runs)
        if len(values) > 1:
            error = stats.sem(values)
            half = stats.t.ppf(0.975, len(values) - 1) * error
            assert row["makespan_s ±"] == pytest.approx(half, rel=1e-6, abs=1e-6)
        else:
            assert math.isnan(row["makespan_s ±"])
        mean = sum(values) / len(values) if values else math.nan
        assert row["makespan_s"] == pytest.approx(mean, rel=1e-9, abs=1e-6, nan_ok=True)


def test_one_seed_has_no_interval_and_no_warning() -> None:
    """Warnings are errors here: numpy's about a standard deviation of one value, for instance."""
    (row,) = _compared(_run(makespan_s=3.0)).to_dict("records")
    assert row["makespan_s"] == 3.0
    assert math.isnan(row["makespan_s ±"])
    assert _presented(_run(makespan_s=3.0))["makespan"] == "3.00 s"


def test_equal_seeds_have_an_interval_of_nothing() -> None:
    assert _presented(_run(seed=1, makespan_s=3.0), _run(seed=2, makespan_s=3.0))["makespan"] == "3.00 s"


def test_a_figure_that_some_seeds_lack_is_averaged_over_the_others() -> None:
    """Accuracy 0.5 and none: mean 0.5 without an interval."""
    (row,) = _compared(_run(seed=1, accuracy=0.5), _run(seed=2, accuracy=None)).to_dict("records")
    assert row["accuracy"] == 0.5
    assert math.isnan(row["accuracy ±"])


def test_methods_keep_their_order_and_are_not_mixed() -> None:
    runs = [_run("Z", 1, makespan_s=1.0), _run("A", 1, makespan_s=10.0), _run("Z", 2, makespan_s=2.0)]
    compared = _compared(*runs)
    assert compared["label"].tolist() == ["Z", "A"]
    assert compared["makespan_s"].tolist() == [1.5, 10.0]
    assert compared["seeds"].tolist() == [2, 1]


def test_the_same_method_in_two_experiments_is_not_two_seeds() -> None:
    """seed 1 of one experiment takes 1 s, seed 1 of another takes 100 s: no table may say 50.5 s over 2 seeds."""
    compared = _compared(_run(experiment="small", makespan_s=1.0), _run(experiment="large", makespan_s=100.0))
    assert compared["label"].tolist() == ["A (small)", "A (large)"]
    assert compared["makespan_s"].tolist() == [1.0, 100.0]
    assert compared["seeds"].tolist() == [1, 1]


def test_two_versions_of_one_experiment_are_not_two_seeds() -> None:
    """The same label and seed twice (the experiment was changed and run again): never an average of the two."""
    runs = [_run("B"), _run(variant="old", makespan_s=1.0), _run(variant="new", makespan_s=100.0)]
    compared = _compared(*runs)
    assert compared["label"].tolist() == ["B", "A (old)", "A (new)"]
    assert compared["makespan_s"].tolist() == [1.0, 1.0, 100.0]


def test_a_label_says_no_more_than_it_must() -> None:
    """Values of a sweep are variants, and stand in their own column; the method is the same."""
    compared = _compared(*(_run(variant=f"v{rate}", sweep={"rate": rate}) for rate in (1.0, 2.0)))
    assert compared["label"].tolist() == ["A", "A"]


def test_two_versions_in_one_of_two_experiments_are_told_apart() -> None:
    runs = [_run(experiment="x"), _run(experiment="y", variant="old"), _run(experiment="y", variant="new")]
    assert _compared(*runs)["label"].tolist() == ["A (x)", "A (y) (old)", "A (y) (new)"]


# ---- time to accuracy -------------------------------------------------------------------------------------------


def test_a_target_that_was_never_reached_is_censored_not_blank() -> None:
    shown = _presented(_run(time_to_accuracy_s=None, makespan_s=812.0))
    assert shown["time to 90%"] == "> 812 s"


def test_a_censored_time_is_written_like_every_other_time() -> None:
    """A thousand seconds are not "1.23e+03"."""
    shown = _presented(_run(time_to_accuracy_s=None, makespan_s=1234.0))
    assert shown["makespan"] == "1,234 s"
    assert shown["time to 90%"] == "> 1,234 s"


def test_some_seeds_that_reached_the_target_are_counted() -> None:
    runs = [
        _run(seed=1, time_to_accuracy_s=10.0),
        _run(seed=2, time_to_accuracy_s=None, makespan_s=50.0),
        _run(seed=3, time_to_accuracy_s=10.0),
    ]
    assert _compared(*runs)["reached"].tolist() == [2]
    assert _presented(*runs)["time to 90%"] == "10.0 s (2/3 seeds)"


def test_all_seeds_that_reached_the_target_need_no_count() -> None:
    """1 and 3: 2 ± 12.7."""
    runs = [_run(seed=1, time_to_accuracy_s=1.0), _run(seed=2, time_to_accuracy_s=3.0)]
    assert _presented(*runs)["time to 90%"] == "2.00 ± 12.7 s"


def test_without_a_target_there_is_no_such_row() -> None:
    assert not [heading for heading in _presented(_run(target_accuracy=None)) if heading.startswith("time to")]


def test_a_priced_run_says_nothing_about_accuracy() -> None:
    """Nothing was trained: "> 812 s" would claim that the target was missed."""
    shown = _presented(_run(mode="timing", accuracy=None, time_to_accuracy_s=None, makespan_s=812.0))
    assert "accuracy" not in shown
    assert "> 812 s" not in shown.values()


# ---- what people read -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("figure", "value", "text"),
    [
        ("makespan_s", 0.0, "0 s"),
        ("makespan_s", 4.56e-6, "4.56 µs"),
        ("makespan_s", 3e-4, "300 µs"),
        ("makespan_s", 0.00123, "1.23 ms"),
        ("makespan_s", 0.123, "123 ms"),
        ("makespan_s", 1.5, "1.50 s"),
        ("makespan_s", 12.34, "12.3 s"),
        ("makespan_s", 123.4, "123 s"),
        ("makespan_s", 86400.0, "86,400 s"),
        ("accuracy", 0.9234, "92.3 %"),
        ("payload_up_bytes", 1_500_000.0, "1.50 MB"),
        ("payload_up_bytes", 999.0, "999 B"),
        ("payload_down_bytes", 2.5e9, "2.50 GB"),
        ("device_flops", 6.32e10, "63.2 G"),
        ("server_flops", 0.0, "0"),
        ("throughput_samples_per_s", 3468.2, "3,468"),
    ],
)
def test_units_and_three_digits(figure: str, value: float, text: str) -> None:
    assert _presented(_run(**{figure: value}))[tables.FIGURES[figure][0]] == text


def test_an_interval_has_the_unit_of_its_mean() -> None:
    """1 and 3 ms: 2 ± 12.7."""
    assert _presented(_run(seed=1, makespan_s=0.001), _run(seed=2, makespan_s=0.003))["makespan"] == "2.00 ± 12.7 ms"


def test_a_cause_that_is_nobodys_is_left_out() -> None:
    """No straggler anywhere; only B has somebody unselected (2 of 8 s), so both have a row for it.

    That nobody was idle at all is said.
    """
    nothing = {"device_idle_straggler_s": 0.0, "device_idle_unselected_s": 0.0, "device_idle_fraction": 0.0}
    nothing |= {"makespan_s": 8.0}
    compared = _compared(_run("A", **nothing), _run("B", **{**nothing, "device_idle_unselected_s": 2.0}))
    shown = tables.presented(compared)
    assert "device straggler" not in shown
    assert shown["device unselected"].tolist() == ["0 s (0%)", "2.00 s (25%)"]
    assert shown["device idle"].tolist() == ["0 %", "0 %"]


def test_a_run_of_no_time_has_no_shares() -> None:
    assert _presented(_run(makespan_s=0.0))["device transfer"] == "1.00 s"


def test_where_there_is_no_room_only_what_is_asked_for_is_shown() -> None:
    shown = tables.presented(_compared(_run()), ("makespan_s", "device_idle_fraction"))
    assert list(shown) == ["method", "makespan", "device idle"]


def test_every_figure_is_shown_under_its_heading() -> None:
    headings = {heading.format(target="90%") for heading, _ in tables.FIGURES.values()}
    assert set(_presented(_run())) == {"method", *headings}


# ---- swept keys -------------------------------------------------------------------------------------------------


def test_swept_values_are_columns_and_groups() -> None:
    runs = [_run(seed=seed, sweep={"rate": rate}, makespan_s=rate) for rate in (1.0, 10.0) for seed in (1, 2)]
    table = tables.summaries(runs)
    assert table["sweep:rate"].tolist() == [1.0, 1.0, 10.0, 10.0]
    assert not {"points", "claims"} & set(table)
    compared = tables.comparison(table)
    assert compared["makespan_s"].tolist() == [1.0, 10.0]
    assert compared["seeds"].tolist() == [2, 2]
    assert tables.presented(compared)["rate"].tolist() == ["1.0", "10.0"]


def test_a_run_that_a_swept_value_does_not_touch_has_a_row_at_each() -> None:
    """A is one run at both cuts, and one seed at each; rows are in the order of the points."""
    runs = [_run("A", points=[{"cut": 1}, {"cut": 3}]), _run("B", sweep={"cut": 1}), _run("B", sweep={"cut": 3})]
    table = tables.summaries(runs)
    assert table[["label", "sweep:cut"]].values.tolist() == [["A", 1], ["B", 1], ["A", 3], ["B", 3]]
    compared = tables.comparison(table)
    assert compared["seeds"].tolist() == [1, 1, 1, 1]


def test_a_swept_target_has_its_own_time_at_each_point() -> None:
    curve = {"accuracy_curve": [[1.0, 0.5], [2.0, 0.7]]}
    run = _run(points=[{"target_accuracy": 0.5}, {"target_accuracy": 0.7}, {"target_accuracy": 0.9}], **curve)
    table = tables.summaries([run])
    assert table["target_accuracy"].tolist() == [0.5, 0.7, 0.9]
    assert table["time_to_accuracy_s"].tolist()[:2] == [1.0, 2.0]
    assert math.isnan(table["time_to_accuracy_s"].iloc[2])


def test_a_swept_section_is_shown_as_text() -> None:
    """A list or a mapping cannot be grouped by: it becomes JSON."""
    sections = [{"kind": "dirichlet", "alpha": 0.5}, {"kind": "iid"}]
    runs = [_run(sweep={"task.partition": section}) for section in sections]
    compared = _compared(*runs)
    assert [json.loads(text) for text in compared["sweep:task.partition"]] == sections


def test_a_run_that_lacks_a_swept_key_is_kept() -> None:
    assert len(_compared(_run(sweep={"rate": 1.0}), _run(sweep={}))) == 2


def test_a_swept_time_may_be_never() -> None:
    """`testbed.faults.0.rejoin_s: [null, 5]` makes two groups."""
    runs = [_run(sweep={"testbed.faults.0.rejoin_s": value}, makespan_s=1.0) for value in (None, 5.0)]
    assert len(_compared(*runs)) == 2


# ---- from real runs ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    """FedAvg and SplitFed V1, two seeds, one round of learning on 2 x 80 digits."""
    methods = [{"name": "fedavg", "label": "FedAvg"}, {"name": "splitfed_v1", "label": "SplitFed V1", "split_point": 2}]
    return record_all(tmp_path_factory.mktemp("runs"), tiny(mode="learn", methods=methods, seeds=[1, 2]))


def test_summaries_have_one_row_per_run(runs: list[Run]) -> None:
    table = tables.summaries(runs)
    assert table["run_id"].tolist() == [run.id for run in runs]
    assert table["label"].tolist() == ["FedAvg", "FedAvg", "SplitFed V1", "SplitFed V1"]
    assert table["seed"].tolist() == [1, 2, 1, 2]
    assert table["makespan_s"].dtype == float
    assert table["device_energy_j"].dtype == float


def test_traffic_counts_messages_by_kind(runs: list[Run]) -> None:
    """SplitFed, 80 samples per device in batches of 16: 5 activations up and 5 gradients down per device.

    Bytes by kind add up to the summary's.
    """
    table = tables.traffic(runs)
    split = table[table["run_id"] == runs[2].id].set_index("tag")
    assert split["messages"].to_dict() == {"weights": 4, "activation": 10, "gradient": 10, "update": 2}
    assert split["direction"].to_dict() == {"weights": "down", "activation": "up", "gradient": "down", "update": "up"}
    for run in runs:
        mine = table[table["run_id"] == run.id].groupby("direction")
        for direction in ("up", "down"):
            for kind in ("payload", "wire"):
                expected = run.summary[f"{kind}_{direction}_bytes"]
                assert mine[f"{kind}_bytes"].sum()[direction] == expected


def test_idle_has_one_row_per_node_and_cause_and_tiles_the_run(runs: list[Run]) -> None:
    table = tables.idle(runs)
    assert len(table) == 4 * 3 * len(COLUMNS)
    sums = table.groupby(["run_id", "node"])[["seconds", "fraction"]].sum()
    assert sums["fraction"].tolist() == pytest.approx([1.0] * 12)
    for run in runs:
        assert sums.loc[run.id, "seconds"].tolist() == pytest.approx([run.summary["makespan_s"]] * 3)
        mine = table[(table["run_id"] == run.id) & (table["role"] == "device") & (table["cause"] == "transfer")]
        assert mine["seconds"].mean() == pytest.approx(run.summary["device_idle_transfer_s"])


def test_metrics_and_rounds_follow_the_run(runs: list[Run]) -> None:
    table = tables.metrics(runs)
    assert table["run_id"].tolist() == [run.id for run in runs]
    assert table["accuracy"].tolist() == [run.summary["accuracy"] for run in runs]
    rounds = tables.rounds(runs[0])
    assert rounds["round"].tolist() == [1]
    assert rounds["label"].tolist() == ["FedAvg"]


def test_the_timeline_has_every_computation_and_every_delivery(runs: list[Run]) -> None:
    table = tables.timeline(runs[0])
    computed = table[table["kind"] == "compute"]
    moved = table[table["kind"] == "transfer"]
    assert len(computed) == len(runs[0].table("compute"))
    assert len(moved) == len(runs[0].table("transfer"))
    assert (table["end_s"] >= table["start_s"]).all()
    assert set(computed["role"]) == {"device", "server"}
    busy = (computed["end_s"] - computed["start_s"]).groupby(computed["node"]).sum()
    assert busy["server"] == pytest.approx(runs[0].summary["server_compute_s"])
    assert set(moved["peer"]) == {"device-0", "device-1", "server"}


def test_a_timelines_text_is_kept_once(runs: list[Run]) -> None:
    """As categories, so that millions of rows fit into memory; a run without computations has one, too."""
    table = tables.timeline(runs[2])
    text = {"run_id", "label", "node", "role", "kind", "what", "peer"}
    assert {column for column in table if isinstance(table[column].dtype, pd.CategoricalDtype)} == text
    assert set(table.loc[table["kind"] == "compute", "peer"]) == {""}
    roles = dict(zip(table["node"], table["role"], strict=True))
    assert roles == {"device-0": "device", "device-1": "device", "server": "server"}


def test_a_run_that_only_sends_has_a_timeline(tmp_path: Path) -> None:
    """No name is used in its table of computations."""

    async def device(node: Node) -> None:
        await node.send("server", "up", letter(100))

    async def server(node: Node) -> None:
        await node.recv("up")

    run = Store(tmp_path).record(resolved(), "x", benched({"device-0": device, "server": server}))
    (row,) = tables.timeline(run).to_dict("records")
    assert (row["node"], row["kind"], row["what"], row["peer"]) == ("device-0", "transfer", "up", "server")


def test_marks_are_rounds_and_phases_only(runs: list[Run]) -> None:
    assert tables.marks(runs[0])["kind"].tolist() == ["round_start", "round_end"]


def test_no_runs_make_empty_tables() -> None:
    for make in (tables.metrics, tables.traffic, tables.idle):
        assert make([]).empty


# ---- formats ----------------------------------------------------------------------------------------------------

AWKWARD = pd.DataFrame(
    {
        "label": ['SplitFed "V1", a_b', "100 % & #1 {x}"],
        "run_id": ["12345e678901", "000123456789"],
        "value": [1.25, float("nan")],
        "sweep:a.b_c": [1, 2],
    }
)
"""Commas, quotes, TeX's special characters, ids that look like numbers, a missing value."""


def test_csv_reads_back() -> None:
    back = pd.read_csv(io.StringIO(tables.written(AWKWARD, "csv")), dtype={"run_id": str})
    pd.testing.assert_frame_equal(back, AWKWARD)


def test_json_reads_back() -> None:
    back = json.loads(tables.written(AWKWARD, "json"))
    assert back == [
        {"label": 'SplitFed "V1", a_b', "run_id": "12345e678901", "value": 1.25, "sweep:a.b_c": 1},
        {"label": "100 % & #1 {x}", "run_id": "000123456789", "value": None, "sweep:a.b_c": 2},
    ]


@pytest.mark.parametrize("value", [1.23456789012e-6, 0.1 + 0.2, 1234567.890123, 1e300, 3.0])
def test_json_and_csv_keep_every_digit(value: float) -> None:
    """A wait of a microsecond has as many digits as one of an hour."""
    table = pd.DataFrame({"seconds": [value]})
    assert pd.read_csv(io.StringIO(tables.written(table, "csv")))["seconds"][0] == pytest.approx(value, rel=1e-14)
    assert json.loads(tables.written(table, "json"))[0]["seconds"] == pytest.approx(value, rel=1e-12)


def _markdown(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.strip().splitlines()]


def test_markdown_has_a_heading_a_rule_and_the_cells() -> None:
    heading, rule, *rows = _markdown(tables.written(AWKWARD[["label", "value"]], "md"))
    assert heading == ["label", "value"]
    assert all(set(cell) <= set(":-") for cell in rule)
    assert [row[0] for row in rows] == AWKWARD["label"].tolist()
    assert float(rows[0][1]) == 1.25


@pytest.mark.parametrize("run_id", ["12345e678901", "1234567e0012", "000123456789", "deadbeef0123"])
def test_markdown_leaves_text_that_looks_like_a_number(run_id: str) -> None:
    """A run's id of twelve hexadecimal digits may look like a (huge) number, and must still be found."""
    assert run_id in tables.written(pd.DataFrame({"run_id": [run_id]}), "md")


def test_a_bar_in_a_label_does_not_make_a_column_in_markdown() -> None:
    text = tables.written(pd.DataFrame({"label": ["a|b"], "x": ["c"]}), "md")
    assert r"a\|b" in text


def test_latex_is_a_whole_tabular_with_escaped_cells() -> None:
    text = tables.written(AWKWARD, "latex")
    lines = text.splitlines()
    assert lines[0] == r"\begin{tabular}{llrr}"
    assert lines[1] == r"\toprule"
    assert lines[-1] == r"\end{tabular}"
    assert lines[2] == r"label & run\_id & value & sweep:a.b\_c \\"
    assert lines[4] == r'SplitFed "V1", a\_b & 12345e678901 & 1.25 & 1 \\'
    assert lines[5] == r"100 \% \& \#1 \{x\} & 000123456789 &  & 2 \\"


def test_latex_shows_intervals_and_censored_times() -> None:
    text = tables.written(pd.DataFrame({"t": ["1.0 ± 0.1 s", "> 812 s"]}), "latex")
    assert r"1.0 $\pm$ 0.1 s" in text
    assert r"$>$ 812 s" in text


@pytest.mark.parametrize(
    ("character", "escaped"),
    [
        ("$", r"\$"),
        ("^", r"\^{}"),
        ("~", r"\~{}"),
        ("\\", r"\textbackslash{}"),
        ("<", r"$<$"),
        (">", r"$>$"),
    ],
    ids=["dollar", "circumflex", "tilde", "backslash", "less", "greater"],
)
def test_latex_escapes_every_special_character(character: str, escaped: str) -> None:
    """A label is the user's text; TeX stops at a bare $, ^ or backslash. (Any escape that TeX accepts would do.)"""
    text = tables.written(pd.DataFrame({"label": [f"a{character}b"]}), "latex")
    assert f"a{escaped}b" in text


def test_an_unknown_format_is_named() -> None:
    with pytest.raises(StoreError, match=r"'xlsx'.*csv, json, md, latex"):
        tables.written(AWKWARD, "xlsx")


def test_a_comparison_can_be_written_in_every_format() -> None:
    compared = _compared(_run("A", 1), _run("A", 2), _run("B", 1, time_to_accuracy_s=None))
    for how in tables.FORMATS:
        assert len(tables.written(compared, how)) > 100
    back = pd.read_csv(io.StringIO(tables.written(compared, "csv")))
    assert back["label"].tolist() == ["A", "B"]
    assert np.isnan(back["time_to_accuracy_s"][1])

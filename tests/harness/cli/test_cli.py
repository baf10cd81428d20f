"""Every verb, called as the command line calls it, on experiments of a second."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from small_runs import tiny, write_tiny

from harness.cli import main as command
from harness.experiment import shipped
from plots import gallery
from results import tables

METHODS: list[Any] = [{"name": "fedavg", "label": "FedAvg"}, {"name": "splitfed_v1", "label": "SFL", "split_point": 2}]

Ammeter = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in an empty folder, without the user's environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AMMETER_RUNS", raising=False)
    monkeypatch.delenv("AMMETER_DATA", raising=False)


@pytest.fixture
def ammeter(capsys: pytest.CaptureFixture[str]) -> Ammeter:
    """Run a command; return exit code, stdout, stderr."""

    def go(*arguments: Any) -> tuple[int, str, str]:
        capsys.readouterr()
        code = command.main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return go


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs of two methods, two seeds, really trained: --runs of the verbs that read."""
    folder = tmp_path_factory.mktemp("learned")
    path = write_tiny(folder, name="learned", mode="learn", methods=METHODS, seeds=[1, 2], target_accuracy=0.99)
    assert command.main(["run", str(path), "--no-figures", "--runs", str(folder / "runs")]) == 0
    return folder / "runs"


# ---- run --------------------------------------------------------------------------------------------------------


def test_run_prints_the_comparison_and_says_what_the_numbers_are(ammeter: Ammeter, tmp_path: Path) -> None:
    path = write_tiny(tmp_path, title="A tiny one", methods=METHODS)
    code, out, err = ammeter("run", path)
    assert code == 0
    assert "A tiny one" in out
    for word in ("FedAvg", "SFL", "makespan", "device idle", "payload up"):
        assert word in out
    assert "times are simulated: priced by the device profiles (roofline); nothing was trained" in out
    assert "one seed" in out
    assert [line[:6] for line in err.splitlines()[:2]] == ["[1/2] ", "[2/2] "]
    assert {line[6:].split(":")[0] for line in err.splitlines()[:2]} == {"FedAvg, seed 1", "SFL, seed 1"}
    assert "runs in runs/tiny" in err
    assert len(list(Path("runs/tiny").glob("*/status"))) == 2
    assert list(Path("figures/tiny").glob("*.pdf"))
    assert list(Path("figures/tiny").glob("*.png"))


def test_a_learned_run_says_so(ammeter: Ammeter, tmp_path: Path) -> None:
    code, out, _ = ammeter("run", write_tiny(tmp_path, mode="learn", target_accuracy=1.0), "--no-figures")
    assert code == 0
    assert "accuracy is really trained" in out
    assert "time to 100%" in out
    assert "> " in out
    assert not Path("figures").exists()


def test_a_second_run_keeps_what_is_complete(ammeter: Ammeter, tmp_path: Path) -> None:
    path = write_tiny(tmp_path, methods=METHODS)
    _, first, _ = ammeter("run", path, "--no-figures")
    times = {file: file.stat().st_mtime_ns for file in Path("runs").rglob("*") if file.is_file()}
    code, second, err = ammeter("run", path, "--no-figures")
    assert code == 0
    assert second == first
    assert err.splitlines()[:2] == ["[1/2] FedAvg, seed 1: kept", "[2/2] SFL, seed 1: kept"]
    assert {file: file.stat().st_mtime_ns for file in Path("runs").rglob("*") if file.is_file()} == times


def test_a_method_added_later_is_made_beside_those_that_are_kept(ammeter: Ammeter, tmp_path: Path) -> None:
    ammeter("run", write_tiny(tmp_path, methods=METHODS[:1]), "--no-figures")
    _, _, err = ammeter("run", write_tiny(tmp_path, methods=METHODS), "--no-figures")
    assert err.splitlines()[0] == "[1/2] FedAvg, seed 1: kept"
    assert not err.splitlines()[1].endswith("kept")


def test_overrides_reach_every_section(ammeter: Ammeter, tmp_path: Path) -> None:
    """Three rounds instead of one, a fraction of one method by its label, another board."""
    path = write_tiny(tmp_path, methods=METHODS)
    words = ["training.rounds=3", "methods.FedAvg.fraction=0.5", "testbed.devices.0.profile=rpi-5-8g", "seeds=[4]"]
    code, out, _ = ammeter("run", path, "--no-figures", "--format", "csv", *(w for o in words for w in ("-s", o)))
    assert code == 0
    runs = [json.loads(file.read_text()) for file in Path("runs").rglob("summary.json")]
    assert [run["rounds"] for run in runs] == [3, 3]
    assert [run["seed"] for run in runs] == [4, 4]
    table = pd.read_csv(io.StringIO(out)).set_index("label")
    assert table.loc["FedAvg", "device_idle_unselected_s"] > 0
    assert table.loc["SFL", "device_idle_unselected_s"] == 0


@pytest.mark.parametrize("how", tables.FORMATS)
def test_run_prints_the_comparison_in_a_format(ammeter: Ammeter, tmp_path: Path, how: str) -> None:
    code, out, _ = ammeter("run", write_tiny(tmp_path), "--no-figures", "--format", how)
    assert code == 0
    if how == "csv":
        assert pd.read_csv(io.StringIO(out))["label"].tolist() == ["fedavg"]
    elif how == "json":
        assert json.loads(out)[0]["makespan_s"] > 0
    elif how == "md":
        assert out.startswith("| label")
    else:
        assert out.startswith(r"\begin{tabular}")


def test_a_sweep_runs_every_method_seed_and_value(ammeter: Ammeter, tmp_path: Path) -> None:
    """2 methods x 2 seeds x 2 rates: a tenth of the rate takes longer; 8 runs in 4 rows."""
    path = write_tiny(tmp_path, methods=METHODS, seeds=[1, 2], sweep={"testbed.network.up_bps": [1e6, 1e7]})
    code, out, err = ammeter("run", path, "--no-figures", "--format", "csv")
    assert code == 0
    assert "[8/8] " in err
    assert "] SFL, seed 2, testbed.network.up_bps=10000000.0: " in err
    table = pd.read_csv(io.StringIO(out))
    assert table["seeds"].tolist() == [2, 2, 2, 2]
    times = table.pivot_table(index="label", columns="sweep:testbed.network.up_bps", values="makespan_s")
    assert (times[1e6] > times[1e7]).all()


def test_a_run_that_was_made_alone_is_found_by_the_sweep_that_includes_it(ammeter: Ammeter, tmp_path: Path) -> None:
    """The rate 1e7 is TINY's own: its run is kept, and must have its place on the sweep's axis all the same."""
    ammeter("run", write_tiny(tmp_path), "--no-figures")
    path = write_tiny(tmp_path, sweep={"testbed.network.up_bps": [1e6, 1e7]})
    code, out, _ = ammeter("run", path, "--no-figures", "--format", "csv")
    assert code == 0
    assert pd.read_csv(io.StringIO(out))["sweep:testbed.network.up_bps"].tolist() == [1e6, 1e7]


def test_another_target_is_answered_from_the_runs_that_are_there(ammeter: Ammeter, tmp_path: Path) -> None:
    """Any accuracy reaches 0.01; the second command asks another question of the same run."""
    first = write_tiny(tmp_path, mode="learn", target_accuracy=1.0)
    ammeter("run", first, "--no-figures")
    code, out, _ = ammeter("run", first, "--no-figures", "-s", "target_accuracy=0.01", "--format", "csv")
    assert code == 0
    (row,) = pd.read_csv(io.StringIO(out)).to_dict("records")
    assert row["target_accuracy"] == 0.01
    assert row["reached"] == 1


MINE = '''"""Mine: {what}."""

from harness.method import MethodConfig


class Config(MethodConfig):
    """Nothing to set."""


async def device(node, task, config):
    await node.sleep({seconds})
    await node.send("server", "news", round=1)


async def server(node, task, config):
    await node.gather("news", round=1)


ROLES = {{"device": device, "server": server}}
ENDS = "server"
'''


def test_a_users_own_method_runs_from_its_file(ammeter: Ammeter, tmp_path: Path) -> None:
    Path("mine.py").write_text(MINE.format(what="first", seconds=1))
    code, out, _ = ammeter("run", write_tiny(tmp_path, methods=["mine.py"]), "--no-figures", "--format", "csv")
    assert code == 0
    (row,) = pd.read_csv(io.StringIO(out)).to_dict("records")
    assert row["label"] == "mine"
    assert 1.0 < row["makespan_s"] < 1.1


def test_a_method_whose_file_has_changed_is_run_again(ammeter: Ammeter, tmp_path: Path) -> None:
    """A run's id covers all that decides its outcome: the user's edited file does."""
    path = write_tiny(tmp_path, methods=["mine.py"])
    Path("mine.py").write_text(MINE.format(what="first", seconds=1))
    ammeter("run", path, "--no-figures")
    Path("mine.py").write_text(MINE.format(what="second", seconds=5))
    _, out, err = ammeter("run", path, "--no-figures", "--format", "csv")
    assert not err.splitlines()[0].endswith("kept")
    (row,) = pd.read_csv(io.StringIO(out)).to_dict("records")
    assert row["makespan_s"] > 5.0


def test_runs_may_be_elsewhere(ammeter: Ammeter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ammeter("run", write_tiny(tmp_path), "--no-figures", "--runs", tmp_path / "there")
    assert list((tmp_path / "there" / "tiny").glob("*/summary.json"))
    assert not Path("runs").exists()
    monkeypatch.setenv("AMMETER_RUNS", str(tmp_path / "there"))
    code, out, _ = ammeter("table", "tiny")
    assert code == 0
    assert "fedavg" in out


def test_a_shipped_experiment_runs_by_its_name(ammeter: Ammeter) -> None:
    words = ["-s", "mode=timing", "-s", "seeds=[1]", "-s", "training.rounds=1", "-s", "methods=[fedavg]"]
    code, out, _ = ammeter("run", "quickstart", "--no-figures", *words)
    assert code == 0
    assert "fedavg" in out


# ---- list, show -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "contains"),
    [
        ("methods", ["ampere", "fedavg", "null", "sl", "splitfed_v1", "splitfed_v2"]),
        ("models", ["vgg-5"]),
        ("data", ["digits", "fashion_mnist", "cifar10"]),
        ("profiles", ["rpi-4-4g", "server-cpu", "wifi-ac-pi4"]),
        ("testbeds", ["virtual"]),
        ("figures", ["idle_by_cause", "timeline"]),
        ("experiments", ["quickstart"]),
    ],
)
def test_list_names_everything_of_a_kind(ammeter: Ammeter, what: str, contains: list[str]) -> None:
    code, out, _ = ammeter("list", what)
    assert code == 0
    for name in contains:
        assert name in out
    code, text, _ = ammeter("list", what, "--format", "json")
    assert code == 0
    names = [next(iter(row.values())) for row in json.loads(text)]
    assert set(contains) <= set(names)


def test_list_agrees_with_what_can_be_found() -> None:
    assert "quickstart" in shipped()
    assert "timeline" in gallery.names()


@pytest.mark.parametrize("profile", ["rpi-4-4g", "jetson-nano-4g/10w", "wifi-ac-pi4"])
def test_show_gives_every_figure_its_source(ammeter: Ammeter, profile: str) -> None:
    code, out, _ = ammeter("show", profile, "--format", "json")
    assert code == 0
    rows = json.loads(out)
    assert len(rows) >= 3
    assert all(row["source"] for row in rows)
    assert ammeter("show", profile)[0] == 0


# ---- table, compare, plot, export ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("what", "rows"), [("runs", 4), ("metrics", 4), ("traffic", 12), ("idle", 84), ("rounds", 4)])
def test_table_prints_every_table(ammeter: Ammeter, learned: Path, what: str, rows: int) -> None:
    """4 runs; FedAvg has 2 kinds of message and SplitFed 4, each in 2 seeds; 3 nodes x 7 columns of idle."""
    code, out, _ = ammeter("table", "learned", "--runs", learned, "--what", what, "--format", "csv")
    assert code == 0
    table = pd.read_csv(io.StringIO(out))
    assert len(table) == rows
    assert set(table["label"]) == {"FedAvg", "SFL"}
    code, out, _ = ammeter("table", learned / "learned", "--what", what)
    assert code == 0
    assert "FedAvg" in out


def test_table_shows_people_the_headlines_of_every_run(ammeter: Ammeter, learned: Path) -> None:
    """A line per run that a terminal can hold; the columns that only programs read are left out, and named."""
    code, out, _ = ammeter("table", "learned", "--runs", learned)
    assert code == 0
    for label in ("FedAvg", "SFL"):
        for seed in (1, 2):
            assert sum(f"{label}, seed {seed} " in line for line in out.splitlines()) == 1
    assert "makespan" in out
    assert "run_id" not in out
    assert "device dependency" not in out
    assert max(map(len, map(str.rstrip, out.splitlines()))) <= 200
    assert out.splitlines()[-1] == "all columns: ammeter table ... --format csv"


def test_table_takes_a_single_run(ammeter: Ammeter, learned: Path) -> None:
    (folder, *_) = sorted((learned / "learned").iterdir())
    code, out, _ = ammeter("table", folder, "--format", "json")
    assert code == 0
    assert [row["run_id"] for row in json.loads(out)] == [folder.name]


def test_compare_averages_over_seeds(ammeter: Ammeter, learned: Path) -> None:
    code, out, _ = ammeter("compare", "learned", "--runs", learned, "--format", "csv")
    assert code == 0
    compared = pd.read_csv(io.StringIO(out)).set_index("label")
    _, out, _ = ammeter("table", "learned", "--runs", learned, "--format", "csv")
    expected = pd.read_csv(io.StringIO(out)).groupby("label")["accuracy"].mean()
    assert compared["seeds"].tolist() == [2, 2]
    for label in ("FedAvg", "SFL"):
        assert compared.loc[label, "accuracy"] == pytest.approx(expected[label])


@pytest.mark.parametrize("how", [None, "md", "latex", "json"])
def test_compare_shows_people_censored_times(ammeter: Ammeter, learned: Path, how: str | None) -> None:
    """Nobody reaches 99 % in one round of 160 digits."""
    words = [] if how is None else ["--format", how]
    code, out, _ = ammeter("compare", "learned", "--runs", learned, *words)
    assert code == 0
    if how == "json":
        assert [row["reached"] for row in json.loads(out)] == [0, 0]
        assert [row["time_to_accuracy_s"] for row in json.loads(out)] == [None, None]
    else:
        assert ("$>$ " if how == "latex" else "> ") in out


def test_compare_does_not_take_an_old_version_of_an_experiment_for_a_seed(ammeter: Ammeter, tmp_path: Path) -> None:
    """One round takes a third of three. Both are in the experiment's folder; neither table nor mean may mix them."""
    path = write_tiny(tmp_path)
    ammeter("run", path, "--no-figures")
    ammeter("run", path, "--no-figures", "-s", "training.rounds=3")
    code, out, _ = ammeter("compare", "tiny", "--format", "csv")
    assert code == 0
    table = pd.read_csv(io.StringIO(out))
    assert table["seeds"].tolist() == [1, 1]
    runs = [json.loads(file.read_text()) for file in Path("runs").rglob("summary.json")]
    assert set(table["label"]) == {f"fedavg ({run['variant']})" for run in runs}


def test_plot_draws_what_it_can_and_says_what_it_cannot(ammeter: Ammeter, learned: Path) -> None:
    code, out, _ = ammeter("plot", "learned", "--runs", learned)
    assert code == 0
    drawn = {Path(line).stem for line in out.splitlines() if line.endswith(".pdf")}
    skipped = {line.split(": ")[0].removeprefix("nothing to draw for ") for line in out.splitlines() if ": " in line}
    assert drawn | skipped == set(gallery.names())
    assert {"timeline", "idle_by_cause"} <= drawn
    assert "bandwidth_sweep" in skipped
    for name in drawn:
        assert (Path("figures") / f"{name}.png").stat().st_size > 1000


def test_plot_only_what_is_asked_for(ammeter: Ammeter, learned: Path) -> None:
    code, out, _ = ammeter("plot", "learned", "--runs", learned, "--only", "timeline", "--figures", "here")
    assert code == 0
    assert {path.name for path in Path("here").iterdir()} == {"timeline.pdf", "timeline.png"}
    assert len(out.splitlines()) == 2


def test_export_writes_one_runs_timeline(ammeter: Ammeter, learned: Path) -> None:
    (folder, *_) = sorted((learned / "learned").iterdir())
    code, out, _ = ammeter("export", folder, "-o", "t.json")
    assert (code, out) == (0, "t.json\n")
    assert len(json.loads(Path("t.json").read_text())["traceEvents"]) > 20


def test_export_of_several_runs_names_them(ammeter: Ammeter, learned: Path) -> None:
    code, _, err = ammeter("export", "learned", "--runs", learned, "-o", "t.json")
    assert code == 2
    assert "4 were named" in err
    assert "FedAvg, seed 1" in err
    assert not Path("t.json").exists()


# ---- data, conformance, doctor ------------------------------------------------------------------------------------


def test_data_lists_every_set(ammeter: Ammeter) -> None:
    code, out, _ = ammeter("data", "--format", "json")
    assert code == 0
    text = json.dumps(json.loads(out))
    for name in ("digits", "fashion_mnist", "sst2"):
        assert name in text
    assert ammeter("data", "list")[0] == 0


def test_data_check_counts_the_samples(ammeter: Ammeter) -> None:
    assert ammeter("data", "check", "digits") == (0, "digits: 1438 training and 359 test samples, whole\n", "")


def test_conformance_of_a_shipped_method(ammeter: Ammeter) -> None:
    code, out, _ = ammeter("conformance", "fedavg", "--trials", 2)
    assert code == 0
    assert out.count(" ok ") == 4
    assert "FAILED" not in out


CARELESS = '''"""Careless: {what}."""

import torch

from harness.method import MethodConfig


class Config(MethodConfig):
    """Nothing to set."""


def make():
    return torch.zeros(1000)


def spoil(tensor):
    tensor.add_(1)
    return tensor


async def device(node, task, config):
    tensor = await node.compute(make)
    for index in range({messages}):
        node.post("server", "news", tensor, round=1)
        if {spoils}:
            await node.compute(spoil, tensor)


async def server(node, task, config):
    await node.gather("news", round=1)
    await node.sleep(30)


ROLES = {{"device": device, "server": server}}
ENDS = "server"
'''


@pytest.mark.parametrize(
    ("messages", "spoils", "said"),
    [(1, True, "was changed after it was posted"), (3, False, "unread messages per run: [6, 6]")],
    ids=["changed", "unread"],
)
def test_conformance_of_a_careless_method_exits_with_1(
    ammeter: Ammeter, messages: int, spoils: bool, said: str
) -> None:
    """3 devices post a payload and write to it; or post three messages of which the gather reads one each."""
    what = "spoils" if spoils else "talks too much"
    Path("careless.py").write_text(CARELESS.format(messages=messages, spoils=spoils, what=what))
    code, out, err = ammeter("conformance", "./careless.py", "--trials", 2, "--format", "json")
    assert code == 1
    assert err == ""
    failed = [row for row in json.loads(out) if row[""] == "FAILED"]
    assert len(failed) == 1
    assert said in failed[0]["seen"]


def test_the_same_method_without_its_mistakes_conforms(ammeter: Ammeter) -> None:
    Path("careful.py").write_text(CARELESS.format(messages=1, spoils=False, what="does nothing wrong"))
    assert ammeter("conformance", "./careful.py", "--trials", 2)[0] == 0


def test_doctor_says_what_is_there_and_what_would_mend_the_rest(ammeter: Ammeter) -> None:
    code, out, _ = ammeter("doctor", "--format", "json")
    assert code == 0
    found = {row["what"]: row for row in json.loads(out)}
    assert found["torch"]["state"]
    assert found["testbed virtual"]["state"] == "works"
    assert found["data digits"]["state"] == "whole"
    assert found["data fashion_mnist"]["state"] == "missing"
    assert "ammeter data fetch fashion_mnist" in found["data fashion_mnist"]["remedy"]
    assert found["runs folder"]["state"] == "writable"
    assert list(Path().iterdir()) == []


def test_doctor_says_that_runs_cannot_be_written(ammeter: Ammeter) -> None:
    Path("runs").write_text("in the way")
    _, out, _ = ammeter("doctor", "--format", "json")
    (row,) = [row for row in json.loads(out) if row["what"] == "runs folder"]
    assert "cannot be written" in row["state"]
    assert "--runs" in row["remedy"]


def test_doctor_says_that_a_name_is_too_long(ammeter: Ammeter) -> None:
    _, out, _ = ammeter("doctor", "--format", "json", "--runs", "a" * 300)
    (row,) = [row for row in json.loads(out) if row["what"] == "runs folder"]
    assert row["state"] == "cannot be written: File name too long"


# ---- the command itself -----------------------------------------------------------------------------------------


def test_every_verb_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    verbs = command.verbs()
    assert set(verbs) >= {
        "run", "list", "show", "price", "fit", "table", "compare", "plot", "data", "export", "conformance", "doctor"
    }  # fmt: skip
    for verb in verbs:
        with pytest.raises(SystemExit) as stopped:
            command.main([verb, "--help"])
        assert stopped.value.code == 0
        assert f"ammeter {verb}" in capsys.readouterr().out


@pytest.mark.parametrize("words", [[], ["rnu"], ["run"], ["list", "everything"], ["table", "x", "--what", "y"]])
def test_a_wrong_command_line_exits_with_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        command.main(words)
    assert stopped.value.code == 2
    assert "usage: ammeter" in capsys.readouterr().err


def test_ctrl_c_exits_with_130_and_the_same_command_goes_on(
    ammeter: Ammeter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second of two runs is interrupted: the first is kept, the second made anew."""
    path = write_tiny(tmp_path, methods=METHODS)
    original, calls = command.importlib.import_module("harness.cli.jobs").execute, []

    def interrupted(spec: Any, *args: Any) -> Any:
        calls.append(spec.label)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(spec, *args)

    with monkeypatch.context() as patch:
        patch.setattr("harness.cli.jobs.execute", interrupted)
        code, out, err = ammeter("run", path, "--no-figures", "--jobs", "1")
    assert code == 130
    assert out == ""
    assert err.splitlines()[-1].startswith("ammeter: interrupted; complete runs are kept")
    reasons = [json.loads(file.read_text()) for file in Path("runs").rglob("status")]
    assert sorted(status["state"] for status in reasons) == ["complete", "failed"]
    assert [status["reason"] for status in reasons if status["state"] == "failed"] == ["interrupted"]
    code, _, err = ammeter("run", path, "--no-figures")
    assert code == 0
    assert err.splitlines()[0] == "[1/2] FedAvg, seed 1: kept"
    assert not err.splitlines()[1].endswith("kept")


# ---- claims -------------------------------------------------------------------------------------------------------

CLAIMS = [
    {"figure": "payload_bytes", "method": "SFL", "against": "FedAvg", "reported": 0.5, "source": "a paper"},
    {"figure": "device_flops", "method": "SFL", "against": "FedAvg", "reported": 0.25},
]
CUTS: dict[str, Any] = {"methods": METHODS, "sweep": {"methods.*.split_point": [1, 2]}}


def test_claims_are_printed_beside_what_the_runs_give(ammeter: Ammeter, tmp_path: Path) -> None:
    """FedAvg is one run for both cuts; every claim is of two points all the same, from disk, too."""
    code, out, err = ammeter("run", write_tiny(tmp_path, claims=CLAIMS, **CUTS), "--no-figures")
    assert code == 0
    assert "[3/3]" in err
    assert "What papers report, and what these runs give" in out
    for words in ("communication", "device computation", "50 %", "25 %", "split_point"):
        assert words in out
    code, compared, _ = ammeter("compare", "tiny")
    assert code == 0
    assert "What papers report, and what these runs give" in compared
    code, text, _ = ammeter("compare", "tiny", "--claims", "--format", "csv")
    assert code == 0
    table = pd.read_csv(io.StringIO(text))
    assert table.groupby("figure")["sweep:methods.*.split_point"].apply(sorted).to_dict() == {
        "device_flops": [1, 2],
        "payload_bytes": [1, 2],
    }
    runs = {run["run_id"]: run for run in (json.loads(f.read_text()) for f in Path("runs").rglob("summary.json"))}
    (fedavg,) = (run for run in runs.values() if run["label"] == "FedAvg")
    assert [point["methods.*.split_point"] for point in fedavg["points"]] == [1, 2]
    for row in table[table["figure"] == "device_flops"].to_dict("records"):
        assert row["ours"] == pytest.approx(1 - runs[row["run_id"]]["device_flops"] / fedavg["device_flops"])


@pytest.mark.parametrize(("how", "word"), [("md", "| figure"), ("latex", r"\begin{tabular}"), ("json", '"ours"')])
def test_claims_are_printed_in_a_format(ammeter: Ammeter, tmp_path: Path, how: str, word: str) -> None:
    ammeter("run", write_tiny(tmp_path, claims=CLAIMS, **CUTS), "--no-figures")
    code, out, _ = ammeter("compare", "tiny", "--claims", "--format", how)
    assert code == 0
    assert word in out


def test_claims_that_come_later_make_no_run_anew(ammeter: Ammeter, tmp_path: Path) -> None:
    path = write_tiny(tmp_path, **CUTS)
    _, out, _ = ammeter("run", path, "--no-figures")
    assert "What papers report" not in out
    code, _, err = ammeter("compare", "tiny", "--claims")
    assert code == 2
    assert "these runs carry no claim; give their experiment `claims`" in err
    code, out, err = ammeter("run", write_tiny(tmp_path, claims=CLAIMS, **CUTS), "--no-figures")
    assert code == 0
    assert err.count(": kept") == 3
    assert "What papers report" in out


def test_a_cut_down_ampere_scale_runs_and_draws_its_figure(ammeter: Ammeter) -> None:
    """Eight devices and two models instead of 120 and four, with few samples; claims and figure as in the whole."""
    swept = "sweep={task.model: [vgg-5, vgg-11], training.rounds: [1, 2], methods.*.split_point: [1, 3]}"
    groups = [f"testbed.devices.{i}.count=2" for i in range(4)]
    words = ["task.partition.samples=800", "methods.5.training.rounds=1", *groups, swept]
    code, out, _ = ammeter("run", "ampere-scale", *(word for item in words for word in ("-s", item)))
    assert code == 0
    assert out.count("99.1 %") == out.count("93.13 %") == out.count("94.6 %") == 2
    assert (Path("figures") / "ampere-scale" / "reductions.png").stat().st_size > 10_000
    _, text, _ = ammeter("compare", "ampere-scale", "--claims", "--format", "csv")
    table = pd.read_csv(io.StringIO(text))
    assert len(table) == 8 * 2 * 2 * 2
    columns = ["sweep:task.model", "sweep:training.rounds", "sweep:methods.*.split_point"]
    bytes_ = table[table["figure"] == "payload_bytes"].set_index(["label", *columns])["ours"]
    for label in ("Ampere", "Ampere, 10 epochs"):  # more epochs, more saved
        for model in ("vgg-5", "vgg-11"):
            assert bytes_[label, model, 2, 1] > bytes_[label, model, 1, 1]


def test_the_data_folder_is_known_when_the_experiment_is_checked(ammeter: Ammeter, tmp_path: Path) -> None:
    """A recorded rate in it is found; without it the experiment is refused before anything runs."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "p.txt").write_text("0 1\n1 2\n")
    bed = {**tiny()["testbed"], "network": {"up_trace": {"file": "p.txt", "format": "pensieve"}, "down_bps": 1e7}}
    path = write_tiny(tmp_path, testbed=bed)
    code, _, err = ammeter("run", path, "--no-figures")
    assert code == 2
    assert "testbed.network.up_trace: p.txt: no such file here, and no data folder is given" in err
    assert ammeter("run", path, "--no-figures", "--data", "data")[0] == 0

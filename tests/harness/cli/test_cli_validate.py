"""`ammeter validate`: what is run, what the prediction rests on, what is shown, and the exit code."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pretend_wall
import pytest
import yaml
from small_runs import tiny, write_tiny

from harness import testbed
from harness.cli import main as command
from results import validation

METHODS: list[Any] = [{"name": "fedavg", "label": "FedAvg"}, {"name": "splitfed_v1", "label": "SFL", "split_point": 2}]

Ammeter = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in an empty folder, without the user's environment, beside a testbed that pretends to be real."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AMMETER_RUNS", raising=False)
    monkeypatch.delenv("AMMETER_DATA", raising=False)
    load = testbed.load

    def found(name: str) -> ModuleType:
        return pretend_wall if name == "pretend_wall" else load(name)

    monkeypatch.setattr(testbed, "load", found)


@pytest.fixture
def ammeter(capsys: pytest.CaptureFixture[str]) -> Ammeter:
    """Run a command; return exit code, stdout, stderr."""

    def go(*arguments: Any) -> tuple[int, str, str]:
        capsys.readouterr()
        code = command.main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return go


def wall(**changes: Any) -> dict[str, Any]:
    """Return a testbed section on the pretended wall clock."""
    return {**tiny()["testbed"], "name": "pretend_wall", "medium": "separate", **changes}


def written(folder: Path, **changes: Any) -> Path:
    settings = {"mode": "learn", "testbed": wall(), "training": {"rounds": 3, "batch_size": 16}, **changes}
    return write_tiny(folder, **settings)


def runs_in(folder: str) -> list[dict[str, Any]]:
    return [yaml.safe_load(path.read_text()) for path in sorted(Path("runs", folder).glob("*/experiment.yaml"))]


def test_a_rehearsal_prices_what_the_profiles_do_not_know(ammeter: Ammeter, tmp_path: Path) -> None:
    """Boards are 25 % slower than their profiles, the rehearsal has seen it: nothing is off."""
    code, out, err = ammeter("validate", written(tmp_path, methods=METHODS))
    assert code == 0, err
    for word in ("FedAvg", "SFL", "makespan", "compute", "transfer up", "messages down", "wire bytes up", "yes"):
        assert word in out
    assert "NO" not in out
    assert "rehearsals of 2 rounds; of the predicted compute seconds they had measured 100.0% or more" in err
    assert "predicted figures are within their tolerances" in err
    assert [run["training"]["rounds"] for run in runs_in("tiny")] == [3, 3]
    assert [run["training"]["rounds"] for run in runs_in("tiny-rehearsal")] == [2, 2]
    assert {(run["mode"], run["testbed"]["name"]) for run in runs_in("tiny-predicted")} == {("timing", "virtual")}
    assert sorted(path.name for path in Path("figures/tiny").iterdir()) == ["validation.pdf", "validation.png"]


def test_profiles_are_off_where_boards_are_slower(ammeter: Ammeter, tmp_path: Path) -> None:
    """Compute is predicted as 1 / 1.25 of what is measured: 20 % too little."""
    code, out, err = ammeter("validate", written(tmp_path), "--prices", "profile", "--no-figures", "--format", "csv")
    assert code == 1
    table = pd.read_csv(io.StringIO(out))
    compute = table[table["quantity"] == "compute"]
    assert compute["error"].tolist() == [pytest.approx(-0.2)] * 3
    assert not compute["met"].astype(bool).any()
    assert "figures are beyond their tolerance: " in err
    assert "compute (3)" in err
    assert "what the devices' profiles say" in err
    assert not Path("runs/tiny-rehearsal").exists()


def test_a_tolerance_can_be_widened(ammeter: Ammeter, tmp_path: Path) -> None:
    wide = [f"{kind}=0.5" for kind in ("makespan", "round_time", "compute", "idle")]
    given = [word for tolerance in wide for word in ("--tolerance", tolerance)]
    code, _, _ = ammeter("validate", written(tmp_path), "--prices", "profile", "--no-figures", *given)
    assert code == 0


def test_the_whole_table_is_written_beside_the_runs(ammeter: Ammeter, tmp_path: Path) -> None:
    _, out, _ = ammeter("validate", written(tmp_path, seeds=[1, 2]), "--no-figures", "--format", "csv")
    table = pd.read_csv("runs/tiny/validation.csv")
    assert tuple(table.columns) == validation.COLUMNS
    assert out == Path("runs/tiny/validation.csv").read_text()
    assert table["seed"].unique().tolist() == [1, 2]


def test_learning_predictions_end_with_the_same_weights(ammeter: Ammeter, tmp_path: Path) -> None:
    code, out, err = ammeter("validate", written(tmp_path), "--learn", "--no-figures", "--format", "csv")
    assert code == 0, err
    table = pd.read_csv(io.StringIO(out)).set_index("quantity")
    assert table.loc["equal weights", "measured"] == table.loc["equal weights", "predicted"] > 0
    assert [run["mode"] for run in runs_in("tiny-predicted")] == ["learn"]


def test_complete_runs_are_kept(ammeter: Ammeter, tmp_path: Path) -> None:
    path = written(tmp_path)
    ammeter("validate", path, "--no-figures")
    _, _, err = ammeter("validate", path, "--no-figures")
    assert [line for line in err.splitlines() if line.startswith("[")] == ["[1/1] fedavg, seed 1: kept"] * 3


def test_what_the_rehearsal_has_not_measured_is_said(ammeter: Ammeter, tmp_path: Path) -> None:
    _, _, err = ammeter("validate", written(tmp_path, testbed=wall(forgets=99)), "--no-figures")
    assert "fedavg: only 0.0% of the compute seconds were measured in the rehearsal" in err
    assert "--rehearsal-rounds" in err


def test_a_rehearsal_can_be_longer(ammeter: Ammeter, tmp_path: Path) -> None:
    ammeter("validate", written(tmp_path), "--no-figures", "--rehearsal-rounds", 1)
    assert [run["training"]["rounds"] for run in runs_in("tiny-rehearsal")] == [1]


def test_swept_points_are_pairs_of_their_own(ammeter: Ammeter, tmp_path: Path) -> None:
    path = written(tmp_path, sweep={"training.rounds": [1, 2]})
    _, out, _ = ammeter("validate", path, "--no-figures", "--format", "csv")
    labels = pd.read_csv(io.StringIO(out))["label"].unique().tolist()
    assert labels == ["fedavg, training.rounds=1", "fedavg, training.rounds=2"]


def test_a_method_that_steers_by_values_needs_to_learn(ammeter: Ammeter, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(STEERS)
    path = written(tmp_path, methods=[{"name": "./mine.py", "label": "Mine"}])
    code, _, err = ammeter("validate", path, "--no-figures", "--prices", "profile")
    assert code == 2
    assert "--learn" in err
    code, _, err = ammeter("validate", path, "--no-figures", "--learn")
    assert code == 0, err


STEERS = """
from harness.method import MethodConfig
import torch

class Config(MethodConfig):
    pass

def drawn():
    return torch.ones(3).sum().item()

async def device(node, task, config):
    await node.compute(drawn)
    await node.send("server", "done", torch.ones(4))

async def server(node, task, config):
    for _ in node.topology.devices:
        await node.recv("done")

ROLES = {"device": device, "server": server}
ENDS = "server"
"""


@pytest.mark.parametrize(
    ("changes", "arguments", "said"),
    [
        ({"testbed": tiny()["testbed"]}, (), "'virtual' is not on the wall clock"),
        ({"mode": "timing"}, (), "mode=learn"),
        ({}, ("--tolerance", "makespam=0.1"), "did you mean 'makespan'"),
        ({}, ("--tolerance", "makespan"), "has no value"),
        ({}, ("--tolerance", "makespan=x"), "is no number"),
        ({}, ("--rehearsal-rounds", "0"), "at least 1"),
        ({}, ("--jobs", "0"), "at least 1"),
    ],
)
def test_what_cannot_be_validated_is_refused(
    ammeter: Ammeter, tmp_path: Path, changes: dict[str, Any], arguments: tuple[str, ...], said: str
) -> None:
    code, _, err = ammeter("validate", written(tmp_path, **changes), *arguments)
    assert code == 2
    assert said in err
    assert not Path("runs").exists()


def test_a_rehearsal_without_its_times_is_named(ammeter: Ammeter, tmp_path: Path) -> None:
    path = written(tmp_path)
    ammeter("validate", path, "--no-figures")
    (file,) = Path("runs/tiny-rehearsal").glob("*/timings.json")
    file.unlink()
    code, _, err = ammeter("validate", path, "--no-figures")
    assert code == 2
    assert f"{file}: is missing" in err


@pytest.mark.slow
def test_processes_of_this_host_send_what_is_predicted(ammeter: Ammeter, tmp_path: Path) -> None:
    """Real processes over real sockets: how many messages, how many bytes; what takes how long is not asked."""
    section = wall(name="local", compute="native", shaped=False, preflight=False)
    path = written(tmp_path, testbed=section, training={"rounds": 2, "batch_size": 16})
    code, out, err = ammeter("validate", path, "--learn", "--no-figures", "--format", "csv")
    assert code in (0, 1), err
    table = pd.read_csv(io.StringIO(out)).set_index("quantity")
    for quantity in ("messages up", "messages down", "payload up", "payload down", "wire bytes up", "equal weights"):
        assert table.loc[quantity, "measured"] > 0
        assert table.loc[quantity, "met"] in (True, "True"), quantity
    (folder,) = Path("runs/tiny-rehearsal").glob("*/timings.json")
    assert json.loads(folder.read_text())["nodes"]["device-0"]

"""A testbed that stands: runs on it are as on containers of their own, and leave it as it was made."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faulty_beds
import pandas as pd
import psutil
import pytest
import yaml
from docker_host import engine_or_skip
from faulty_beds import BASE, Local, until
from netns import namespaces_or_skip

from harness import experiment
from harness.cli.main import main
from harness.errors import TestbedError
from harness.experiment import RunSpec
from harness.record import Recorder
from harness.run import execute
from results.store import Run, state
from testbeds._fleet.links import topology
from testbeds.docker import access, emulator, leftovers, ownership, shaping_tc, standing
from testbeds.docker.calibration import Calibrated
from testbeds.docker.limits import Limits, apply
from testbeds.docker.standing import Standing

pytestmark = pytest.mark.slow
using = pytest.mark.usefixtures("up")

ROOT = Path(__file__).parents[3]
PATIENT = str(Path(faulty_beds.__file__).with_name("patient.py"))
NATIVE: dict[str, Any] = {"compute": "native", "shaped": False}
QUOTA: dict[str, Any] = {
    "compute": "quota",
    "shaped": True,
    "dilation": 20,
    "network": {"up_bps": 2e7, "down_bps": 2e7},
    "silence_s": 30.0,
}
TWO: dict[str, Any] = {"devices": [{"profile": "rpi-4-4g", "count": 2}]}
SHAPED: dict[str, Any] = {"shaped": True, "network": {"up_bps": 2e7, "down_bps": 2e7}}
CONTROLLER = """
import json, sys
from harness import experiment
from harness.record import Recorder
from harness.run import execute
(spec,) = experiment.runs(experiment.parse(json.loads(sys.argv[1])))
execute(spec, Recorder(None))
"""


class Standings(Local):
    """Runs on the docker testbed, which use one that stands where they can."""

    name = "docker"
    section: dict[str, Any] = {"name": "docker", **NATIVE}  # noqa: RUF012 - read only

    def pid(self, name: str) -> int:
        """Return the process of a node's worker."""
        return int(until(lambda: worker(name), f"a worker of {name}"))


def data(**testbed: Any) -> dict[str, Any]:
    """Return a small experiment on three nodes."""
    bed = {**BASE["testbed"], "name": "docker", **NATIVE, **TWO, **testbed}
    return {**BASE, "training": {"rounds": 2, "batch_size": 16, "optimizer": {"lr": 0.02}}, "testbed": bed}


def spec(**testbed: Any) -> RunSpec:
    (found,) = experiment.runs(experiment.parse(data(**testbed)))
    return found


def the_one() -> Standing:
    (found,) = standing.find()
    return found


def containers() -> dict[str, Any]:
    """Return what the engine says of each node of what stands."""
    with contextlib.closing(access.connect()) as client:
        labelled: Any = {"label": f"{ownership.RUN}={the_one().made.run}"}
        there = client.containers.list(all=True, filters=labelled, ignore_removed=True)
        return {container.labels[ownership.NODE]: container.attrs for container in there}


def template(name: str) -> int:
    return int(containers()[name]["State"]["Pid"])


def worker(name: str) -> int:
    """Return the process of a node's worker; 0: there is none."""
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(template(name)).children():
            if child.status() != psutil.STATUS_ZOMBIE:
                return child.pid
    return 0


def quotas() -> dict[str, int]:
    return {name: said["HostConfig"]["CpuQuota"] for name, said in containers().items()}


def qdiscs(name: str) -> list[str]:
    """Return the kinds of the qdiscs of a node's interfaces."""
    status, said, complaint = shaping_tc.run(["tc", "-json", "qdisc", "show"], template(name))
    assert status == 0, complaint
    return [row["kind"] for row in json.loads(said)]


def check_as_made() -> None:
    """No worker, no quota, no shaping; the memory that it was made with; nobody uses it."""
    for name, said in containers().items():
        assert said["State"]["Running"]
        assert said["HostConfig"]["CpuQuota"] <= 0
        assert said["HostConfig"]["Memory"] == the_one().made.nodes[name].memory_bytes
        assert worker(name) == 0
        assert set(qdiscs(name)) == {"noqueue"}
    with the_one().used() as mine:
        assert mine


def command(*words: str) -> tuple[int, str, str]:
    """Run the verb; return its exit code, output and complaints."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = main(["testbed", *words])
    return code, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pd.DataFrame]:
    """A testbed that stands, and the table that `up` printed. At the end it is taken down, and nothing is left."""
    engine_or_skip()
    namespaces_or_skip()
    folder = tmp_path_factory.mktemp("state")
    file = folder / "faults.yaml"
    file.write_text(yaml.safe_dump(data()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(folder))
        name = f"t{os.getpid()}-{time.time_ns() % 10**6}"
        code, out, err = command("up", str(file), "--name", name, "--format", "csv")
        try:
            assert code == 0, err
            yield pd.read_csv(io.StringIO(out))
            with the_one().used() as mine:
                assert mine
                code, _, err = command("down")
                assert (code, err) == (2, f"ammeter: the testbed {name} is in use; wait for the run, or say --force\n")
                assert len(containers()) == 3
                assert command("down", name, "--force") == (0, "", f"removed {name}\n")
            assert standing.find() == []
            assert [thing for thing in leftovers.find(all=True) if thing.standing == name] == []
            assert list((folder / "ammeter" / "testbeds").iterdir()) == []
        finally:
            leftovers.remove(thing for thing in leftovers.find(all=True) if thing.standing == name)


@pytest.fixture
def bed(up: pd.DataFrame, tmp_path: Path) -> Standings:
    assert len(up) == 3
    return Standings(tmp_path / "runs")


def notes(run: Run) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run.folder / "environment.json").read_text())["testbed"]
    return found


# ---- what is made -----------------------------------------------------------------------------------------------


def test_what_stands_is_listed_and_kept_from_others(up: pd.DataFrame) -> None:
    assert list(up.columns) == ["node", "board", "address", "state"]
    assert list(up["node"]) == ["device-0", "device-1", "server"]
    assert list(up["board"]) == ["rpi-4-4g"] * 2 + ["rpi-5-8g"]
    assert set(up["state"]) == {"up"}
    assert up["address"].nunique() == 3
    found = the_one()
    assert found.folder.stat().st_mode & 0o777 == 0o700
    private = [path for path in found.keys.iterdir() if path.suffix == ".key"]
    assert len(private) == 4
    assert {path.stat().st_mode & 0o777 for path in private} == {0o600}
    code, out, _ = command("status", "--format", "csv")
    table = pd.read_csv(io.StringIO(out)).set_index("name")
    assert code == 0
    assert table.loc[found.name, "state"] == "3 of 3 nodes up, free"
    mine = table[table["run"] == found.made.run].drop(found.name)
    assert sorted(mine["what"]) == ["container"] * 3 + ["network"] * 2
    assert set(mine["state"]) == {f"of {found.name}"}
    assert [thing for thing in leftovers.find() if thing.run == found.made.run] == []  # `clean` leaves it alone
    check_as_made()


@using
def test_a_name_is_used_once() -> None:
    with pytest.raises(TestbedError, match=f"a testbed {the_one().name} is there already: ammeter testbed down"):
        standing.up(spec(), the_one().name, None)
    assert len(containers()) == 3


# ---- runs on it -------------------------------------------------------------------------------------------------


@using
def test_results_are_those_on_containers_of_its_own_to_the_bit(
    capsys: pytest.CaptureFixture[str],
) -> None:
    standing._say.cache_clear()
    first, second = (execute(spec(), Recorder(None)) for _ in range(2))
    assert capsys.readouterr().err == f"on the standing testbed {the_one().name}\n"
    with the_one().used() as mine:
        assert mine
        own = execute(spec(), Recorder(None))
    assert capsys.readouterr().err == f"the standing testbed {the_one().name} is in use: on containers of its own\n"
    assert [run.notes["throttles"].get("standing") for run in (first, second, own)] == [the_one().name] * 2 + [None]
    assert len(own.fingerprints) >= 2
    assert first.fingerprints == second.fingerprints == own.fingerprints
    assert first.sent == second.sent == own.sent
    assert first.notes["strangers"] == second.notes["strangers"] == []
    check_as_made()


@using
def test_quotas_and_shaping_are_gone_after_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    async def at_once(measure: Any, grant: Any, cpus: float, most: float, target_s: float) -> Calibrated:  # noqa: ARG001
        await grant(0.4)
        return Calibrated(0.4, target_s, (await measure(1))[0], 0)

    monkeypatch.setattr(emulator, "calibrate", at_once)  # which may take a minute on a busy host
    outcome = execute(spec(**QUOTA), Recorder(None))
    for said in outcome.notes["throttles"]["nodes"].values():
        assert said["limits"]["cpus"] == 0.4
        assert said["cpu"]["periods"] > 0
        assert said["shaping"]["up"]["kind"] == "htb"
        assert said["memory_peak_bytes"] is None or said["memory_peak_bytes"] > 0
    check_as_made()


@using
def test_after_a_killed_controller_the_next_run_resets_everything(tmp_path: Path) -> None:
    changed = data(**SHAPED)
    changed["training"] = {**changed["training"], "rounds": 1000}
    words = [sys.executable, "-c", CONTROLLER, json.dumps(changed)]
    # its own temporary folder stays, as any killed controller's does
    with subprocess.Popen(words, cwd=ROOT, env={**os.environ, "TMPDIR": str(tmp_path)}) as controller:
        until(lambda: controller.poll() is not None or all("htb" in qdiscs(name) for name in quotas()), "a run")
        workers = [worker(name) for name in quotas()]
        controller.kill()
    assert all(workers)
    with contextlib.closing(access.connect()) as client:
        for said in containers().values():  # as if it had been throttled, too
            apply(client.containers.get(said["Id"]), Limits(0.1))
    assert set(quotas().values()) == {10_000}
    until(lambda: not any(worker(name) for name in quotas()), "the workers' ends")
    outcome = execute(spec(), Recorder(None))
    assert outcome.notes["throttles"]["standing"] == the_one().name
    assert outcome.notes["strangers"] == []
    check_as_made()


@pytest.mark.parametrize("what", ["worker", "container"])
def test_a_node_that_is_killed_comes_back(bed: Standings, what: str) -> None:
    """Its container stays where it can, and is started again where it cannot."""
    was = containers()["device-1"]["Id"]
    bed.start({"name": PATIENT, "base": "fedavg", "split_point": 2}, on_loss="rejoin", **TWO)
    bed.until_at(0.3)
    pid = bed.pid("device-1")
    os.kill(pid if what == "worker" else template("device-1"), signal.SIGKILL)
    run = bed.end()
    assert state(run.folder) == "complete"
    lost, returned = notes(run)["losses"]
    assert lost["node"] == "device-1"
    if what == "worker":  # how a container has ended the engine says, by when its peers may have missed it
        assert lost["why"] == "was killed by signal 9"
    assert returned["incarnation"] == 1
    assert not psutil.pid_exists(pid)
    assert (containers()["device-1"]["Id"] == was) is (what == "worker")
    assert notes(run)["strangers"] == []
    check_as_made()


def test_a_node_that_freezes_is_lost_and_never_comes_back_as_another(bed: Standings) -> None:
    bed.start({"name": PATIENT, "base": "fedavg", "split_point": 2}, on_loss="rejoin", **TWO)
    bed.until_at(0.3)
    pid = bed.pid("device-0")
    os.kill(pid, signal.SIGSTOP)
    lost, returned = notes(bed.end())["losses"]
    assert lost["why"].startswith("has said nothing for ")
    assert returned["incarnation"] == 1
    assert not psutil.pid_exists(pid)
    check_as_made()


# ---- when it is not used ----------------------------------------------------------------------------------------


def lent(**testbed: Any) -> bool:
    with standing.borrowed(spec(**testbed), None) as found:
        return found is not None


@using
def test_only_runs_on_the_same_nodes_use_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert lent()
    assert lent(**QUOTA)  # networks and dilation are shaped anew for each run
    for other in (
        {"devices": [{"profile": "rpi-4-4g", "count": 3}]},
        {"devices": [{"profile": "rpi-5-8g", "count": 2}]},
        {"server": {"profile": "rpi-4-4g", "network": {}}},
        {"memory": False},
        {"threads": 2},
        {"image": "another"},
    ):
        assert not lent(**other), other
    monkeypatch.chdir(tmp_path)  # its containers show another folder
    assert not lent()


@using
def test_one_run_at_a_time_uses_it(capsys: pytest.CaptureFixture[str]) -> None:
    standing._say.cache_clear()
    with standing.borrowed(spec(), None) as found:
        assert found is not None
        assert not lent()
        assert "is in use: on containers of its own" in capsys.readouterr().err
        assert "3 of 3 nodes up, in use" in command("status", "--format", "csv")[1]
    assert lent()


@using
def test_other_code_is_refused_with_what_mends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standing, "_code", lambda: "another")
    name = the_one().name
    with pytest.raises(TestbedError, match=rf"{name} was made by another .*: ammeter testbed down {name}; ammeter tes"):
        lent()


# ---- without one ------------------------------------------------------------------------------------------------


@pytest.fixture
def none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of our own for what stands: nothing does."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path / "ammeter" / "testbeds"


def test_without_an_engine_nothing_is_left(none: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{none}/none.sock")
    with pytest.raises(TestbedError, match="no engine answers"):
        standing.up(spec(), "mine", None)
    assert list(none.iterdir()) == []
    assert standing.table([]) == []


def test_what_cannot_start_leaves_nothing(none: Path) -> None:
    engine_or_skip()
    with pytest.raises(TestbedError, match="the engine has no 'never-built'"):
        standing.up(spec(image="never-built"), "mine", None)
    assert list(none.iterdir()) == []
    assert [thing for thing in leftovers.find(all=True) if thing.standing == "mine"] == []


def test_what_was_never_finished_is_told_and_can_be_removed(none: Path) -> None:
    engine_or_skip()
    (none / "half").mkdir(parents=True)
    assert not lent()
    ((_, name, _, _, said),) = standing.table([])
    assert (name, said) == ("half", "never came up: ammeter testbed down half")
    assert standing.down(None) == ("half", [])
    assert list(none.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["down"], "no testbed stands here; ammeter testbed up EXPERIMENT"),
        (["down", "mine"], "no testbed mine stands here; there are: none"),
        (["up", "quickstart"], "virtual leaves nothing standing; that can: docker"),
        (["up", "validate", "-s", "testbed.name=docker", "--name", "a b"], "--name a b: "),
    ],
)
def test_mistakes_are_said(none: Path, words: list[str], said: str) -> None:
    engine_or_skip()
    code, _, err = command(*words)
    assert code == 2
    assert said in err
    assert not none.exists() or list(none.iterdir()) == []


def test_nodes_are_compared_by_what_they_are_made_from() -> None:
    bed: Any = spec().bed
    nodes = standing._nodes(bed, topology(bed))
    assert [node.board for node in nodes.values()] == ["rpi-4-4g"] * 2 + ["rpi-5-8g"]
    assert {node.threads for node in nodes.values()} == {1}

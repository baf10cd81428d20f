"""Really trained FedAvg beside Flower's simulation and pfl-research: whole jobs, each in fresh processes, in turn.

    python3 -m venv PEERS/flwr && PEERS/flwr/bin/pip install torch==2.13.0 'flwr[simulation]'
    python3 -m venv PEERS/pfl  && PEERS/pfl/bin/pip install torch==2.13.0 'pfl[pytorch]'
    AMMETER_DATA=DATA python -m tests.bench.peers --flwr-python PEERS/flwr/bin/python --pfl-python PEERS/pfl/bin/python

from the repository's root, on an idle machine. `--only NAME` measures some of the settings, `--json FILE` keeps every
single run. The job: Fashion-MNIST, 100 clients, Dirichlet 0.5, 10 clients a round, 5 rounds, one local epoch, batches
of 32, plain SGD at 0.05, the network of cnn.py, on two cores. All share partition, cohorts and first weights (Ammeter's
for that seed), so they train the same samples; only the order of the samples differs. Measured from outside:

- samples/s: training samples over the wall time of the whole job, from the start of its first process to the end of
  its last, start-up and one evaluation on the 10,000 test samples included.
- start-up: from the start of the process to the first training step (cnn.py notes it the same way for all).
- peak memory: largest sum of PSS (proportional set size: shared pages count once) over the job's processes, looked at
  every quarter of a second.

Every framework may use its faster setting: Flower two clients at once with one thread each, or one with two threads;
pfl one process with two threads, or two with one each; Ammeter two devices beside each other, or one on two threads.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import yaml

from harness import experiment
from harness.randomness import stream, torch_seed
from harness.run import workload
from harness.task.data import fashion_mnist
from harness.topology import Topology
from methods import fedavg
from results import store
from tests.bench.peers.cnn import MARK
from tests.bench.peers.job import SHAPE, Job

ROOT = Path(__file__).parents[3]
EXPERIMENT = Path(__file__).with_name("ammeter_fedavg.yaml")
CORES = 2
SAMPLED_EVERY_S = 0.25


@dataclass(frozen=True)
class Measured:
    """One job as seen from outside."""

    setting: str
    seed: int
    samples: int
    wall_s: float
    start_up_s: float
    peak_bytes: int
    accuracy: float
    load: float

    @property
    def samples_per_s(self) -> float:
        return self.samples / self.wall_s


# ---- the job ---------------------------------------------------------------------------------------------------


def written(seed: int, data: Path, folder: Path) -> Job:
    """Write the job of that seed for the other frameworks: Ammeter's partition, cohorts and first weights."""
    spec = experiment.runs(experiment.read(str(EXPERIMENT), [f"seeds=[{seed}]"]))[0]
    clients = yaml.safe_load(EXPERIMENT.read_text())["testbed"]["devices"][0]["count"]
    load = workload(spec, Topology.numbered(clients), data)
    training = spec.training
    assert isinstance(spec.config, fedavg.Config)
    count = round(spec.config.fraction * clients)
    cohorts = [  # what Node.sample chooses; `measure` checks that the samples trained are the same
        sorted(stream(seed, "sample", index).choice(clients, size=count, replace=False).tolist())
        for index in range(1, training.rounds + 1)
    ]
    assert load.dataset is not None
    scale = load.dataset.scale
    assert scale is not None
    job = Job(
        folder=str(folder),
        clients=clients,
        cohorts=cohorts,
        batch_size=training.batch_size,
        lr=training.optimizer.lr,
        weights_seed=torch_seed(seed, "model"),
        seed=seed,
        mean=scale.mean[0] * scale.unit,
        std=scale.std[0] * scale.unit,
    )
    folder.mkdir(parents=True)
    train, test = load.dataset.train, load.dataset.test
    assert fashion_mnist.INFO.input_shape == SHAPE
    job.write(
        {
            "train_images": train.inputs.squeeze(1).numpy(),
            "train_labels": train.labels.numpy(),
            "test_images": test.inputs.squeeze(1).numpy(),
            "test_labels": test.labels.numpy(),
            "parts": np.concatenate(load.parts),
            "ends": np.cumsum([len(part) for part in load.parts]),
        }
    )
    return job


def due(job: Job) -> int:
    """Return how many samples the job trains."""
    ends = np.load(Path(job.folder) / "ends.npy")
    sizes = np.diff(ends, prepend=0)
    return int(sum(sizes[client] for cohort in job.cohorts for client in cohort))


# ---- the settings ----------------------------------------------------------------------------------------------

Command = Callable[[Job, Path], list[str]]
"""(job, folder for what it writes) -> the command line."""


def _flower(python: str, threads: int) -> Command:
    module = "tests.bench.peers.flower_fedavg"
    return lambda job, out: [python, "-m", module, job.folder, str(out / "result.json"), str(threads)]


def _pfl(python: str, processes: int) -> Command:
    start = [python, "-m"]
    if processes > 1:
        start += ["torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), "-m"]
    return lambda job, out: [*start, "tests.bench.peers.pfl_fedavg", job.folder, str(out / "result.json")]


def _ammeter(*overrides: str) -> Command:
    def command(job: Job, out: Path) -> list[str]:
        settings = [f"seeds=[{job.seed}]", *overrides]
        given = [word for setting in settings for word in ("-s", setting)]
        run = ["run", str(EXPERIMENT), *given, "--no-figures", "--runs", str(out)]
        return [sys.executable, "-m", "harness.cli.main", *run]

    return command


def settings(flwr_python: str | None, pfl_python: str | None) -> dict[str, Command]:
    """Return the commands to measure, by name."""
    found = {
        "Ammeter, 2 workers": _ammeter("testbed.workers=2", "testbed.threads=1"),
        "Ammeter, 2 threads": _ammeter("testbed.workers=1", "testbed.threads=2"),
    }
    if flwr_python:
        found |= {f"Flower, {2 // t} x {t} CPU": _flower(flwr_python, t) for t in (1, 2)}
    if pfl_python:
        found |= {f"pfl, {n} process{'es' * (n > 1)}": _pfl(pfl_python, n) for n in (1, 2)}
    return found


# ---- measuring -------------------------------------------------------------------------------------------------


def _tree_bytes(process: psutil.Popen) -> int:
    """Return the summed PSS of a process and all below it."""
    total = 0
    try:
        tree = [process, *process.children(recursive=True)]
    except psutil.Error:
        return 0
    for member in tree:
        try:
            total += member.memory_full_info().pss
        except psutil.Error:  # it has ended
            continue
    return total


def measure(name: str, command: Command, job: Job, out: Path, data: Path) -> Measured:
    """Run one job and measure it.

    Raises:
        RuntimeError: it failed, or trained other samples than it should.
    """
    out.mkdir(parents=True)
    mark = out / "first_step"
    environment = {**os.environ, MARK: str(mark), "AMMETER_DATA": str(data), "PYTHONPATH": str(ROOT)}
    environment |= {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": str(CORES)}
    if name.startswith(("Flower", "pfl")):
        del environment["OMP_NUM_THREADS"]  # their scripts set the threads of each process
    load = os.getloadavg()[0]
    peak_bytes = 0
    with (out / "log").open("w") as log:
        began, clock = time.time(), time.perf_counter()
        process = psutil.Popen(command(job, out), cwd=ROOT, env=environment, stdout=log, stderr=log)
        while True:
            peak_bytes = max(peak_bytes, _tree_bytes(process))
            try:
                process.wait(SAMPLED_EVERY_S)
            except (subprocess.TimeoutExpired, psutil.TimeoutExpired):
                continue
            break
        wall_s = time.perf_counter() - clock
    if process.returncode != 0:
        raise RuntimeError(f"{name} failed:\n{(out / 'log').read_text()[-4000:]}")
    samples, accuracy = _ammeters(out) if name.startswith("Ammeter") else _peers(out)
    if samples != due(job):
        raise RuntimeError(f"{name} trained {samples} samples, not {due(job)}")
    start_up_s = float(mark.read_text()) - began
    return Measured(name, job.seed, samples, wall_s, start_up_s, peak_bytes, accuracy, load)


def _ammeters(out: Path) -> tuple[int, float]:
    run = store.find([out])[0]
    return int(run.table("compute")["samples"].sum()), float(run.summary["accuracy"])


def _peers(out: Path) -> tuple[int, float]:
    found: dict[str, Any] = json.loads((out / "result.json").read_text())
    return int(found["samples"]), float(found["accuracy"])


# ---- the report ------------------------------------------------------------------------------------------------


def table(measured: list[Measured]) -> str:
    """Return a Markdown table: medians over runs, mean and standard deviation of the accuracy over seeds."""
    lines = [
        "| | samples/s | whole job, s | start-up, s | peak memory, MiB | test accuracy | runs |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(m.setting for m in measured):
        mine = [m for m in measured if m.setting == name]
        accuracy = {m.seed: m.accuracy for m in mine}
        spread = f" ± {statistics.stdev(accuracy.values()):.3f}" if len(accuracy) > 1 else ""
        lines.append(
            f"| {name} "
            f"| {statistics.median(m.samples_per_s for m in mine):,.0f} "
            f"| {statistics.median(m.wall_s for m in mine):.1f} "
            f"| {statistics.median(m.start_up_s for m in mine):.2f} "
            f"| {statistics.median(m.peak_bytes for m in mine) / 2**20:,.0f} "
            f"| {statistics.mean(accuracy.values()):.3f}{spread} "
            f"| {len(mine)} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flwr-python", help="python of an environment with flwr[simulation]")
    parser.add_argument("--pfl-python", help="python of an environment with pfl[pytorch]")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("AMMETER_DATA", "data")))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--only", action="append", help="measure only settings whose name begins like this")
    parser.add_argument("--json", type=Path, help="write every single run there")
    args = parser.parse_args()
    os.chdir(ROOT)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    chosen = settings(args.flwr_python, args.pfl_python)
    if args.only:
        chosen = {name: c for name, c in chosen.items() if name.startswith(tuple(args.only))}
    measured = []
    with tempfile.TemporaryDirectory() as temporary:
        for seed in args.seeds:
            job = written(seed, args.data, Path(temporary) / f"job-{seed}")
            for name, command in chosen.items():
                out = Path(temporary) / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"
                measured.append(measure(name, command, job, out, args.data))
                print(measured[-1], file=sys.stderr)
    print(table(measured))
    if args.json:
        args.json.write_text(json.dumps([asdict(m) | {"samples_per_s": m.samples_per_s} for m in measured], indent=2))


if __name__ == "__main__":
    main()

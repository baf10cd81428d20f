"""The job in Flower's simulation runtime: python -m tests.bench.peers.flower_fedavg JOB RESULT [CPUS_PER_CLIENT].

Runs in an environment with flwr[simulation] and torch. As Flower's guide for simulations says: `client_resources`
decide how many clients run at once (1 CPU each: two on two cores), each with as many torch threads; model and samples
are kept in the actor between clients. Federated evaluation is off; the global model is scored once, at the end.
"""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Iterable
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from tests.bench.peers import job as jobs

CORES = 2


@functools.cache
def _kept(folder: str, threads: int) -> tuple[jobs.Job, jobs.Samples, torch.nn.Sequential]:
    """What an actor keeps: the job, its samples and a model."""
    torch.set_num_threads(threads)
    job = jobs.read(folder)
    return job, jobs.Samples(job), job.model()


def train(message: Message, context: Context) -> Message:  # noqa: ARG001 - the shape Flower asks for
    """One client's epoch."""
    config = message.content["config"]
    job, samples, model = _kept(config["folder"], config["threads"])
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    images, labels = samples.client(config["client"], config["server-round"])
    jobs.train(model, images, labels, job)
    metrics = MetricRecord({"num-examples": len(labels)})
    content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
    return Message(content=content, reply_to=message)


class Cohorts(FedAvg):  # type: ignore[misc]
    """FedAvg that names the client each of its messages is for, so that all frameworks train the same ones."""

    def __init__(self, job: jobs.Job, threads: int) -> None:
        super().__init__(fraction_train=len(job.cohorts[0]) / job.clients, fraction_evaluate=0.0)
        self._job = job
        self._threads = threads
        self.samples = 0

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        nodes = sorted(grid.get_node_ids())
        messages = []
        for client in self._job.cohorts[server_round - 1]:
            told = {"server-round": server_round, "client": client}
            told |= {"folder": self._job.folder, "threads": self._threads}
            content = RecordDict({"arrays": arrays, "config": ConfigRecord({**config, **told})})
            messages.append(Message(content=content, message_type=MessageType.TRAIN, dst_node_id=nodes[client]))
        return messages

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        replies = list(replies)
        self.samples += sum(int(reply.content["metrics"]["num-examples"]) for reply in replies)
        return super().aggregate_train(server_round, replies)


def main(folder: str, result: str, threads: int) -> None:
    """Run the job; write RESULT."""
    logging.getLogger("flwr").setLevel(logging.WARNING)
    job = jobs.read(folder)
    client_app, server_app = ClientApp(), ServerApp()
    client_app.train()(train)

    @server_app.main()
    def serve(grid: Grid, context: Context) -> None:  # noqa: ARG001 - the shape Flower asks for
        strategy = Cohorts(job, threads)
        model = job.model()
        found = strategy.start(grid, ArrayRecord(model.state_dict()), num_rounds=job.rounds)
        torch.set_num_threads(CORES)
        model.load_state_dict(found.arrays.to_torch_state_dict())
        jobs.finish(result, strategy.samples, jobs.Samples(job).accuracy(model))

    resources = {"num_cpus": threads, "num_gpus": 0.0}
    run_simulation(
        server_app,
        client_app,
        num_supernodes=job.clients,
        backend_config={"client_resources": resources, "init_args": {"num_cpus": CORES, "include_dashboard": False}},
    )


if __name__ == "__main__":
    from tests.bench.peers import flower_fedavg  # by its name, so that the actors import `train` and keep its cache

    flower_fedavg.main(sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 1)

"""The job in pfl-research: python -m tests.bench.peers.pfl_fedavg JOB RESULT.

Runs in an environment with pfl[pytorch]. `SimulatedBackend` in one process with two torch threads, or, started by
`torchrun --nproc_per_node 2 -m tests.bench.peers.pfl_fedavg JOB RESULT`, in two processes with one thread each that
share a cohort, as pfl's guide for distributed simulations says. Samples are in memory; evaluation on the clients'
data, which pfl makes in its first round, is off; the global model is scored once, at the end.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import sys
from typing import Any

import torch
import torch.nn.functional as F
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.hyperparam import NNTrainHyperParams
from pfl.internal.ops.pytorch_ops import distributed
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel
from torch import Tensor

from tests.bench.peers import job as jobs

CORES = 2


class Network(torch.nn.Module):
    """The network with the two functions that pfl asks for."""

    def __init__(self, layers: torch.nn.Sequential) -> None:
        super().__init__()
        self.layers = layers

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy of a batch."""
        self.train()
        return F.cross_entropy(self.layers(images), labels)

    def metrics(self, images: Tensor, labels: Tensor) -> dict[str, Any]:  # noqa: ARG002 - the shape pfl asks for
        """Return nothing: clients do not evaluate."""
        return {}


class TrainOnly(FederatedAveraging):  # type: ignore[misc]
    """Federated averaging without evaluation on the clients' data; counts the samples."""

    samples = 0

    def get_next_central_contexts(self, *args: Any, **kwargs: Any) -> tuple[Any, Any, Metrics]:
        contexts, model, metrics = super().get_next_central_contexts(*args, **kwargs)
        if contexts is not None:
            contexts = tuple(dataclasses.replace(context, do_evaluation=False) for context in contexts)
        return contexts, model, metrics

    def train_one_user(self, initial_model_state: Any, model: Any, user_dataset: Any, central_context: Any) -> Any:
        self.samples += len(user_dataset)
        return super().train_one_user(initial_model_state, model, user_dataset, central_context)


def main(folder: str, result: str) -> None:
    """Run the job; write RESULT."""
    torch.set_num_threads(CORES // distributed.world_size)
    job = jobs.read(folder)
    samples = jobs.Samples(job)
    turns: list[int] = [0] * job.clients

    def load(client: int) -> PyTorchTensorDataset:
        turns[client] += 1
        return PyTorchTensorDataset(samples.client(client, turns[client]), user_id=str(client))

    everybody = itertools.cycle(itertools.chain.from_iterable(job.cohorts))
    dataset = FederatedDataset(load, lambda: next(everybody))
    network = Network(job.model())
    algorithm = TrainOnly()
    algorithm.run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=job.rounds,
            evaluation_frequency=job.rounds,
            train_cohort_size=len(job.cohorts[0]),
            val_cohort_size=None,
        ),
        backend=SimulatedBackend(dataset, dataset, postprocessors=[WeightByDatapoints()]),
        model=PyTorchModel(network, torch.optim.SGD, torch.optim.SGD(network.parameters(), lr=1.0)),
        model_train_params=NNTrainHyperParams(
            local_batch_size=job.batch_size, local_num_epochs=1, local_learning_rate=job.lr
        ),
        send_metrics_to_platform=False,
    )
    trained = int(distributed.all_reduce([torch.tensor([float(algorithm.samples)])])[0])
    if distributed.global_rank == 0:
        torch.set_num_threads(CORES)
        jobs.finish(result, trained, samples.accuracy(network.layers))


if __name__ == "__main__":
    os.environ.setdefault("PFL_PYTORCH_DEVICE", "cpu")
    main(sys.argv[1], sys.argv[2])

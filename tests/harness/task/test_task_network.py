"""harness/task/network.py: the work of a network's step outside any run, whole, cut, frozen, and in inference."""

from __future__ import annotations

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from harness.cost.work import Phase, Work
from harness.errors import ConfigError
from harness.task import models
from harness.task.config import OptimizerConfig
from harness.task.network import Network
from harness.task.trainer import Trainer

IMAGE = (3, 64, 64)


def network(model: str = "resnet-18", shape: tuple[int, ...] = IMAGE, norm: str = "batch") -> Network:
    return Network(model, "image", shape, 10, norm=norm)


def flops(work: Work, *phases: Phase) -> float:
    return sum(group.flops * group.count for group in work.operators if group.phase in phases)


def test_a_published_network_has_an_identity_and_a_variant_has_none() -> None:
    assert network().step(2).work.network == "resnet-18 3x64x64"
    assert network(norm="group").step(2).work.network == ""
    assert network().inference(2).work.network == "resnet-18 3x64x64"


def test_inference_is_the_forward_pass_of_the_step() -> None:
    """Without the loading of the batch: no uint8 becomes float; and with the running statistics."""
    step, inference = network().step(4), network().inference(4)
    assert flops(inference.work, "forward") == flops(step.work, "forward") > 0
    assert flops(inference.work, "backward", "update") == 0
    assert inference.work.total_bytes("memory") < step.work.total_bytes("memory") / 3
    assert inference.work.kept_bytes == 0
    assert inference.peak_bytes < step.peak_bytes


def test_inference_keeps_weights_and_statistics_alone() -> None:
    built = models.build("resnet-18", "image", IMAGE, 10)
    numbers = sum(tensor.numel() for tensor in (*built.parameters(), *built.buffers()) if tensor.is_floating_point())
    assert network().inference(1).resident_bytes == 4 * numbers
    assert network().step(2).resident_bytes > 4 * numbers  # and the optimiser's state


def test_inference_is_linear_in_the_batch() -> None:
    one, four = network().inference(1), network().inference(4)
    assert four.work.flops == 4 * one.work.flops
    assert four.work.num_operators == one.work.num_operators


@pytest.mark.parametrize("model", ["resnet-18", "vgg-11", "mobilenet-v2", "vit-tiny"])
@pytest.mark.parametrize("cut", [1, 3])
def test_the_parts_of_a_step_have_the_flops_of_the_whole(model: str, cut: int) -> None:
    """The server's part has the gradient of the activation in place of the whole's: the same products."""
    built = network(model)
    device, server, activation = built.parts(cut, 4)
    assert device.work.flops + server.work.flops == pytest.approx(built.step(4).work.flops, rel=1e-9)
    assert activation[0] == 4
    assert device.work.network == server.work.network == f"{model} 3x64x64"
    assert device.resident_bytes + server.resident_bytes == built.step(4).resident_bytes


def test_a_later_cut_gives_the_device_more() -> None:
    built = network("vgg-11")
    parts = [built.parts(cut, 4)[0] for cut in range(1, 11)]
    work = [part.work.flops for part in parts]
    assert work == sorted(work)
    assert len(set(work)) == len(work)


@pytest.mark.parametrize("cut", [0, -1, 11, 99])
def test_a_cut_that_leaves_a_side_empty_is_refused(cut: int) -> None:
    with pytest.raises(ConfigError):
        network("vgg-11").parts(cut, 4)


def test_training_the_head_alone_has_a_whole_forward_and_little_more() -> None:
    step, frozen = network().step(4), network().forward_and_head(4)
    assert flops(frozen.work, "forward") == flops(step.work, "forward")
    assert 0 < flops(frozen.work, "backward") < 0.01 * flops(step.work, "backward")


def test_nothing_is_computed_or_allocated() -> None:
    """A network of 86 million weights on a mini-batch that no machine here would hold."""
    step = Network("vit-base", "image", (3, 224, 224), 1000).step(100_000)
    assert step.peak_bytes > 2**43


# ---- memory: against what PyTorch really allocates --------------------------------------------------------------


def allocated(model: str, side: int, batch: int) -> int:
    """Return the most that a training step on the CPU has allocated at one time, by the profiler's account."""
    shape = (3, side, side)
    trainer = Trainer(models.build(model, "image", shape, 10), None, OptimizerConfig(), "average", model)
    inputs, labels = torch.rand(batch, *shape), torch.randint(10, (batch,))
    trainer.fit(inputs, labels)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as seen:
        trainer.fit(inputs, labels)
    assert seen.profiler is not None
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "side", "batch"),
    [
        ("resnet-18", 112, 8),
        ("resnet-18", 64, 4),
        ("mobilenet-v2", 112, 4),
        ("mobilenet-v2", 64, 8),
        ("vit-tiny", 112, 8),
        ("vgg-11", 64, 8),
        ("vgg-11", 112, 4),
    ],
)
def test_the_peak_of_a_step_is_what_pytorch_allocates(model: str, side: int, batch: int) -> None:
    """Within 15 %; found within 4 %."""
    traced = network(model, (3, side, side)).step(batch).work.peak_bytes
    assert traced == pytest.approx(allocated(model, side, batch), rel=0.15)

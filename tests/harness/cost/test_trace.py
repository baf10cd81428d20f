"""harness/cost/trace.py: known layers have known work, on real and on meta tensors alike; memory by hand.

FLOPs count a multiply-add as two. A float has 4 bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.cost.trace import trace
from harness.cost.work import Work
from harness.task.config import OptimizerConfig
from harness.task.models.token_blocks import EncoderBlock, TokenPool
from harness.task.trainer import Trainer

DEVICES = ["cpu", "meta"]


def work_of(fn: Callable[..., Any], *args: Any) -> Work:
    return trace(fn, args)[1]


# ---- classes and FLOPs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
def test_a_linear_layer(device: str):
    """[3, 4] x [4, 5]: 2 x 3 x 4 x 5 FLOPs in one operator; nothing else."""
    work = work_of(nn.Linear(4, 5, device=device), torch.zeros(3, 4, device=device))
    assert (work.matmul_flops, work.flops, work.operators) == (120.0, 120.0, 1)
    assert (work.conv_flops, work.depthwise_bytes, work.norm_bytes, work.other_bytes) == (0, 0, 0, 0)


@pytest.mark.parametrize("device", DEVICES)
def test_a_convolution(device: str):
    """2 images of 3 x 8 x 8, 5 filters of 3 x 3, padding 1: 2 x 2 x 64 x 5 x 27 FLOPs."""
    layer = nn.Conv2d(3, 5, 3, padding=1, device=device)
    work = work_of(layer, torch.zeros(2, 3, 8, 8, device=device))
    assert (work.conv_flops, work.flops, work.matmul_flops) == (34_560.0, 34_560.0, 0)
    assert (work.depthwise_bytes, work.operators) == (0, 1)


@pytest.mark.parametrize("device", DEVICES)
def test_a_grouped_convolution_that_is_not_depthwise_is_dense(device: str):
    """2 groups of 2 channels: half the FLOPs of the dense one, 2 x 64 x 4 x 2 x 9."""
    work = work_of(nn.Conv2d(4, 4, 3, padding=1, groups=2, device=device), torch.zeros(1, 4, 8, 8, device=device))
    assert (work.conv_flops, work.depthwise_bytes) == (9216.0, 0)


@pytest.mark.parametrize("device", DEVICES)
def test_a_depthwise_convolution_is_priced_by_its_bytes(device: str):
    """Reads 1 x 4 x 8 x 8, weights 4 x 9 and bias 4, writes as much as it reads: (256 + 36 + 4 + 256) x 4 bytes."""
    layer = nn.Conv2d(4, 4, 3, padding=1, groups=4, device=device)
    work = work_of(layer, torch.zeros(1, 4, 8, 8, device=device))
    assert (work.depthwise_bytes, work.conv_flops) == (2208.0, 0)
    assert work.flops == 2 * 64 * 4 * 9  # what a paper would report


@pytest.mark.parametrize(
    "layer",
    [
        lambda device: nn.BatchNorm2d(4, device=device),
        lambda device: nn.GroupNorm(2, 4, device=device),
        lambda device: nn.LayerNorm([4, 8, 8], device=device),
    ],
    ids=["batch", "group", "layer"],
)
@pytest.mark.parametrize("device", DEVICES)
def test_norms_are_a_class_of_their_own(layer: Callable[[str], nn.Module], device: str):
    work = work_of(layer(device), torch.zeros(2, 4, 8, 8, device=device))
    assert work.norm_bytes >= 2 * (2 * 4 * 8 * 8) * 4  # reads and writes the activation
    assert (work.flops, work.conv_flops, work.matmul_flops, work.depthwise_bytes) == (0, 0, 0, 0)


@pytest.mark.parametrize("device", DEVICES)
def test_an_elementwise_operator_moves_its_bytes(device: str):
    work = work_of(torch.relu, torch.zeros(100, device=device))
    assert (work.other_bytes, work.operators, work.flops) == (800.0, 1, 0)
    work = work_of(torch.add, torch.zeros(100, device=device), torch.zeros(100, device=device))
    assert work.other_bytes == 1200.0


@pytest.mark.parametrize("device", DEVICES)
def test_views_and_allocations_cost_nothing(device: str):
    def views(x: Tensor) -> Tensor:
        return torch.empty_like(x.view(4, 25).t()[1:].detach()).unsqueeze(0)

    work = work_of(views, torch.zeros(100, device=device))
    assert (work.operators, work.other_bytes) == (0, 0)


@pytest.mark.parametrize("device", DEVICES)
def test_a_backward_pass_has_its_own_flops(device: str):
    """Gradients of weight and of input are a product each: twice the forward pass."""
    layer = nn.Linear(4, 5, device=device)
    x = torch.zeros(3, 4, device=device, requires_grad=True)

    def both() -> None:
        layer(x).sum().backward()

    assert work_of(both).matmul_flops == 3 * 120.0


@pytest.mark.parametrize("device", DEVICES)
def test_a_backward_pass_of_a_depthwise_convolution_is_depthwise(device: str):
    layer = nn.Conv2d(4, 4, 3, padding=1, groups=4, device=device)
    x = torch.zeros(1, 4, 8, 8, device=device, requires_grad=True)

    def both() -> None:
        layer(x).sum().backward()

    forward = work_of(layer, x)
    work = work_of(both)
    assert work.conv_flops == 0
    assert work.depthwise_bytes > 2 * forward.depthwise_bytes


# ---- meta and real ----------------------------------------------------------------------------------------------


def conv_net(device: str) -> tuple[nn.Module, tuple[int, ...]]:
    with torch.device(device):
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1, groups=8),
            nn.GroupNorm(2, 8),
            nn.MaxPool2d(2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 10),
        ), (4, 3, 16, 16)


def transformer(device: str) -> tuple[nn.Module, tuple[int, ...]]:
    with torch.device(device):
        return nn.Sequential(EncoderBlock(16, 4, 32, masked=True), TokenPool(16, "mean"), nn.Linear(16, 10)), (4, 6, 16)


@pytest.mark.parametrize("build", [conv_net, transformer])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_training_step_has_the_same_work_on_meta_and_real(build: Callable[[str], Any], optimizer: str):
    works = []
    for device in DEVICES:
        model, shape = build(device)
        trainer = Trainer(model, None, OptimizerConfig(name=optimizer), "average", "net")
        labels = torch.zeros(shape[0], dtype=torch.int64, device=device)
        inputs = torch.ones(shape, device=device)
        works.append([work_of(trainer.fit, inputs, labels) for _ in range(2)])
    assert works[0] == works[1]
    first, second = works[0]
    assert first == second  # the first step costs what the others cost: optimiser state is there already
    assert first.matmul_flops > 0
    assert first.peak_bytes > 0


@pytest.mark.parametrize("build", [conv_net, transformer])
def test_a_split_iteration_has_the_same_work_on_meta_and_real(build: Callable[[str], Any]):
    works = []
    for device in DEVICES:
        model, shape = build(device)
        trainer = Trainer(model[:1], None, OptimizerConfig(), "average", "front")
        saved, forward = trace(trainer._block, (torch.ones(shape, device=device),))
        works.append((forward, work_of(trainer.backward, saved, torch.ones_like(saved))))
    assert works[0] == works[1]
    forward, backward = works[0]
    assert forward.kept_bytes > 0
    assert backward.kept_bytes == -forward.kept_bytes


# ---- memory -----------------------------------------------------------------------------------------------------


def chain(x: Tensor) -> Tensor:
    """Two temporaries of x's size live at once, whatever the length of the chain."""
    for _ in range(5):
        x = x + 1
    return x


def fan(x: Tensor) -> Tensor:
    """Three temporaries that live to the end, and others of half their size beside them."""
    a, b, c = x + 1, x + 2, x + 3
    half = a[: len(a) // 2] * 2
    return half + b.sum() + c.sum()


@pytest.mark.parametrize("device", DEVICES)
def test_the_peak_of_a_chain_is_two_buffers(device: str):
    work = work_of(chain, torch.zeros(1000, device=device))
    assert work.peak_bytes == 8000
    assert work.kept_bytes == 0


@pytest.mark.parametrize("device", DEVICES)
def test_the_peak_counts_what_lives_at_one_time(device: str):
    """a, b, c; the half; half + sum of b; sum of c; the result: 3 x 4,000 + 2,000 + 2,000 + 4 + 2,000 bytes."""
    work = work_of(fan, torch.zeros(1000, device=device))
    assert work.peak_bytes == 18_004


@pytest.mark.parametrize("device", DEVICES)
def test_what_existed_before_and_what_is_written_in_place_allocate_nothing(device: str):
    def in_place(x: Tensor) -> Tensor:
        return x.add_(1).mul_(2).view(10, 100)

    assert work_of(in_place, torch.zeros(1000, device=device)).peak_bytes == 0


@pytest.mark.parametrize("device", DEVICES)
def test_a_kept_graph_is_charged_and_released_by_its_backward(device: str):
    """relu(x @ w): the graph keeps the output (4 x 5 floats); w and x were there before."""
    x = torch.ones(4, 3, device=device)
    w = torch.ones(3, 5, device=device, requires_grad=True)

    def forward(x: Tensor) -> Tensor:
        return torch.relu(x @ w)

    def backward(saved: Tensor, gradient: Tensor) -> None:
        saved.backward(gradient, retain_graph=True)

    w.grad = torch.zeros_like(w)
    saved, first = trace(forward, (x,))
    assert first.kept_bytes == 4 * 5 * 4
    assert work_of(backward, saved, torch.ones(4, 5, device=device)).kept_bytes == -4 * 5 * 4


def test_without_a_graph_nothing_is_kept():
    def detached(x: Tensor) -> Tensor:
        return F.relu(x).detach()

    assert work_of(detached, torch.ones(4, 3, requires_grad=True)).kept_bytes == 0


def test_the_value_is_that_of_the_function_and_tracing_is_off_afterwards():
    value, work = trace(chain, (torch.zeros(3),))
    assert value.tolist() == [5.0] * 3
    before = work.operators
    chain(torch.zeros(3))
    assert work.operators == before == 5


def test_an_error_comes_out_and_leaves_no_tracer_behind():
    def fails(_: Tensor) -> Tensor:
        raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        trace(fails, (torch.zeros(3),))
    assert trace(chain, (torch.zeros(3),))[1].operators == 5

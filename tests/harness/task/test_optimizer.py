"""The optimisers: bit for bit torch's, state that takes memory only once it is written to."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from harness.task.config import OptimizerConfig
from harness.task.optimizer import Sgd, build


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(3)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((4, 3), (7,), ())]


def gradients(of: list[nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in of:
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_sgd_is_torchs_bit_for_bit(momentum: float, decay: float) -> None:
    mine, theirs = parameters(), parameters()
    ours = build(mine, OptimizerConfig(name="sgd", lr=0.1, momentum=momentum, weight_decay=decay))
    other = torch.optim.SGD(theirs, lr=0.1, momentum=momentum, weight_decay=decay)
    for step in range(5):
        gradients(mine, step)
        gradients(theirs, step)
        ours.step()
        other.step()
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


def test_reset_forgets_the_momentum() -> None:
    once, again = parameters(), parameters()
    config = OptimizerConfig(name="sgd", lr=0.1, momentum=0.9)
    fresh, used = build(once, config), build(again, config)
    start = [parameter.detach().clone() for parameter in again]
    gradients(again, 1)
    used.step()
    used.reset()
    with torch.no_grad():
        for parameter, value in zip(again, start, strict=True):
            parameter.copy_(value)
    gradients(once, 2)
    gradients(again, 2)
    fresh.step()
    used.step()
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


def test_a_parameter_without_a_gradient_stays() -> None:
    given = parameters()
    before = given[1].detach().clone()
    gradients(given, 1)
    given[1].grad = None
    build(given, OptimizerConfig(name="sgd", lr=0.1, momentum=0.9)).step()
    assert torch.equal(given[1], before)


def test_momentum_shares_memory_until_it_is_written_to() -> None:
    first, second = (Sgd(parameters(), 0.1, 0.9, 0.0) for _ in range(2))
    assert first.velocity is not None
    assert second.velocity is not None
    assert torch._C._is_cow_tensor(first.velocity)
    assert torch._C._is_cow_tensor(second.velocity)
    gradients(list(first._parameters), 1)
    first.step()
    assert not torch._C._is_cow_tensor(first.velocity)
    assert second.velocity.count_nonzero() == 0


@pytest.mark.slow
def test_sgd_does_not_load_torchs_compiler() -> None:
    program = (
        "import sys, torch; from torch import nn; from harness.task.config import OptimizerConfig;"
        "from harness.task.optimizer import build;"
        "p = nn.Parameter(torch.zeros(3)); p.grad = torch.ones(3);"
        "build([p], OptimizerConfig(name='sgd', momentum=0.9)).step();"
        "print('torch._dynamo' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "False"

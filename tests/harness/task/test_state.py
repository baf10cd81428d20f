from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from harness.task.models import build
from harness.task.state import FlatState


def vgg(norm: str = "batch") -> nn.Sequential:
    torch.manual_seed(5)
    return build("vgg-5", "image", (1, 8, 8), 10, norm=norm)


def floats(module: nn.Module) -> list[torch.Tensor]:
    """Parameters, then floating buffers: the order of the flat state."""
    buffers = [buffer for buffer in module.buffers() if buffer.is_floating_point()]
    return [*module.parameters(), *buffers]


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_the_flat_state_is_the_modules_parameters_then_its_floating_buffers(norm: str) -> None:
    module = vgg(norm)
    expected = torch.cat([value.detach().flatten() for value in floats(module)]).clone()
    state = FlatState(module)
    assert torch.equal(state.flat, expected)
    assert state.num_parameters == sum(p.numel() for p in module.parameters())
    assert state.num_buffers == (2 * (32 + 64 + 64) if norm == "batch" else 0)
    assert torch.equal(torch.cat([p.detach().flatten() for p in state.parameters]), expected[: state.num_parameters])


def test_the_module_reads_and_writes_the_flat_state() -> None:
    module = vgg()
    state = FlatState(module)
    names, shapes = [n for n, _ in module.named_parameters()], [p.shape for p in module.parameters()]
    with torch.no_grad():
        state.flat.copy_(torch.arange(len(state.flat), dtype=torch.float32))
    assert torch.equal(torch.cat([value.detach().flatten() for value in floats(module)]), state.flat)
    with torch.no_grad():
        module.fc2.linear.bias.fill_(-1.0)  # type: ignore[union-attr, operator]
    assert (state.flat == -1.0).sum() == 10
    assert [n for n, _ in module.named_parameters()] == names
    assert [p.shape for p in module.parameters()] == shapes


def test_the_module_computes_what_it_computed() -> None:
    module = vgg()
    twin = copy.deepcopy(module)
    FlatState(module)
    inputs = torch.randn(4, 1, 8, 8)
    assert torch.equal(module(inputs), twin(inputs))
    assert torch.equal(module.conv1.norm.running_mean, twin.conv1.norm.running_mean)  # type: ignore[union-attr]


def test_training_writes_running_statistics_into_the_flat_state() -> None:
    module = vgg()
    state = FlatState(module)
    before = state.copy()
    module(torch.randn(4, 1, 8, 8))
    assert torch.equal(state.flat[: state.num_parameters], before[: state.num_parameters])
    assert not torch.equal(state.flat, before)


def test_gradients_are_the_modules_own_until_forgotten() -> None:
    module = vgg()
    twin = copy.deepcopy(module)
    state = FlatState(module)
    inputs = torch.randn(4, 1, 8, 8)
    for net in (module, twin):
        net(inputs).sum().backward()
    for ours, theirs in zip(state.parameters, twin.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)  # type: ignore[arg-type]
    state.zero_gradient()
    assert all(parameter.grad is None for parameter in module.parameters())


def test_load_puts_back_what_copy_took() -> None:
    module = vgg()
    state = FlatState(module)
    kept, inputs = state.copy(), torch.randn(4, 1, 8, 8)
    module.eval()
    before = module(inputs)
    with torch.no_grad():
        state.flat.normal_()
    assert not torch.equal(module(inputs), before)
    state.load(kept)
    assert torch.equal(module(inputs), before)


def test_a_copy_is_a_copy() -> None:
    state = FlatState(vgg())
    kept = state.copy()
    with torch.no_grad():
        state.flat.zero_()
    assert kept.any()
    version = kept._version
    state.load(kept)
    assert kept._version == version


def test_without_buffers_running_statistics_stay() -> None:
    module = vgg()
    state = FlatState(module)
    module(torch.randn(4, 1, 8, 8))
    statistics = state.flat[state.num_parameters :].clone()
    kept = state.copy(buffers=False)
    assert len(kept) == state.num_parameters
    state.load(torch.zeros_like(kept))
    assert not state.flat[: state.num_parameters].any()
    assert torch.equal(state.flat[state.num_parameters :], statistics)


@pytest.mark.parametrize("extra", [-1, 1])
@pytest.mark.parametrize("buffers", [True, False])
def test_a_state_of_another_length_is_refused(extra: int, buffers: bool) -> None:
    state = FlatState(vgg())
    length = len(state.copy(buffers)) + extra
    with pytest.raises(
        ValueError, match=rf"{length} numbers does not fit .* {state.num_parameters} parameters and 320"
    ):
        state.load(torch.zeros(length))


def test_integer_buffers_are_left_alone() -> None:
    module = vgg()
    FlatState(module)
    assert module.conv1.norm.num_batches_tracked.dtype == torch.int64  # type: ignore[union-attr]
    module(torch.randn(4, 1, 8, 8))
    assert module.conv1.norm.num_batches_tracked == 1  # type: ignore[union-attr]


def test_other_precisions_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="bias is not float32"):
        FlatState(nn.ParameterDict({"bias": nn.Parameter(torch.zeros(2, dtype=torch.float64))}))


def test_a_module_without_parameters_has_an_empty_state() -> None:
    state = FlatState(nn.Flatten())
    assert state.num_parameters == state.num_buffers == len(state.copy()) == 0
    state.load(state.copy())


def test_a_frozen_parameter_stays_frozen() -> None:
    linear = nn.Linear(2, 2)
    linear.weight.requires_grad_(False)
    FlatState(linear)
    assert not linear.weight.requires_grad
    assert linear.bias.requires_grad


def test_shared_weights_stay_shared() -> None:
    """A user's model may use one weight twice; after flattening both uses must still be the same numbers."""
    first, second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
    second.weight = first.weight
    module = nn.Sequential(first, second)
    state = FlatState(module)
    state.load(torch.eye(3).flatten() * 2)
    assert torch.equal(module(torch.ones(1, 3)), torch.full((1, 3), 4.0))


def test_meta_modules_have_a_meta_state() -> None:
    with torch.device("meta"):
        module = nn.Linear(3, 2)
    state = FlatState(module)
    assert state.flat.is_meta
    assert state.copy().shape == (8,)

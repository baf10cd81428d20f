"""The optimisers: stochastic gradient descent of our own, Adam and AdamW from torch.

torch.optim's SGD would do the same (the tests compare them bit for bit), but building the first one loads torch's
compiler, half a second and 70 MB that every start of a run would pay.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor, nn

from harness.task.config import OptimizerConfig


class Optimizer(Protocol):
    """What a trainer needs of an optimiser.

    Attributes:
        slots: numbers of state per parameter.
    """

    slots: int

    def step(self) -> None:
        """Move the parameters by their gradients."""
        ...

    def reset(self) -> None:
        """Forget: momentum and moments are zero, as at the start."""
        ...


def build(parameters: Sequence[nn.Parameter], config: OptimizerConfig) -> Optimizer:
    """Return an optimiser of these parameters; its state is allocated now, so that all steps cost the same."""
    if config.name == "sgd":
        return Sgd(parameters, config.lr, config.momentum, config.weight_decay)
    return Adaptive(parameters, config)


class Sgd:
    """Gradient descent with momentum and weight decay, in torch.optim.SGD's formulation:

    g = gradient + decay w;  v = momentum v + g;  w = w - lr v.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], lr: float, momentum: float, weight_decay: float) -> None:
        self._parameters = parameters
        self._lr, self._momentum, self._weight_decay = lr, momentum, weight_decay
        self.slots = int(momentum > 0)
        self.velocity: Tensor | None = None
        self._velocities: Sequence[Tensor | None] = [None] * len(parameters)
        if momentum:
            sizes = [parameter.numel() for parameter in parameters]
            self.velocity = _zeros(sum(sizes), parameters)
            parts = torch.split(self.velocity, sizes)
            self._velocities = [part.view(like.shape) for part, like in zip(parts, parameters, strict=True)]

    def step(self) -> None:
        with torch.no_grad():
            for parameter, velocity in zip(self._parameters, self._velocities, strict=True):
                gradient = parameter.grad
                if gradient is None:
                    continue
                if self._weight_decay:
                    gradient = gradient.add(parameter, alpha=self._weight_decay)
                if velocity is not None:
                    gradient = velocity.mul_(self._momentum).add_(gradient)
                parameter.add_(gradient, alpha=-self._lr)

    def reset(self) -> None:
        if self.velocity is not None:
            self.velocity.zero_()


class Adaptive:
    """Adam or AdamW."""

    slots = 2

    def __init__(self, parameters: Sequence[nn.Parameter], config: OptimizerConfig) -> None:
        kind = torch.optim.Adam if config.name == "adam" else torch.optim.AdamW
        given = list(parameters) or [nn.Parameter(torch.empty(0))]  # torch refuses an empty list
        self._optimizer = kind(given, lr=config.lr, weight_decay=config.weight_decay)
        self.reset()

    @property
    def moments(self) -> list[Tensor]:
        """The two moments of every parameter."""
        return [state[name] for state in self._optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]

    def step(self) -> None:
        self._optimizer.step()

    def reset(self) -> None:
        for group in self._optimizer.param_groups:
            for parameter in group["params"]:
                state = self._optimizer.state[parameter]
                for name in ("exp_avg", "exp_avg_sq"):
                    if name in state:
                        state[name].zero_()
                    else:
                        state[name] = torch.zeros_like(parameter, requires_grad=False)
                state["step"] = torch.zeros((), device="cpu")


def _zeros(size: int, parameters: Sequence[nn.Parameter]) -> Tensor:
    """Return zeros where the parameters are; on the CPU they share memory until they are written to."""
    if parameters and parameters[0].is_meta:
        return torch.zeros(size, device="meta")
    return torch._lazy_clone(_shared_zeros(size))


@lru_cache(maxsize=8)
def _shared_zeros(size: int) -> Tensor:
    return torch.zeros(size)

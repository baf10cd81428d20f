"""The network that all three frameworks train: two 5x5 convolutions and two linear layers, 454,922 parameters on 28x28.

Needs torch alone, so that every framework's environment can import it. The first block notes when the first training
step begins, the same way for everybody: start-up ends there.
"""

from __future__ import annotations

import contextlib
import os
import time

import torch
from torch import Tensor, nn

MARK = "AMMETER_BENCH_FIRST_STEP"
"""Environment variable: the file into which the time of the first training step is written (seconds since 1970)."""


class FirstBlock(nn.Sequential):
    """A block that writes the time of its first forward pass in training to the file that MARK names."""

    _noted = False

    def forward(self, inputs: Tensor) -> Tensor:
        """Pass `inputs` [B, ...] through; called on values in training mode for the first time: note when."""
        if not FirstBlock._noted and self.training and torch.is_grad_enabled() and not inputs.is_meta:
            FirstBlock._noted = True
            with contextlib.suppress(KeyError, FileExistsError), open(os.environ[MARK], "x") as file:
                file.write(repr(time.time()))  # with "x" the first of several processes wins
        output: Tensor = super().forward(inputs)
        return output


def build(input_shape: tuple[int, ...], num_classes: int) -> nn.Sequential:
    """Return the network for images [channels, height, width], which are halved twice."""
    channels, height, width = input_shape
    return nn.Sequential(
        FirstBlock(nn.Conv2d(channels, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Sequential(nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        nn.Sequential(nn.Linear(64 * (height // 4) * (width // 4), 128), nn.ReLU()),
        nn.Linear(128, num_classes),
    )

"""A method, and beside it a model (`build`), of which one node fails: on purpose, by a mistake, or before the run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

from torch import nn

from harness.errors import DataError
from harness.method import MethodConfig
from harness.node import Node
from harness.task.task import Task

WHO = "device-1"


class Config(MethodConfig):
    """Settings.

    Attributes:
        how: "purpose" = one of Ammeter's own errors; "mistake" = any other; "spawned" = that in a second activity.
    """

    how: Literal["purpose", "mistake", "spawned"] = "mistake"


def build(input_shape: tuple[int, ...], num_classes: int) -> nn.Sequential:
    """Return a model; a process that calls itself WHO cannot."""
    if Path("/proc/self/comm").read_text().strip() == WHO:
        raise RuntimeError("this board has no such operator")
    return nn.Sequential(
        nn.Sequential(nn.Flatten(), nn.Linear(math.prod(input_shape), 8)), nn.Sequential(nn.Linear(8, num_classes))
    )


def divide(count: int) -> float:
    """A mistake that an author makes."""
    return 1 / count


async def device(node: Node, task: Task, config: Config) -> None:  # noqa: ARG001
    """Fail, if it is WHO."""
    await node.sleep(0.2)
    if node.name == WHO and config.how == "purpose":
        raise DataError("client_1.npz is truncated; download it again")
    if node.name == WHO and config.how == "mistake":
        await node.compute(divide, 0)
    if node.name == WHO:

        async def second() -> None:
            await node.compute(divide, 0)

        node.spawn(second(), daemon=False)
    await node.recv("never")


async def server(node: Node, task: Task, config: Config) -> None:  # noqa: ARG001
    """Wait."""
    await node.recv("never")


ROLES = {"device": device, "server": server}
ENDS = "server"

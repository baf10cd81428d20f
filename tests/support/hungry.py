"""A method in which one node takes more memory at every step, and the others wait for it."""

from __future__ import annotations

import torch
from pydantic import Field

from harness.method import MethodConfig
from harness.node import Node
from harness.task.task import Task


class Config(MethodConfig):
    """Settings.

    Attributes:
        who: the node.  step_mib: how much more.  most: steps.
    """

    who: str = "device-0"
    step_mib: int = Field(default=16, ge=1)
    most: int = Field(default=600, ge=1)


class Hunger:
    """Takes memory and keeps it."""

    signature = "hunger"

    def __init__(self) -> None:
        self._kept: list[torch.Tensor] = []

    def grow(self, mib: int) -> None:
        self._kept.append(torch.ones(mib * 2**18))
        del self._kept[:-2]  # what is not limited must not hurt its host


async def role(node: Node, task: Task, config: Config) -> None:  # noqa: ARG001
    """Grow, or wait for who grows."""
    if node.name != config.who:
        if node.name == "server":
            await node.recv("done")
        return
    hunger = Hunger()
    for number in range(config.most):
        await node.compute(hunger.grow, config.step_mib + number // 4)
        await node.sleep(0.02)
    if node.name != "server":
        await node.send("server", "done")


async def device(node: Node, task: Task, config: Config) -> None:
    await role(node, task, config)


async def server(node: Node, task: Task, config: Config) -> None:
    await role(node, task, config)


ROLES = {"device": device, "server": server}
ENDS = "server"

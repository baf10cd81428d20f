"""A method whose server waits for what nobody sends: a virtual clock says so, a wall clock needs a time limit."""

from __future__ import annotations

from harness.method import MethodConfig
from harness.node import Node
from harness.task.task import Task


class Config(MethodConfig):
    """No settings."""


async def device(node: Node, task: Task, config: Config) -> None:
    """Return at once."""


async def server(node: Node, task: Task, config: Config) -> None:  # noqa: ARG001
    """Wait for ever."""
    await node.recv("never")


ROLES = {"device": device, "server": server}
ENDS = "server"

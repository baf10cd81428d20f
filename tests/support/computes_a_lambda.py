"""A method that breaks a rule: its devices compute what has no name."""

from __future__ import annotations

from harness.method import MethodConfig
from harness.node import Node
from harness.task.task import Task
from harness.topology import SERVER


class Config(MethodConfig):
    """No settings."""


async def device(node: Node, task: Task, config: Config) -> None:  # noqa: ARG001
    """Break the rule, after a message has gone out."""
    await node.send(SERVER, "here")
    await node.compute(lambda: None)


async def server(node: Node, task: Task, config: Config) -> None:  # noqa: ARG001
    """Wait for more than comes."""
    await node.gather("here")
    await node.gather("done")


ROLES = {"device": device, "server": server}
ENDS = "server"

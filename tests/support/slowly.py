"""A method whose server takes long over one thing, or waits for ever while a daemon of it polls."""

from __future__ import annotations

import time
from typing import Literal

from harness.method import MethodConfig
from harness.node import Node
from harness.task.task import Task


class Config(MethodConfig):
    """Settings.

    Attributes:
        what: what the server does.  seconds: for so long.
    """

    what: Literal["compute", "sleep", "daemon sleeps", "poll"] = "compute"
    seconds: float = 1.0


class Work:
    """Takes its time."""

    signature = "slow work"

    def take(self, seconds: float) -> None:
        time.sleep(seconds)


async def device(node: Node, task: Task, config: Config) -> None:
    """Return at once."""


async def server(node: Node, task: Task, config: Config) -> None:  # noqa: ARG001
    """Do what the settings say."""
    woken = node.channel(1)

    async def ring() -> None:
        await node.sleep(config.seconds)
        await woken.put(True)

    async def poll() -> None:
        while True:
            await node.sleep(0.05)

    if config.what == "compute":
        await node.compute(Work().take, config.seconds)
    elif config.what == "sleep":
        await node.sleep(config.seconds)
    elif config.what == "daemon sleeps":
        node.spawn(ring())
        await woken.get()
    else:
        node.spawn(poll())
        await node.recv("never")


ROLES = {"device": device, "server": server}
ENDS = "server"

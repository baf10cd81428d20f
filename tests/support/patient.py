"""FedAvg or SplitFed V1 that goes on until a device that was lost has taken part again: for tests of coming back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from harness.node import Node
from harness.task.task import Task
from methods import fedavg, splitfed_v1


class Config(splitfed_v1.Config):
    """Settings.

    Attributes:
        base: the method.
        complete: so many rounds with all devices must follow one without.
        most: rounds after which it gives up.
    """

    base: Literal["fedavg", "splitfed_v1"] = "fedavg"
    complete: int = Field(default=3, ge=1)
    most: int = Field(default=2000, ge=1)


async def device(node: Node, task: Task, config: Config) -> None:
    """The method's own."""
    await _role(config, "device")(node, task, config)


async def server(node: Node, task: Task, config: Config) -> None:
    """The method's own, with as many rounds as it takes."""
    rounds = node.rounds

    def patient(_: int) -> Iterator[int]:
        missed, since = False, 0
        for index in rounds(config.most):
            yield index
            if len(node.devices) < len(node.topology.devices):
                missed, since = True, 0
            elif missed:
                since += 1
            if since == config.complete:
                return

    node.rounds = patient  # type: ignore[method-assign]
    await _role(config, "server")(node, task, config)


def _role(config: Config, kind: str):  # type: ignore[no-untyped-def]
    return {"fedavg": fedavg, "splitfed_v1": splitfed_v1}[config.base].ROLES[kind]


ROLES = {"device": device, "server": server}
ENDS = "server"

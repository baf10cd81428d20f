"""What a computation costs on the emulated board: the same price as on the virtual clock."""

from __future__ import annotations

from collections.abc import Callable

from harness.cost.work import Work
from harness.topology import Topology
from profiles.price import price
from testbeds._fleet.boards import boards
from testbeds._fleet.config import Fleet


def pace(bed: Fleet, nodes: Topology, name: str) -> Callable[[Work, int], float]:
    """Return what prices work on the board of node `name`: from the work and its samples to seconds of the run."""
    board = boards(bed, nodes)[name]

    def seconds(work: Work, batch: int) -> float:
        return price(work, board, batch=batch).seconds

    return seconds

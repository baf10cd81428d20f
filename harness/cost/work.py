"""What one computation asks of a machine: its operators, for a device profile to put a price on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

Kind = Literal["conv", "depthwise", "depthwise_backward", "matmul", "memory"]
"""Classes of operators that a machine runs at rates of their own.

conv: dense convolutions. depthwise: convolutions with one group per channel; their backward is another kernel
with another rate. matmul: matrix products. memory: all others, which do little but move bytes (normalisation,
activations, additions, copies, the optimiser).
"""

Phase = Literal["forward", "backward", "update"]
PHASES: tuple[Phase, ...] = ("forward", "backward", "update")
"""Before, inside and after the backward passes of a computation."""


class Operators(NamedTuple):
    """Equal operators of one computation.

    Attributes:
        flops: floating-point operations of one (a multiply-add is two).
        bytes: what one reads and writes, each operand once.
        count: how many there are.
    """

    kind: Kind
    phase: Phase
    flops: float
    bytes: float
    count: int = 1  # type: ignore[assignment]  # a tuple has a method of this name


@dataclass(frozen=True)
class Work:
    """The operators of one traced computation, and its memory.

    Attributes:
        operators: equal ones together; views cost nothing and are left out.
        peak_bytes: the most that was allocated at one time beyond what existed before.
        kept_bytes: what stays allocated afterwards because a returned autograd graph holds it, less what the
            computation released by consuming the graph of an argument.
        random: whether an operator draws from torch's generator.
        network: name and input shape of the published network that this is a part of, "" if of none; a profile
            that knows a measured time for it uses that.
    """

    operators: tuple[Operators, ...] = ()
    peak_bytes: int = 0
    kept_bytes: int = 0
    network: str = ""
    random: bool = False

    @cached_property
    def flops(self) -> float:
        """Floating-point operations of all convolutions and matrix products."""
        return sum(group.flops * group.count for group in self.operators)

    @cached_property
    def num_operators(self) -> int:
        """How many operators run."""
        return sum(group.count for group in self.operators)

    def total_flops(self, *kinds: Kind) -> float:
        """Return the floating-point operations of the operators of these kinds."""
        return sum(group.flops * group.count for group in self.operators if group.kind in kinds)

    def total_bytes(self, *kinds: Kind) -> float:
        """Return the bytes that the operators of these kinds move."""
        return sum(group.bytes * group.count for group in self.operators if group.kind in kinds)

"""What one computation asks of a machine: the features that a device profile puts a price on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Work:
    """Totals over the operators of one traced computation.

    FLOPs count a multiply-add as two. Bytes are what the operators read and write (each operand once). Every
    operator falls in one class: dense convolutions and matrix products are counted by their FLOPs, depthwise
    convolutions, normalisations and all others by the bytes they move; views cost nothing.

    Attributes:
        peak_bytes: the most that was allocated at one time beyond what existed before.
        kept_bytes: what stays allocated afterwards because a returned autograd graph holds it, less what the
            computation released by consuming the graph of an argument.
    """

    conv_flops: float = 0.0
    matmul_flops: float = 0.0
    depthwise_bytes: float = 0.0
    norm_bytes: float = 0.0
    other_bytes: float = 0.0
    operators: int = 0
    flops: float = 0.0
    peak_bytes: int = 0
    kept_bytes: int = 0

"""What a piece of work costs on a device."""

from __future__ import annotations

from harness.cost.work import Work
from profiles.device import DeviceProfile


def seconds(work: Work, profile: DeviceProfile) -> float:
    """Return how long the device computes on `work`, in seconds.

    Linear in six features: dense-convolution and matrix-product FLOPs, bytes of depthwise convolutions, of
    normalisations and of all other operators, and the number of operators, each over the profile's rate.
    """
    return (
        work.conv_flops / profile.conv_flops_per_s
        + work.matmul_flops / profile.matmul_flops_per_s
        + work.depthwise_bytes / profile.depthwise_bytes_per_s
        + work.norm_bytes / profile.norm_bytes_per_s
        + work.other_bytes / profile.memory_bytes_per_s
        + work.operators * profile.operator_s
    )

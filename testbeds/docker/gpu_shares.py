"""What an emulated device gets of a GPU, and whether what all of them ask of one GPU is possible."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from pydantic import field_validator

from harness.errors import ConfigError
from testbeds._fleet.sections import Section
from testbeds.docker.gpu_nvml import Clock

SETTING: Mapping[Clock, str] = MappingProxyType({"graphics": "clock_mhz", "memory": "memory_clock_mhz"})
"""The setting that asks for a clock."""


class GpuShare(Section):
    """What an emulated device gets of a GPU; None = no limit.

    Attributes:
        index: which GPU, in nvidia-smi's order.
        clock_mhz, memory_clock_mhz: what its graphics and its memory clock are locked at; the same for all on one GPU.
        sm_percent: share of its multiprocessors, 1 to 100 (MPS).
        memory_fraction: share of its memory that the device's tensors may take, above 0 to 1.
    """

    index: int = 0
    clock_mhz: int | None = None
    memory_clock_mhz: int | None = None
    sm_percent: int | None = None
    memory_fraction: float | None = None

    @field_validator("index")
    @classmethod
    def _counts(cls, index: int) -> int:
        if index < 0:
            raise ValueError("GPUs are numbered from 0; give the number that 'nvidia-smi -L' shows")
        return index

    @field_validator("clock_mhz", "memory_clock_mhz")
    @classmethod
    def _is_clock(cls, mhz: int | None) -> int | None:
        if mhz is not None and mhz <= 0:
            raise ValueError("give a clock in MHz that 'nvidia-smi -q -d SUPPORTED_CLOCKS' shows, or leave it out")
        return mhz

    @field_validator("sm_percent")
    @classmethod
    def _is_percent(cls, percent: int | None) -> int | None:
        if percent is not None and not 1 <= percent <= 100:
            raise ValueError("give 1 to 100, per cent of the GPU's multiprocessors, or leave it out")
        return percent

    @field_validator("memory_fraction")
    @classmethod
    def _is_fraction(cls, fraction: float | None) -> float | None:
        if fraction is not None and not 0 < fraction <= 1:
            raise ValueError("give a fraction of the GPU's memory above 0, at most 1, or leave it out")
        return fraction

    def clock(self, clock: Clock) -> int | None:
        """Return what a clock is to be locked at, MHz."""
        return self.clock_mhz if clock == "graphics" else self.memory_clock_mhz


def by_gpu(shares: Mapping[str, GpuShare]) -> dict[int, dict[str, GpuShare]]:
    """Return the shares of each GPU, by its index and by node.

    Raises:
        ConfigError: the shares of one GPU contradict each other or add up to more than it has.
    """
    found: dict[int, dict[str, GpuShare]] = {index: {} for index in sorted({share.index for share in shares.values()})}
    for node, share in shares.items():
        found[share.index][node] = share
    for index, here in found.items():
        _agree(index, here)
        _fit(index, here)
    return found


def agreed(here: Mapping[str, GpuShare], clock: Clock) -> int | None:
    """Return what all on one GPU ask of a clock."""
    return next(iter(here.values())).clock(clock)


def _agree(index: int, here: Mapping[str, GpuShare]) -> None:
    """Complain of nodes on one GPU that want different clocks: the lock is the whole GPU's."""
    (first, share), *others = here.items()
    for node, other in others:
        for clock, setting in SETTING.items():
            if other.clock(clock) != share.clock(clock):
                wanted = [
                    f"{name} asks for {mhz} MHz" if mhz is not None else f"{name} for no lock"
                    for name, mhz in ((first, share.clock(clock)), (node, other.clock(clock)))
                ]
                raise ConfigError(
                    f"testbed: {setting}: on GPU {index}, {' and '.join(wanted)}, but a lock is the whole GPU's; give "
                    "all devices on it the same, or give them GPUs of their own"
                )


def _fit(index: int, here: Mapping[str, GpuShare]) -> None:
    """Complain of shares that add up to more than there is."""
    for setting, whole in (("sm_percent", 100), ("memory_fraction", 1)):
        shares = [value for share in here.values() if (value := getattr(share, setting)) is not None]
        if sum(shares) > whole + 1e-9:
            raise ConfigError(
                f"testbed: {setting}: {len(shares)} devices on GPU {index} ask for {sum(shares):g} of {whole}; lower "
                "the shares, or use fewer devices or more GPUs"
            )

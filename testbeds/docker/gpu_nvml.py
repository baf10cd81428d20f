"""What NVML says of this machine's GPUs, and what it refuses, in words.

`nvml` is the module pynvml wherever it is an argument, or what stands in for it in tests. Every access opens NVML and
closes it again (it counts), so that a signal's handler may use it in the midst of another access.
Source: the NVML API reference, "Device Queries" and "Device Commands".
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import pynvml
from pynvml import NVMLError

from harness.errors import TestbedError

Clock = Literal["graphics", "memory"]
CLOCKS: tuple[Clock, ...] = ("graphics", "memory")

REFUSALS = (pynvml.NVMLError_NoPermission, pynvml.NVMLError_NotSupported, pynvml.NVMLError_FunctionNotFound)
"""Not allowed, not by this GPU, not by this driver: a run can go on without."""

_UNKNOWN = (pynvml.NVMLError_NotSupported, pynvml.NVMLError_FunctionNotFound)
_NO_DRIVER = (
    pynvml.NVMLError_LibraryNotFound,
    pynvml.NVMLError_DriverNotLoaded,
    pynvml.NVMLError_LibRmVersionMismatch,
)
_SINCE: dict[Clock, tuple[str, int]] = {
    "graphics": ("Volta", pynvml.NVML_DEVICE_ARCH_VOLTA),
    "memory": ("Ampere", pynvml.NVML_DEVICE_ARCH_AMPERE),
}


class NoDriver(TestbedError):  # noqa: N818 - says what is the case
    """No NVIDIA driver answers on this machine."""


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Attributes:
        index: NVML's number of it (the order on the PCI bus; CUDA's own order may differ, so others are told the uuid).
        architecture: one of NVML_DEVICE_ARCH_...; None = NVML does not say.
        clocks: what it can run at, MHz, ascending; empty = NVML does not say.
    """

    index: int
    uuid: str
    name: str
    architecture: int | None
    clocks: dict[Clock, tuple[int, ...]]

    def cannot_lock(self, clock: Clock) -> str:
        """Return why no clock of this kind can be locked, whoever asks; "" = it can, as far as NVML tells."""
        name, since = _SINCE[clock]
        if self.architecture is None or self.architecture >= since:
            return ""
        return f"{self.name} is older than {name}, the first that can lock its {clock} clock"


@contextlib.contextmanager
def session(nvml: Any) -> Iterator[None]:
    """Have NVML open within.

    Raises:
        NoDriver: there is no driver, or one that does not fit its library.
    """
    try:
        nvml.nvmlInit()
    except _NO_DRIVER as error:
        raise NoDriver(
            f"gpu: no NVIDIA driver answers ({error}); install the GPU's driver (nvidia-smi must work), and give a "
            "container that Ammeter runs in the GPU (docker run --gpus all)"
        ) from None
    try:
        yield
    finally:
        nvml.nvmlShutdown()


@contextlib.contextmanager
def told(what: str) -> Iterator[None]:
    """Turn what NVML raises within into one sentence that begins with `what`.

    Raises:
        TestbedError: NVML failed.
    """
    try:
        yield
    except NVMLError as error:
        raise TestbedError(f"{what}: NVML says {error}; see whether nvidia-smi works, and its -q for the GPU") from None


def version(nvml: Any) -> str:
    """Return the driver's version.

    Raises:
        TestbedError: no driver, or it fails.
    """
    with told("gpu"), session(nvml):
        return str(nvml.nvmlSystemGetDriverVersion())


def found(nvml: Any) -> list[Gpu]:
    """Return this machine's GPUs, in NVML's order.

    Raises:
        TestbedError: no driver, or it fails.
    """
    with told("gpu"), session(nvml):
        return [_read(nvml, index) for index in range(nvml.nvmlDeviceGetCount())]


def _read(nvml: Any, index: int) -> Gpu:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    architecture = None
    with contextlib.suppress(*_UNKNOWN):
        architecture = int(nvml.nvmlDeviceGetArchitecture(handle))
    graphics: set[int] = set()
    memory: list[int] = []
    with contextlib.suppress(*_UNKNOWN):
        memory = nvml.nvmlDeviceGetSupportedMemoryClocks(handle)
        for mhz in memory:
            graphics.update(nvml.nvmlDeviceGetSupportedGraphicsClocks(handle, mhz))
    return Gpu(
        index,
        str(nvml.nvmlDeviceGetUUID(handle)),
        str(nvml.nvmlDeviceGetName(handle)),
        architecture,
        {"graphics": tuple(sorted(graphics)), "memory": tuple(sorted(memory))},
    )


def lock(nvml: Any, uuid: str, clock: Clock, mhz: int) -> None:
    """Have a GPU run at one clock only.

    Raises:
        NVMLError: NVML refused or failed.
    """
    with session(nvml):
        handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
        if clock == "graphics":
            nvml.nvmlDeviceSetGpuLockedClocks(handle, mhz, mhz)
        else:
            nvml.nvmlDeviceSetMemoryLockedClocks(handle, mhz, mhz)


def unlock(nvml: Any, uuid: str, clock: Clock) -> None:
    """Let a GPU choose its clock again.

    Raises:
        NVMLError: NVML refused or failed; NVMLError_NotFound if the GPU is not there any more.
    """
    with session(nvml):
        handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
        if clock == "graphics":
            nvml.nvmlDeviceResetGpuLockedClocks(handle)
        else:
            nvml.nvmlDeviceResetMemoryLockedClocks(handle)


def application_clocks(nvml: Any, uuid: str) -> tuple[int, int] | None:
    """Return the memory and the graphics clock that programs get when nothing is locked, MHz (nvidia-smi -ac).

    None: this GPU has no such setting. It is all that NVML tells of what was set before: it reads no lock.

    Raises:
        NVMLError: NVML failed.
    """
    with session(nvml):
        handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
        try:
            memory = nvml.nvmlDeviceGetApplicationsClock(handle, pynvml.NVML_CLOCK_MEM)
            return int(memory), int(nvml.nvmlDeviceGetApplicationsClock(handle, pynvml.NVML_CLOCK_GRAPHICS))
        except (*_UNKNOWN, pynvml.NVMLError_Deprecated):
            return None


def set_application_clocks(nvml: Any, uuid: str, clocks: tuple[int, int]) -> None:
    """Set what `application_clocks` returns.

    Raises:
        NVMLError: NVML refused or failed.
    """
    with session(nvml):
        nvml.nvmlDeviceSetApplicationsClocks(nvml.nvmlDeviceGetHandleByUUID(uuid), *clocks)


def may_lock() -> bool:
    """Whether this user may lock clocks, as far as can be told without doing it: NVML lets root only."""
    return os.geteuid() == 0

"""A stand-in for the module pynvml: its functions, constants and error classes by their real names, and its failures.

What it imitates is what NVML's reference says of each function, not a GPU that was watched. The GPUs' state can be kept
in a file, so that it outlives the process, as a driver's does.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pynvml

A100 = (210, 225, 240, 600, 615, 1395, 1410)
A100_MEMORY = (1215,)
IDLE_MHZ = 210


@dataclass
class FakeGpu:
    """One GPU: what it is, and what is set on it.

    Attributes:
        graphics_clocks, memory_clocks: what it has, MHz; empty = it does not say.
        applications: its application clocks, memory and graphics, MHz; None = it has no such setting.
        graphics_lock, memory_lock: lowest and highest clock it may choose; None = not locked.
    """

    name: str = "NVIDIA A100-SXM4-40GB"
    architecture: int = pynvml.NVML_DEVICE_ARCH_AMPERE
    graphics_clocks: tuple[int, ...] = A100
    memory_clocks: tuple[int, ...] = A100_MEMORY
    applications: tuple[int, int] | None = None
    graphics_lock: tuple[int, int] | None = None
    memory_lock: tuple[int, int] | None = None
    uuid: str = ""


@dataclass
class FakeNvml:
    """What stands in for the module.

    Attributes:
        gpus: this machine's; none is a machine with a driver and no GPU.
        no_driver: the error that nvmlInit raises; None = there is a driver.
        root: whether the process may change settings.
        errors: by function: what its n-th call raises (counted from 1), before it does anything.
        after: by function: called after each call has done its work.
        reset_forgets: letting go of a locked clock sets the application clocks back to these.
        hardware: file that keeps the GPUs' state; None = in memory only.
        calls: every call, by name.
    """

    gpus: list[FakeGpu] = field(default_factory=lambda: [FakeGpu()])
    no_driver: Exception | None = None
    root: bool = True
    errors: dict[tuple[str, int], BaseException] = field(default_factory=dict)
    after: dict[str, Callable[[], None]] = field(default_factory=dict)
    reset_forgets: tuple[int, int] | None = None
    hardware: Path | None = None
    calls: list[str] = field(default_factory=list)
    open: int = 0

    def __post_init__(self) -> None:
        for index, gpu in enumerate(self.gpus):
            gpu.uuid = gpu.uuid or f"GPU-00000000-0000-0000-0000-{index:012}"
        if self.hardware is not None and self.hardware.exists():
            self.gpus = gpus_of(self.hardware)
        self._keep()

    def __getattr__(self, name: str) -> Any:
        if name.startswith(("NVML_", "NVMLError")):
            return getattr(pynvml, name)
        raise AttributeError(name)

    @property
    def locks(self) -> list[tuple[int | None, int | None]]:
        """By GPU, the clocks that graphics and memory are locked at."""
        return [
            (gpu.graphics_lock and gpu.graphics_lock[1], gpu.memory_lock and gpu.memory_lock[1]) for gpu in self.gpus
        ]

    # ---- pynvml's functions ---------------------------------------------------------------------------------

    def nvmlInit(self) -> None:  # noqa: N802
        self._called("nvmlInit", needs_open=False)
        if self.no_driver is not None:
            raise self.no_driver
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self._called("nvmlShutdown")
        self.open -= 1

    def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802
        self._called("nvmlSystemGetDriverVersion")
        return "580.105.08"

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        self._called("nvmlDeviceGetCount")
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> FakeGpu:  # noqa: N802
        self._called("nvmlDeviceGetHandleByIndex")
        if index >= len(self.gpus):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return self.gpus[index]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> FakeGpu:  # noqa: N802
        self._called("nvmlDeviceGetHandleByUUID")
        for gpu in self.gpus:
            if gpu.uuid == uuid:
                return gpu
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)

    def nvmlDeviceGetUUID(self, handle: FakeGpu) -> str:  # noqa: N802
        self._called("nvmlDeviceGetUUID", handle)
        return handle.uuid

    def nvmlDeviceGetName(self, handle: FakeGpu) -> str:  # noqa: N802
        self._called("nvmlDeviceGetName", handle)
        return handle.name

    def nvmlDeviceGetArchitecture(self, handle: FakeGpu) -> int:  # noqa: N802
        self._called("nvmlDeviceGetArchitecture", handle)
        return handle.architecture

    def nvmlDeviceGetSupportedMemoryClocks(self, handle: FakeGpu) -> list[int]:  # noqa: N802
        self._called("nvmlDeviceGetSupportedMemoryClocks", handle)
        if not handle.memory_clocks:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return sorted(handle.memory_clocks, reverse=True)

    def nvmlDeviceGetSupportedGraphicsClocks(self, handle: FakeGpu, memory_mhz: int) -> list[int]:  # noqa: N802
        self._called("nvmlDeviceGetSupportedGraphicsClocks", handle)
        if memory_mhz not in handle.memory_clocks:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return sorted(handle.graphics_clocks, reverse=True)

    def nvmlDeviceGetClockInfo(self, handle: FakeGpu, kind: int) -> int:  # noqa: N802
        self._called("nvmlDeviceGetClockInfo", handle)
        if kind == pynvml.NVML_CLOCK_MEM:
            return handle.memory_lock[1] if handle.memory_lock else max(handle.memory_clocks)
        return handle.graphics_lock[1] if handle.graphics_lock else IDLE_MHZ

    def nvmlDeviceGetApplicationsClock(self, handle: FakeGpu, kind: int) -> int:  # noqa: N802
        self._called("nvmlDeviceGetApplicationsClock", handle)
        if handle.applications is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return handle.applications[kind == pynvml.NVML_CLOCK_GRAPHICS]

    def nvmlDeviceSetApplicationsClocks(self, handle: FakeGpu, memory_mhz: int, graphics_mhz: int) -> None:  # noqa: N802
        self._change("nvmlDeviceSetApplicationsClocks", handle)
        handle.applications = (memory_mhz, graphics_mhz)
        self._done("nvmlDeviceSetApplicationsClocks")

    def nvmlDeviceSetGpuLockedClocks(self, handle: FakeGpu, lowest: int, highest: int) -> None:  # noqa: N802
        self._change("nvmlDeviceSetGpuLockedClocks", handle, pynvml.NVML_DEVICE_ARCH_VOLTA)
        if lowest > highest or (handle.graphics_clocks and highest > max(handle.graphics_clocks)):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        handle.graphics_lock = (lowest, highest)
        self._done("nvmlDeviceSetGpuLockedClocks")

    def nvmlDeviceResetGpuLockedClocks(self, handle: FakeGpu) -> None:  # noqa: N802
        self._change("nvmlDeviceResetGpuLockedClocks", handle, pynvml.NVML_DEVICE_ARCH_VOLTA)
        handle.graphics_lock = None
        handle.applications = self.reset_forgets or handle.applications
        self._done("nvmlDeviceResetGpuLockedClocks")

    def nvmlDeviceSetMemoryLockedClocks(self, handle: FakeGpu, lowest: int, highest: int) -> None:  # noqa: N802
        self._change("nvmlDeviceSetMemoryLockedClocks", handle, pynvml.NVML_DEVICE_ARCH_AMPERE)
        if lowest > highest or (handle.memory_clocks and highest > max(handle.memory_clocks)):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        handle.memory_lock = (lowest, highest)
        self._done("nvmlDeviceSetMemoryLockedClocks")

    def nvmlDeviceResetMemoryLockedClocks(self, handle: FakeGpu) -> None:  # noqa: N802
        self._change("nvmlDeviceResetMemoryLockedClocks", handle, pynvml.NVML_DEVICE_ARCH_AMPERE)
        handle.memory_lock = None
        self._done("nvmlDeviceResetMemoryLockedClocks")

    # ---- the machinery --------------------------------------------------------------------------------------

    def _called(self, name: str, handle: FakeGpu | None = None, needs_open: bool = True) -> None:
        self.calls.append(name)
        error = self.errors.get((name, self.calls.count(name)))
        if error is not None:
            raise error
        if needs_open and not self.open:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_UNINITIALIZED)
        if handle is not None and not any(handle is gpu for gpu in self.gpus):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)

    def _change(self, name: str, handle: FakeGpu, since: int = 0) -> None:
        self._called(name, handle)
        if handle.architecture < since:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        if not self.root:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NO_PERMISSION)

    def _done(self, name: str) -> None:
        self._keep()
        if name in self.after:
            self.after[name]()

    def _keep(self) -> None:
        if self.hardware is not None:
            self.hardware.write_text(json.dumps([asdict(gpu) for gpu in self.gpus]), encoding="utf-8")


def gpus_of(hardware: Path) -> list[FakeGpu]:
    """Return the GPUs whose state a file keeps."""
    gpus: list[dict[str, Any]] = json.loads(hardware.read_text(encoding="utf-8"))
    for gpu in gpus:
        gpu |= {key: tuple(value) for key, value in gpu.items() if isinstance(value, list)}
    return [FakeGpu(**gpu) for gpu in gpus]

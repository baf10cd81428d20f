"""Slowing a GPU down for emulated devices: clock locks, a share of its multiprocessors (MPS), a share of its memory.

Clocks are locked through NVML and are the whole GPU's. The shares of multiprocessors and memory are each container's,
by its environment (`GpuThrottle.env`), from the start of its process. What NVML or MPS refuses is not done, the compute
of the devices concerned is paced instead, and `describe` says so. What no knob does is in docs/gpu.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import pynvml
from pynvml import NVMLError

from harness.errors import TestbedError
from testbeds.docker import gpu_doctor, gpu_mps, gpu_nvml
from testbeds.docker.gpu_doctor import doctor
from testbeds.docker.gpu_locks import Locks, release_leftover
from testbeds.docker.gpu_nvml import Clock, Gpu
from testbeds.docker.gpu_shares import SETTING, GpuShare, agreed, by_gpu

__all__ = ["MEMORY_FRACTION", "STATE_FILE", "VISIBLE", "GpuShare", "GpuThrottle", "doctor", "restore_leftover"]

VISIBLE = "CUDA_VISIBLE_DEVICES"
MEMORY_FRACTION = "AMMETER_GPU_MEMORY_FRACTION"
"""What the worker hands to torch.cuda.set_per_process_memory_fraction."""

STATE_FILE = "gpu.json"
"""The file in a run's folder that says what is locked; `restore_leftover` reads it."""


class GpuThrottle:
    """The GPUs of one run, slowed down from `apply`, or from entering its context, to `restore`.

    Whatever ends the run restores (`gpu_locks`); use it in the main thread, so that signals do too.
    """

    def __init__(self, shares: Mapping[str, GpuShare], nvml: Any = pynvml, state: Path | None = None) -> None:
        """Take what each node is to get.

        Args:
            shares: by node; nodes without one are left out.
            state: where to note what is locked: STATE_FILE in the run's own folder; None = nowhere.

        Raises:
            ConfigError: the shares of one GPU contradict each other or add up to more than it has.
        """
        self._shares = dict(shares)
        self._nvml = nvml
        self._locks = Locks(nvml, state)
        self._refused: dict[tuple[int, Clock], str] = {}
        self._locked: set[tuple[int, Clock]] = set()
        self._on = by_gpu(self._shares)

    # ---- before the run -------------------------------------------------------------------------------------

    def check(self) -> list[gpu_doctor.Row]:
        """Return what of all this is permitted here; nothing is changed.

        Whether a clock may be locked is for certain only when it is done.
        """
        if not self._shares:
            return []
        try:
            rows, gpus = [gpu_doctor.driver(self._nvml)], gpu_nvml.found(self._nvml)
        except TestbedError as error:
            return [gpu_doctor.failed(error)]
        for index, here in self._on.items():
            if index >= len(gpus):
                rows.append((f"gpu {index}", "missing", str(_missing(index, len(gpus)))))
                continue
            wanted = [clock for clock in gpu_nvml.CLOCKS if agreed(here, clock) is not None]
            rows += gpu_doctor.about(gpus[index], wanted)
        if any(share.sm_percent is not None for share in self._shares.values()):
            rows.append(gpu_doctor.daemon(self._mps_folder))
        return rows

    def uuid(self, node: str) -> str:
        """Return which GPU a node's container is to be given.

        Raises:
            TestbedError: there is no driver, or no such GPU.
        """
        return self._gpu(self._shares[node].index).uuid

    def env(self, node: str) -> dict[str, str]:
        """Return the variables that a node's container needs; none for a node without a share.

        Raises:
            TestbedError: there is no driver, or no such GPU.
        """
        if node not in self._shares:
            return {}
        share = self._shares[node]
        found = {VISIBLE: self.uuid(node)}
        if (place := self.mps_folder(node)) is not None:
            found |= {gpu_mps.FOLDER: str(place), gpu_mps.PERCENT: str(share.sm_percent)}
        if share.memory_fraction is not None:
            found[MEMORY_FRACTION] = repr(share.memory_fraction)
        return found

    def mps_folder(self, node: str) -> Path | None:
        """Return the folder that a node's container must be shown, at the same path, to reach the MPS daemon."""
        share = self._shares.get(node)
        return None if share is None or share.sm_percent is None or self._no_mps else self._mps_folder

    # ---- the run --------------------------------------------------------------------------------------------

    def apply(self) -> None:
        """Lock the clocks asked for; where NVML refuses, it is noted, and `paced` and `describe` say so.

        Raises:
            TestbedError: no driver, no such GPU, a clock it does not have, or NVML failed; then nothing stays locked.
        """
        try:
            for index, here in self._on.items():
                gpu = self._gpu(index)
                for clock in gpu_nvml.CLOCKS:
                    asked = agreed(here, clock)
                    if asked is not None:
                        self._lock(gpu, clock, _nearest(gpu, clock, asked))
        except BaseException:
            self._locks.release_or_say()  # the first error is the one to pass on
            raise

    def _lock(self, gpu: Gpu, clock: Clock, mhz: int) -> None:
        try:
            with gpu_nvml.told(f"gpu {gpu.index}: locking its {clock} clock at {mhz} MHz"):
                try:
                    self._locks.lock(gpu.uuid, clock, mhz)
                except gpu_nvml.REFUSALS as error:
                    self._refused[gpu.index, clock] = _why(gpu, clock, error)
                else:
                    self._locked.add((gpu.index, clock))
        except OSError as error:
            raise TestbedError(
                f"gpu {gpu.index}: what is locked cannot be noted in {error.filename} ({error.strerror}), so "
                "nothing is locked; make the run's folder writable"
            ) from None

    def restore(self) -> None:
        """Let go of the clocks; a second time does nothing.

        Raises:
            TestbedError: NVML would not; it says what is still locked and the command that lets go.
        """
        self._locks.release()

    def __enter__(self) -> GpuThrottle:
        self.apply()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.restore()
        else:
            self._locks.release_or_say()  # the error within is the one to pass on

    # ---- what was done --------------------------------------------------------------------------------------

    def paced(self, node: str) -> bool:
        """Whether a node's compute must be paced, because something that slows it was refused; told after `apply`."""
        return bool(self._undone(node))

    def describe(self) -> dict[str, Any]:
        """Return, for the run's record and by node, what was asked, what was done and why the rest was not.

        Raises:
            TestbedError: there is no driver, or no such GPU.
        """
        return {node: self._describe(node) for node in self._shares}

    def _describe(self, node: str) -> dict[str, Any]:
        share = self._shares[node]
        gpu = self._gpu(share.index)
        undone = self._undone(node)
        done: dict[str, float] = {}
        for clock in gpu_nvml.CLOCKS:
            asked = share.clock(clock)
            if asked is not None and (share.index, clock) in self._locked:
                done[SETTING[clock]] = _nearest(gpu, clock, asked)
        if share.sm_percent is not None and not self._no_mps:
            done["sm_percent"] = share.sm_percent
        if share.memory_fraction is not None:
            done["memory_fraction"] = share.memory_fraction
        return {
            "gpu": {"index": gpu.index, "name": gpu.name, "uuid": gpu.uuid},
            "asked": share.model_dump(exclude={"index"}, exclude_none=True),
            "done": done,
            "not_done": undone,
            "paced": bool(undone),
        }

    def _undone(self, node: str) -> dict[str, str]:
        """Return what was asked and refused, and why, by setting."""
        if node not in self._shares:
            return {}
        share = self._shares[node]
        undone = {
            SETTING[clock]: self._refused[share.index, clock]
            for clock in gpu_nvml.CLOCKS
            if (share.index, clock) in self._refused
        }
        if share.sm_percent is not None and self._no_mps:
            undone["sm_percent"] = self._no_mps
        return undone

    # ---- what is here ---------------------------------------------------------------------------------------

    @cached_property
    def _gpus(self) -> list[Gpu]:
        return gpu_nvml.found(self._nvml)

    def _gpu(self, index: int) -> Gpu:
        if index >= len(self._gpus):
            raise _missing(index, len(self._gpus))
        return self._gpus[index]

    @cached_property
    def _mps_folder(self) -> Path:
        return gpu_mps.folder()

    @cached_property
    def _no_mps(self) -> str:
        """Why there is no MPS; read once, so that containers and record agree."""
        return gpu_mps.unreachable(self._mps_folder)


def restore_leftover(path: Path, nvml: Any = pynvml) -> list[str]:
    """Let go of the clocks that a run which was killed had locked, and remove its file.

    Args:
        path: the run's STATE_FILE; if it is not there, nothing was locked.

    Returns:
        What was let go, a line each.

    Raises:
        TestbedError: the file is none of ours, or NVML would not let go; then the file stays.
    """
    return release_leftover(path, nvml)


def _why(gpu: Gpu, clock: Clock, error: NVMLError) -> str:
    if isinstance(error, pynvml.NVMLError_NoPermission):
        return gpu_doctor.NEEDS_ROOT
    return gpu.cannot_lock(clock) or f"{gpu.name} or its driver cannot lock its {clock} clock ({error})"


def _missing(index: int, count: int) -> TestbedError:
    have = f"the driver sees {count}, numbered from 0" if count else "the driver sees none"
    return TestbedError(f"gpu {index}: there is no such GPU ({have}); give an index that 'nvidia-smi -L' shows")


def _nearest(gpu: Gpu, clock: Clock, mhz: int) -> int:
    """Return the clock nearest to `mhz` that a GPU has.

    Raises:
        TestbedError: it is outside what the GPU has.
    """
    steps = gpu.clocks[clock]
    if not steps:
        return mhz
    if not steps[0] <= mhz <= steps[-1]:
        raise TestbedError(
            f"testbed: {SETTING[clock]}: {mhz} MHz, but GPU {gpu.index} ({gpu.name}) has {steps[0]} to {steps[-1]}; "
            "give one within, or leave it out and let compute be paced"
        )
    return min(steps, key=lambda step: abs(step - mhz))

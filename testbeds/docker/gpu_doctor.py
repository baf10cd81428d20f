"""What of a GPU can be throttled on this machine, found without changing anything.

NVML has no way to ask whether a clock may be locked; by its reference root may, and others may not.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pynvml

from harness.errors import TestbedError
from testbeds.docker import gpu_mps, gpu_nvml
from testbeds.docker.gpu_nvml import Clock, Gpu
from testbeds.docker.gpu_shares import SETTING

Row = tuple[str, str, str]
"""What, its state, and the remedy, "" where all is well."""

NEEDS_ROOT = "only root may lock a GPU's clocks; run Ammeter as root (sudo), else compute is paced"


def doctor(nvml: Any = pynvml) -> list[Row]:
    """Return what of a GPU can be throttled on this machine; nothing is changed."""
    try:
        rows, gpus = [driver(nvml)], gpu_nvml.found(nvml)
    except gpu_nvml.NoDriver as error:
        return [("gpu", "none", str(error))]
    except TestbedError as error:
        return [failed(error)]
    if not gpus:
        return [*rows, ("gpu", "none", "the driver sees no GPU; see whether 'nvidia-smi -L' lists one")]
    for gpu in gpus:
        rows += about(gpu, gpu_nvml.CLOCKS)
    return [*rows, daemon(gpu_mps.folder())]


def driver(nvml: Any) -> Row:
    """Return the row of a driver that answers.

    Raises:
        TestbedError: none does, or it fails.
    """
    return "gpu driver", gpu_nvml.version(nvml), ""


def failed(error: TestbedError) -> Row:
    """Return the row of a driver that does not answer, or fails."""
    return "gpu driver", "missing" if isinstance(error, gpu_nvml.NoDriver) else "not usable", str(error)


def about(gpu: Gpu, clocks: Sequence[Clock]) -> list[Row]:
    """Return rows about a GPU and the clocks of it that are to be locked."""
    rows: list[Row] = [(f"gpu {gpu.index}", gpu.name, "")]
    for clock in clocks:
        what = f"gpu {gpu.index} {clock} clock lock"
        if cannot := gpu.cannot_lock(clock):
            rows.append((what, "not supported", f"{cannot}; leave {SETTING[clock]} out, and compute is paced"))
        elif not gpu_nvml.may_lock():
            rows.append((what, "not permitted", NEEDS_ROOT))
        else:
            rows.append((what, "permitted", ""))
    return rows


def daemon(place: Path) -> Row:
    """Return the row of the MPS daemon whose folder this is."""
    reason = gpu_mps.unreachable(place)
    return "gpu mps daemon", "not reachable" if reason else "reachable", reason

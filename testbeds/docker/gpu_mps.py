"""Whether the MPS control daemon, which shares a GPU out to processes, can be reached.

Its folder holds the UNIX socket `control`, at which a CUDA program knocks when it starts; without an answer it runs
with the whole GPU and says nothing. Source: NVIDIA's Multi-Process Service guide, "Environment Variables".
"""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

FOLDER = "CUDA_MPS_PIPE_DIRECTORY"
PERCENT = "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"
_DEFAULT = "/tmp/nvidia-mps"
_TIMEOUT_S = 5.0


def folder() -> Path:
    """Return where the daemon's pipes and sockets are: $CUDA_MPS_PIPE_DIRECTORY, else CUDA's own default."""
    return Path(os.environ.get(FOLDER) or _DEFAULT)


def unreachable(place: Path) -> str:
    """Return why no daemon can be reached at a folder, and the remedy; "" = one answers."""
    control = place / "control"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(_TIMEOUT_S)
            probe.connect(str(control))
    except PermissionError:
        return f"this user may not use {control}; start the MPS daemon as the user that Ammeter runs as"
    except OSError as error:
        if error.errno == errno.EPROTOTYPE:  # somebody listens there, with sockets of another type
            return ""
        return (
            f"no MPS daemon answers at {control} ({error.strerror or error}); start one with 'nvidia-cuda-mps-control "
            f"-d', or set {FOLDER} to its folder"
        )
    return ""

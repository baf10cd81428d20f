"""Labels and names that tell a run's containers, networks and network devices from everybody else's."""

from __future__ import annotations

from hashlib import sha256

RUN = "ammeter.run"
NODE = "ammeter.node"
CONTROLLER = "ammeter.pid"  # the maker's mark, see testbeds._wall.ownership
STANDING = "ammeter.standing"  # of which standing testbed it is part: it outlives its maker
ENGINE = "ammeter.engine"  # which object of a controller made it: what that one removes at its end

_DEVICE = "amm"


def device_prefix(run: str) -> str:
    """Return how the names of a run's network devices begin: "amm" and six digits (the kernel allows 15 letters)."""
    return f"{_DEVICE}{sha256(run.encode()).hexdigest()[:6]}"


def is_ours(device: str) -> bool:
    """Return whether a network device has a name that `device_prefix` gives."""
    digits = device[len(_DEVICE) : len(_DEVICE) + 6]
    return device.startswith(_DEVICE) and len(digits) == 6 and set(digits) <= set("0123456789abcdef")

"""Random streams that depend on names, not on the order in which things happen to run (rule 8)."""

from __future__ import annotations

import zlib

import numpy as np
import torch


def stream(seed: int, *names: str | int) -> np.random.Generator:
    """Return the numpy stream of that name, e.g. stream(seed, "device-3", "replay")."""
    return np.random.default_rng([seed, *map(_number, names)])


def torch_seed(seed: int, *names: str | int) -> int:
    """Return the seed of the torch stream of that name."""
    return int(np.random.SeedSequence([seed, *map(_number, names)]).generate_state(1)[0])


def _number(name: str | int) -> int:
    return name if isinstance(name, int) else zlib.crc32(name.encode())


class TorchStream:
    """One activity's torch stream: `with stream:` swaps its state in, and the one before it out again.

    A stream belongs to an activity, not to a node: a server that serves several devices' copies in the order of
    arrival must not draw their dropout masks in that order. Every driver seeds it the same way, so that weights are
    equal bit for bit on every testbed.
    """

    __slots__ = ("_outer", "_seed", "_state")

    def __init__(self, seed: int, node: str, lane: int) -> None:
        self._seed = torch_seed(seed, node, lane)
        self._state: torch.Tensor | None = None

    def __enter__(self) -> None:
        """Swap the stream in; with several threads, the caller holds a lock on the process's generator."""
        self._outer = torch.get_rng_state()
        if self._state is None:
            torch.manual_seed(self._seed)
        else:
            torch.set_rng_state(self._state)

    def __exit__(self, *exception: object) -> None:
        self._state = torch.get_rng_state()
        torch.set_rng_state(self._outer)

"""One run on containers of this host."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from harness.experiment import RunSpec
from harness.record import Recorder
from harness.run import Progress
from harness.testbed import Outcome
from harness.topology import Topology
from testbeds._wall.run import conduct
from testbeds.docker.config import Config
from testbeds.docker.emulator import DockerEmulator
from testbeds.docker.standing import borrowed
from testbeds.docker.standing_emulator import StandingEmulator


def run(spec: RunSpec, recorder: Recorder, data_root: Path | None = None, progress: Progress | None = None) -> Outcome:
    """Run `spec` on the wall clock, on containers of this host: its own, or those of a standing testbed.

    Raises:
        AmmeterError: no engine, a host that is too small, a wrong setting, a lost node, a hang, ...
    """
    assert isinstance(spec.bed, Config)
    paced = spec.bed.compute == "paced"
    with borrowed(spec, data_root) as standing:
        make: Callable[[RunSpec, Topology, Path], DockerEmulator] = partial(DockerEmulator, data_root=data_root)
        if standing is not None:
            make = partial(StandingEmulator, data_root=data_root, standing=standing)
        return conduct(spec, recorder, data_root, progress, paced, make)

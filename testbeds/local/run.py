"""One run on processes of this host."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from harness.experiment import RunSpec
from harness.record import Recorder
from harness.run import Progress
from harness.testbed import Outcome
from testbeds._wall.run import conduct
from testbeds.local.config import Config
from testbeds.local.emulator import LocalEmulator


def run(spec: RunSpec, recorder: Recorder, data_root: Path | None = None, progress: Progress | None = None) -> Outcome:
    """Run `spec` on the wall clock, on processes of this host.

    Raises:
        AmmeterError: a wrong setting, a testbed that is not what it is to be, a lost node, a hang, ...
    """
    assert isinstance(spec.bed, Config)
    paced = spec.bed.compute == "paced"
    return conduct(spec, recorder, data_root, progress, paced, partial(LocalEmulator, data_root=data_root))

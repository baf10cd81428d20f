"""One run on the wall clock, from its spec to its rows."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.controller.conductor import Conductor
from harness.controller.emulator import Emulator
from harness.errors import ConfigError
from harness.experiment import RunSpec
from harness.record import Recorder
from harness.run import Progress, workload
from harness.testbed import Outcome
from harness.topology import Topology
from testbeds._fleet.boards import node_info
from testbeds._fleet.links import topology
from testbeds._wall.config import WallFleet
from testbeds._wall.host import HostWatch
from testbeds._wall.ownership import FOLDER_PREFIX, claim


def conduct(
    spec: RunSpec,
    recorder: Recorder,
    data_root: Path | None,
    progress: Progress | None,
    paced: bool,
    make: Callable[[RunSpec, Topology, Path], Emulator],
) -> Outcome:
    """Run `spec` with the emulator that `make` gives for the run's folder.

    Raises:
        AmmeterError: what stopped the run.
    """
    bed = spec.bed
    assert isinstance(bed, WallFleet)
    if spec.mode != "learn":
        raise ConfigError(
            "mode: timing runs nothing, so there is nothing to time on a wall clock; say `mode: learn`, or use the "
            "virtual testbed"
        )
    nodes = topology(bed)
    load = workload(spec, nodes, data_root)

    async def whole(folder: Path) -> Outcome:
        conductor = Conductor(
            spec,
            nodes,
            make(spec, nodes, folder),
            bed.settings(nodes, paced),
            recorder,
            folder,
            data_root,
            progress,
        )
        return await conductor.run()

    watch = HostWatch()
    with run_folder() as folder:
        outcome = asyncio.run(whole(folder))
    outcome.notes["host"] = watch.notes()
    outcome.nodes = node_info(bed, nodes)
    outcome.partition = load.parts
    outcome.histogram = load.histogram
    return outcome


@contextmanager
def run_folder() -> Iterator[Path]:
    """Make a folder that only its owner may enter, which says whose it is; remove it afterwards."""
    folder = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX))
    try:
        claim(folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)

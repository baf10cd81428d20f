"""A testbed that pretends to run on the wall clock: the virtual one, on boards that are slower than their profiles.

Every computation takes `slower` times what the board's profile says, and the run says how long each took, as a real
testbed does. So a prediction that is priced by a rehearsal is right, and one that trusts the profiles is not.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path

from harness import testbed
from harness.experiment import RunSpec
from harness.record import Recorder
from harness.run import Progress
from harness.testbed import Outcome
from testbeds import virtual
from testbeds._wall.config import WallFleet, check_wall
from testbeds._wall.predicted import predicted
from testbeds.virtual.run import build

__all__ = ["Config", "check", "predicted", "run"]


class Config(WallFleet):
    """`forgets`: the first so many computations of each node are not told, as those of a first call."""

    slower: float = 1.25
    forgets: int = 0


check = check_wall


def run(spec: RunSpec, recorder: Recorder, data_root: Path | None = None, progress: Progress | None = None) -> Outcome:
    """Run `spec` twice: to see what the profiles say, then with other times."""
    bed = spec.bed
    assert isinstance(bed, Config)
    _, section = testbed.configured(predicted(bed, None), "pretended")
    driver, _, _ = build(replace(spec, testbed=virtual, bed=section), Recorder(None), data_root)
    driver.run(spec.method.ends)
    timings = {}
    for processor in driver.processors:
        rows = {
            priced.entry.digest: {
                "name": priced.entry.name,
                "seconds": bed.slower * priced.duration_s,
                "count": 1,
            }
            for priced in processor._known.values()
        }
        timings[processor.name] = rows
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "timings.json"
        file.write_text(json.dumps({"format": 1, "nodes": timings}))
        _, section = testbed.configured(predicted(bed, str(file)), "pretended")
        outcome = virtual.run(replace(spec, testbed=virtual, bed=section), recorder, data_root, progress)
    outcome.clock = "wall"
    outcome.timings = {name: dict(list(rows.items())[bed.forgets :]) for name, rows in timings.items()}
    outcome.notes = {}
    return outcome

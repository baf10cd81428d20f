"""The quota at which a step takes as long as on the board.

A step on the unthrottled host says how large a share it needs; under that quota it takes somewhat longer or shorter
than the quotient says (the kernel grants time in periods, caches cool down), so it is measured there and corrected.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from statistics import mean

from harness.controller.emulator import Measure
from testbeds.docker.limits import LEAST_QUOTA_S, LONGEST_PERIOD_S

STEPS = 5
TRIES = 5
GOOD_ENOUGH = 0.03


@dataclass(frozen=True)
class Calibrated:
    """What was found, for the run's record.

    Attributes:
        cpus: processors' worth of time that is granted.
        target_s, step_s: how long a step is to take and takes (real seconds).
        tries: how often the quota was corrected.
    """

    cpus: float
    target_s: float
    step_s: float
    tries: int


async def calibrate(
    measure: Measure, grant: Callable[[float], Awaitable[None]], cpus: float, most: float, target_s: float
) -> Calibrated:
    """Correct a quota until a step takes what it is to take; the best that was found is granted at the end.

    Args:
        grant: puts the node under a quota.
        cpus: to begin with.  most: threads of the node.
    """
    least = LEAST_QUOTA_S / LONGEST_PERIOD_S
    best: Calibrated | None = None
    for tries in range(TRIES):
        await grant(cpus)
        step_s = mean(await measure(STEPS))
        if best is None or abs(step_s / target_s - 1) < abs(best.step_s / target_s - 1):
            best = Calibrated(cpus, target_s, step_s, tries)
        if abs(step_s / target_s - 1) <= GOOD_ENOUGH:
            return best
        cpus = min(max(cpus * step_s / target_s, least), most)
    assert best is not None
    await grant(best.cpus)
    return best

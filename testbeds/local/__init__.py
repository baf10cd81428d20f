"""The local testbed: one process per node on this host, loopback TCP; no root, no container.

config     the experiment's `testbed` section
processes  the workers' processes
emulator   what is emulated and how: pacing, and a limiter inside the transport
run        one run
"""

from testbeds._wall.pace import pace
from testbeds._wall.predicted import predicted
from testbeds.local.config import Config, check
from testbeds.local.run import run

__all__ = ["Config", "check", "pace", "predicted", "run"]

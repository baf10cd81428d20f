"""The virtual testbed: time is simulated, computations are priced, transfers share simulated links.

config      the experiment's `testbed` section (what it shares with other testbeds: testbeds._fleet)
recorded    the availability that the section names, drawn per device from the seed
machines    profiles and links of every node
run         one run, from its spec to its rows
driver      the primitives below a Node
kernel      the clock: a heap and the coroutines that wait
processor   one processor per node, first come first served
pricing     each computation is traced once; `timed`: or costs what a real testbed measured
channel     FIFO messages between a pair of nodes
network     flows on links; `fair`: who gets how much; `playback`: rates that follow a trace
presence    devices that come and go
"""

from testbeds.virtual.config import Config, check
from testbeds.virtual.run import run

__all__ = ["Config", "check", "run"]

"""One run on the virtual clock, from its spec to its rows."""

from __future__ import annotations

from pathlib import Path

import torch

from harness.experiment import RunSpec
from harness.record import Recorder
from harness.run import Progress, role, workload
from harness.testbed import NodeInfo, Outcome
from testbeds.virtual.config import Config
from testbeds.virtual.driver import Options, VirtualDriver
from testbeds.virtual.machines import machines, topology


def run(
    spec: RunSpec, recorder: Recorder, data_root: Path | None = None, progress: Progress | None = None
) -> Outcome:
    """Run `spec` on the virtual clock.

    Raises:
        AmmeterError: a wrong setting, missing data, a deadlock, a device out of memory, a broken rule, ...
    """
    config = spec.bed
    assert isinstance(config, Config)
    nodes = topology(config)
    found = machines(config, nodes)
    options = Options(
        timing=spec.mode == "timing",
        seed=spec.seed,
        framing=config.framing,
        compute_jitter=config.compute_jitter,
        backlog_bytes=int(config.backlog_mib * 2**20),
    )
    load = workload(spec, nodes, data_root)
    driver = VirtualDriver(nodes, found, recorder, options)
    driver.progress = progress
    for name in nodes.names:
        driver.add(name, role(spec, load, nodes.role(name)), spec.seed)
    for fault in config.faults:
        driver.kernel.at(fault.at_s, driver.crash, fault.node)
        if fault.rejoin_s is not None:
            driver.kernel.at(fault.rejoin_s, driver.rejoin, fault.node)
    threads = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        outcome = driver.run(spec.method.ends)
    finally:
        torch.set_num_threads(threads)
    outcome.nodes = [
        NodeInfo(
            name,
            nodes.role(name),
            machine.profile.id,
            machine.profile.memory_bytes,
            machine.profile.power_idle_w,
            machine.profile.power_load_w,
        )
        for name, machine in found.items()
    ]
    outcome.notes |= {"sharing": "general" if driver.general_sharing else "star", "threads": config.threads}
    outcome.partition = load.parts
    outcome.histogram = load.histogram
    return outcome

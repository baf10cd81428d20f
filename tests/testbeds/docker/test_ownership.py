"""Names of network devices."""

from __future__ import annotations

from testbeds.docker import ownership


def test_devices_are_named_after_the_run() -> None:
    prefix = ownership.device_prefix("a-run")
    assert ownership.is_ours(f"{prefix}12")
    assert prefix != ownership.device_prefix("another")
    assert len(f"{prefix}999999") <= 15
    assert not any(map(ownership.is_ours, ("amm", "ammeter0", "eth0", "xammabcdef", "amm12")))

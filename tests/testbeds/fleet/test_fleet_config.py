"""testbeds/_fleet/config.py: which profiles a section is made with, and what of them counts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from profiles import library
from testbeds._fleet.config import Fleet

PI = {"profile": "rpi-4-4g"}


def used(**section: Any) -> list[str]:
    return list(Fleet(**section).profiles())


def test_the_profiles_of_a_section_are_those_that_nodes_are_made_with() -> None:
    """A default that every group overrides, and links by their figures, are no profiles of it."""
    assert used(devices=[PI]) == ["eth-1g", "rpi-4-4g", "server-cpu", "wifi-ac-pi4"]
    assert used(devices=[{**PI, "network": "lte"}]) == ["eth-1g", "lte", "rpi-4-4g", "server-cpu"]
    own = {"up_bps": 1e6}
    assert used(devices=[PI], network=own, server={"profile": "server-gpu", "network": own}) == [
        "rpi-4-4g",
        "server-gpu",
    ]
    edges = {"profile": "rpi-5-8g", "lan": "wifi-6"}
    assert used(devices=[PI], network="lte", edges=edges) == [
        "eth-1g",
        "lte",
        "rpi-4-4g",
        "rpi-5-8g",
        "server-cpu",
        "wifi-6",
    ]


@pytest.mark.parametrize(
    ("change", "counts"),
    [
        ({"memory_bytes": 7}, True),
        ({"power_load_w": 99.0}, True),
        ({"operator_s": 1.0}, True),
        ({"title": "x"}, False),
        ({"measured": ()}, False),
    ],
)
def test_a_profile_is_another_one_when_its_figures_change(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], counts: bool
) -> None:
    config = Fleet(devices=[PI])  # type: ignore[list-item]
    before = config.profiles()
    real = library.device
    changed = replace(real("rpi-4-4g"), **change)
    monkeypatch.setattr(library, "device", lambda name: changed if name == "rpi-4-4g" else real(name))
    after = config.profiles()
    assert (after["rpi-4-4g"] != before["rpi-4-4g"]) is counts
    assert after["server-cpu"] == before["server-cpu"]


def test_a_network_is_another_one_when_its_rate_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    config = Fleet(devices=[PI], network="lte")  # type: ignore[list-item]
    before = config.profiles()
    slower = replace(library.network("lte"), up_bps=1.0)
    real = library.network
    monkeypatch.setattr(library, "network", lambda name: slower if name == "lte" else real(name))
    assert {name for name, value in config.profiles().items() if before[name] != value} == {"lte"}

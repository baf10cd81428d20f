"""harness/topology.py: names, roles, and who serves whom."""

from __future__ import annotations

import pytest

from harness.topology import SERVER, Topology


def test_names_are_numbered_with_equal_width_so_that_they_sort():
    nodes = Topology.numbered(12)
    assert nodes.devices[:3] == ("device-00", "device-01", "device-02")
    assert list(nodes.devices) == sorted(nodes.devices)
    assert nodes.names == (*nodes.devices, SERVER)
    assert Topology.numbered(1).devices == ("device-0",)
    assert Topology.numbered(10).devices[-1] == "device-9"
    assert Topology.numbered(101).devices[1] == "device-001"


def test_edges_get_devices_in_turn():
    nodes = Topology.numbered(5, 2)
    assert nodes.edges == ("edge-0", "edge-1")
    assert nodes.devices_of("edge-0") == ("device-0", "device-2", "device-4")
    assert nodes.devices_of("edge-1") == ("device-1", "device-3")
    assert nodes.edge_of["device-3"] == "edge-1"
    assert nodes.names == (*nodes.devices, "edge-0", "edge-1", SERVER)


@pytest.mark.parametrize("name", [SERVER, "device-1"])
def test_all_others_work_with_all_devices(name: str):
    nodes = Topology.numbered(3, 2)
    assert nodes.devices_of(name) == nodes.devices


def test_roles():
    nodes = Topology.numbered(2, 1)
    assert [nodes.role(name) for name in nodes.names] == ["device", "device", "edge", "server"]


def test_two_tiers_have_no_edges():
    nodes = Topology.numbered(2)
    assert (nodes.edges, dict(nodes.edge_of)) == ((), {})

"""testbeds/_fleet/boards.py: which board every node is, in the order of the nodes."""

from __future__ import annotations

from typing import Any

import pytest

from harness.errors import ProfileError
from harness.topology import Topology
from profiles import library
from testbeds._fleet.boards import boards, node_info
from testbeds._fleet.config import Fleet
from testbeds._fleet.links import topology

SECTION: dict[str, Any] = {
    "devices": [{"profile": "rpi-4-4g", "count": 2}, {"profile": "jetson-nano-4g/5w"}, {"profile": "rpi-4-4g"}],
    "server": {"profile": "server-gpu"},
    "edges": {"profile": "rpi-5-8g", "count": 2},
}


def test_devices_are_numbered_through_their_groups():
    fleet = Fleet.model_validate(SECTION)
    nodes = topology(fleet)
    assert {name: board.id for name, board in boards(fleet, nodes).items()} == {
        "device-0": "rpi-4-4g",
        "device-1": "rpi-4-4g",
        "device-2": "jetson-nano-4g/5w",
        "device-3": "rpi-4-4g",
        "edge-0": "rpi-5-8g",
        "edge-1": "rpi-5-8g",
        "server": "server-gpu",
    }
    assert tuple(boards(fleet, nodes)) == nodes.names


def test_the_record_says_what_each_node_is():
    fleet = Fleet.model_validate(SECTION)
    info = node_info(fleet, topology(fleet))
    assert [(node.name, node.role) for node in info] == [
        *((f"device-{number}", "device") for number in range(4)),
        ("edge-0", "edge"),
        ("edge-1", "edge"),
        ("server", "server"),
    ]
    board = library.device("jetson-nano-4g/5w")
    found = info[2]
    assert (found.profile, found.memory_bytes) == (board.id, board.memory_bytes)
    assert (found.power_idle_w, found.power_load_w) == (board.power_idle_w, board.power_load_w)


def test_without_edges_there_are_none():
    fleet = Fleet.model_validate({"devices": [{"profile": "rpi-4-4g"}]})
    assert list(boards(fleet, topology(fleet))) == ["device-0", "server"]


def test_a_board_that_nobody_knows_is_an_error_and_so_are_nodes_of_another_fleet():
    with pytest.raises(ProfileError, match="rpi-44"):
        boards(Fleet.model_validate({"devices": [{"profile": "rpi-44"}]}), Topology.numbered(1))
    with pytest.raises(ValueError, match=r"shorter|longer"):
        boards(Fleet.model_validate(SECTION), Topology.numbered(2, 2))

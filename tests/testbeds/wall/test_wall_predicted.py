"""What predicts a run on the wall clock: the same nodes on the same links, and what it knows beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness import testbed
from testbeds import local
from testbeds._fleet.boards import boards
from testbeds._fleet.links import NodeLink, node_links, topology
from testbeds._wall.predicted import predicted
from testbeds.virtual import Config

SECTION: dict[str, Any] = {
    "devices": [
        {"profile": "rpi-4-4g", "count": 2, "network": {"up_bps": 1e6, "latency_s": 0.01}},
        {"profile": "rpi-5-8g"},
    ],
    "network": "wifi-ac-pi4",
    "server": {"profile": "server-cpu", "network": {"down_bps": 5e7}},
    "edges": {"profile": "rpi-5-8g", "count": 1, "network": "eth-1g", "lan": {"up_bps": 3e7}},
}


def bed(**changes: Any) -> local.Config:
    return local.Config.model_validate(SECTION | changes)


def section_of(made: local.Config, timings: str | None = None) -> Config:
    """Return the prediction's settings, checked as an experiment's are."""
    module, found = testbed.configured(predicted(made, timings), "test")
    assert testbed.name_of(module) == "virtual"
    assert isinstance(found, Config)
    return found


@pytest.mark.parametrize("dilation", [1, 8])
def test_nodes_and_links_are_the_testbeds_own(dilation: float) -> None:
    made = bed(dilation=dilation)
    found = section_of(made)
    nodes = topology(made)
    assert topology(found) == nodes
    assert boards(found, nodes) == boards(made, nodes)
    links = node_links(made.model_copy(update={"medium": "separate"}), nodes, seed=3)
    assert node_links(found, nodes, seed=3) == links
    assert links["device-0"] == NodeLink(1e6, None, 0.01)


def test_no_medium_is_shared_however_the_network_is() -> None:
    """Wi-Fi is one medium on the virtual clock, and a link for each device on the wall clock."""
    found = section_of(bed(medium="separate"))
    assert all(link.cell is None for link in node_links(found, topology(found)).values())


@pytest.mark.parametrize(("tls", "framing"), [(True, "tls"), (False, "tcp")])
def test_frames_are_what_the_transport_sends(tls: bool, framing: str) -> None:
    assert section_of(bed(tls=tls)).framing == framing


@pytest.mark.parametrize(("threads", "expected"), [(2, 2), (None, 1)])
def test_threads_and_backlog_are_the_testbeds(threads: int | None, expected: int) -> None:
    found = section_of(bed(threads=threads, backlog_mib=3.5))
    assert (found.threads, found.backlog_mib) == (expected, 3.5)


def test_links_that_are_not_shaped_are_endless() -> None:
    found = section_of(bed(shaped=False))
    for link in node_links(found, topology(found)).values():
        assert (link.up_bps, link.down_bps, link.latency_s) == (None, None, 0.0)
        assert link.lan in (None, NodeLink())


def test_times_are_read_from_the_file_that_is_given(tmp_path: Path) -> None:
    file = tmp_path / "timings.json"
    file.write_text(json.dumps({"format": 1, "nodes": {}}))
    assert section_of(bed(), str(file)).timings == str(file)
    assert section_of(bed()).timings is None


def test_the_local_testbed_has_the_hook() -> None:
    assert local.predicted(bed(), None) == predicted(bed(), None)

"""testbeds/_wall/config.py: what a section of a real testbed may say, and how it becomes a run's settings."""

from __future__ import annotations

from typing import Any

import pytest

from harness.errors import ConfigError, ProfileError
from harness.validation import validated
from testbeds._fleet.links import topology
from testbeds._wall.config import WallFleet, check_wall

SECTION: dict[str, Any] = {"devices": [{"profile": "rpi-4-4g"}, {"profile": "jetson-nano-4g/5w"}], "network": {}}


def made(**changes: Any) -> WallFleet:
    return validated(WallFleet, {**SECTION, **changes}, "x.yaml: testbed")


def test_every_setting_reaches_the_conductor():
    bed = made(
        dilation=2.5,
        on_loss="rejoin",
        rejoins=7,
        silence_s=1.5,
        link_s=2.5,
        hang_s=3.5,
        start_s=4.5,
        preflight=False,
        tolerance={"rate": 0.2, "step": 0.3},
        tls=False,
        backlog_mib=0.5,
        recording=False,
    )
    settings = bed.settings(topology(bed), paced=False)
    assert settings.threads == {"device-0": 1, "device-1": 1, "server": 1}
    assert (settings.dilation, settings.paced, settings.tls) == (2.5, False, False)
    assert (settings.on_loss, settings.rejoins) == ("rejoin", 7)
    assert (settings.silence_s, settings.link_s, settings.hang_s, settings.start_s) == (1.5, 2.5, 3.5, 4.5)
    assert (settings.probe, settings.rate_tolerance, settings.step_tolerance) == (False, 0.2, 0.3)
    assert settings.backlog_bytes == 2**19
    assert settings.recording is False
    assert made().settings(topology(bed), paced=True).paced


def test_threads_are_one_or_the_board_s_cores():
    bed = made(threads=None)
    assert bed.threads_of(topology(bed))["device-0"] == 4
    assert made(threads=3).threads_of(topology(bed)) == dict.fromkeys(("device-0", "device-1", "server"), 3)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"dilation": 0.5}, "testbed.dilation"),
        ({"threads": 0}, "testbed.threads"),
        ({"on_loss": "ignore"}, "testbed.on_loss"),
        ({"rejoins": -1}, "testbed.rejoins"),
        ({"hang_s": 0}, "testbed.hang_s"),
        ({"tolerance": {"rate": 0}}, "testbed.tolerance.rate"),
        ({"tolerance": {"speed": 1}}, "testbed.tolerance.speed: unknown key"),
        ({"faults": []}, "testbed.faults: unknown key"),
    ],
)
def test_what_makes_no_sense_is_refused_by_key(changes: dict[str, Any], named: str):
    with pytest.raises(ConfigError, match=named):
        made(**changes)


def test_a_medium_cannot_be_shared_and_profiles_are_looked_up():
    check_wall(made(), "testbed")
    check_wall(made(medium="separate"), "testbed")
    with pytest.raises(ConfigError, match=r"^testbed\.medium: a real testbed gives each device a link of its own"):
        check_wall(made(medium="shared", network="wifi-ac-pi4"), "testbed")
    group = {"profile": "rpi-4-4g", "medium": "shared", "network": "wifi-ac-pi4"}
    with pytest.raises(ConfigError, match=r"^testbed\.devices\[1\]\.medium"):
        check_wall(made(devices=[SECTION["devices"][0], group]), "testbed")
    with pytest.raises(ProfileError, match=r"testbed\.devices\[0\]\.profile"):
        check_wall(made(devices=[{"profile": "rpi-44"}]), "testbed")

"""Who answers as docker engine, and what is said when nobody does."""

from __future__ import annotations

from pathlib import Path

import pytest
from docker_host import engine_or_skip

from harness.errors import TestbedError
from testbeds.docker import access

INFO = {
    "ServerVersion": "20.10.24",
    "Driver": "overlay2",
    "CgroupVersion": "1",
    "CpuCfsQuota": True,
    "CPUSet": True,
    "MemoryLimit": True,
    "SwapLimit": True,
}


def test_no_engine_is_said_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    with pytest.raises(access.NoEngine, match=f"at unix://{tmp_path}/none.sock; install and start one"):
        access.connect()
    ((what, state, remedy),) = access.check()
    assert (what, state) == ("docker engine", "missing")
    assert "systemctl start docker" in remedy


def test_an_engine_that_may_not_be_used_is_said_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(access, "_knock", refused)
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    with pytest.raises(TestbedError, match="usermod -aG docker") as caught:
        access.connect()
    assert not isinstance(caught.value, access.NoEngine)
    assert access.check()[0][1] == "not usable"


def test_what_the_kernel_lacks_is_said() -> None:
    assert all(not remedy for _, _, remedy in access.rows(INFO, ""))
    lacking = access.rows({**INFO, "SwapLimit": False, "CpuCfsQuota": False}, "unix:///run/docker.sock")
    assert {what: state for what, state, remedy in lacking if remedy} == {
        "docker cpu quota": "missing",
        "docker swap limit": "missing",
    }
    assert ("docker engine", "20.10.24, overlay2, cgroup v1", "") in lacking


def test_an_engine_elsewhere_cannot_be_shaped() -> None:
    (row,) = [row for row in access.rows(INFO, "tcp://10.0.0.1:2375") if row[2]]
    assert row[1] == "another"


def test_containers_run_as_this_user_unless_it_is_root_within() -> None:
    import os

    assert access.user({"SecurityOptions": ["name=seccomp,profile=default"]}) == f"{os.getuid()}:{os.getgid()}"
    assert access.user({"SecurityOptions": ["name=rootless"]}) == "0:0"


def test_the_engine_at_hand_can_limit() -> None:
    engine_or_skip()
    found = {what: state for what, state, _ in access.check()}
    assert found["docker cpu quota"] == found["docker memory limit"] == "works"

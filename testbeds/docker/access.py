"""Reaching the docker engine: who answers, what it can do here, and what would mend what is missing."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator, Mapping
from typing import Any

import docker
import requests
from docker import DockerClient
from docker.errors import APIError, DockerException

from harness.errors import TestbedError

_UNIX = "unix://"
_SOCKET = f"{_UNIX}/var/run/docker.sock"
_CONNECTIONS = 16  # calls that may be under way at once
_TIMEOUT_S = 120  # a loaded host may take long to start a container


class NoEngine(TestbedError):  # noqa: N818 - like the other errors that say what is the case
    """No docker engine answers on this machine."""


@contextlib.contextmanager
def told(what: str) -> Iterator[None]:
    """Turn what the SDK raises within into one sentence that begins with `what`.

    Raises:
        TestbedError: the engine refused or does not answer.
    """
    try:
        yield
    except APIError as error:
        raise TestbedError(f"{what}: {str(error.explanation or error).strip()}") from None
    except (DockerException, requests.RequestException) as error:
        raise TestbedError(f"{what}: the docker engine does not answer ({error})") from None


def _knock(path: str) -> None:
    """See whether somebody listens at a socket; the SDK does not tell what is missing from what is forbidden."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.connect(path)


def connect() -> DockerClient:
    """Return a client of the docker engine: $DOCKER_HOST's, else this machine's at its usual socket.

    Raises:
        NoEngine: none answers.
        TestbedError: it may not be used, or runs no Linux containers.
    """
    address = os.environ.get("DOCKER_HOST") or _SOCKET
    try:
        if address.startswith(_UNIX):
            _knock(address.removeprefix(_UNIX))
        client = docker.from_env(timeout=_TIMEOUT_S, max_pool_size=_CONNECTIONS)
    except PermissionError:
        raise TestbedError(
            f"docker: this user may not talk to the engine at {address}; run 'sudo usermod -aG docker $USER' and log "
            "in again, or set DOCKER_HOST to an engine of your own"
        ) from None
    except (OSError, DockerException):
        raise NoEngine(
            f"docker: no engine answers at {address}; install and start one (apt-get install docker.io; systemctl "
            "start docker, or dockerd &), or set DOCKER_HOST"
        ) from None
    with told("docker"):
        kind = client.info().get("OSType")
    if kind != "linux":
        client.close()
        raise TestbedError(f"docker: the engine runs {kind} containers; switch it to Linux containers")
    return client


def check() -> list[tuple[str, str, str]]:
    """Return rows (what, state, remedy) for `ammeter doctor`; the remedy is empty where all is well."""
    try:
        client = connect()
    except TestbedError as error:
        return [("docker engine", "missing" if isinstance(error, NoEngine) else "not usable", str(error))]
    with contextlib.closing(client):
        try:
            with told("docker"):
                return rows(client.info(), os.environ.get("DOCKER_HOST", ""))
        except TestbedError as error:
            return [("docker engine", "not usable", str(error))]


def rows(info: Mapping[str, Any], address: str) -> list[tuple[str, str, str]]:
    """Return `check`'s rows for what an engine says of itself.

    Args:
        info: the engine's answer to "docker info".
        address: $DOCKER_HOST; "" = the usual socket.
    """
    version = f"{info['ServerVersion']}, {info.get('Driver')}, cgroup v{info.get('CgroupVersion', '1')}"
    kernel = "the engine's kernel lacks it; boot one with {}"
    needs = [
        ("docker cpu quota", "CpuCfsQuota", kernel.format("CONFIG_CFS_BANDWIDTH")),
        ("docker cpuset", "CPUSet", kernel.format("CONFIG_CPUSETS")),
        ("docker memory limit", "MemoryLimit", kernel.format("cgroup_enable=memory")),
        ("docker swap limit", "SwapLimit", "boot with swapaccount=1, or turn swap off (swapoff -a)"),
    ]
    found = [("docker engine", version, "")]
    if address and not address.startswith((_UNIX, f"http+{_UNIX}")):
        remedy = "links cannot be shaped from here; unset DOCKER_HOST, or run on the engine's machine"
        found.append(("docker engine's machine", "another", remedy))
    found += [(what, "works", "") if info.get(key) else (what, "missing", remedy) for what, key, remedy in needs]
    return found


def user(info: Mapping[str, Any]) -> str:
    """Return the "UID:GID" that containers run as: this user's, so that they may read what it may and no more."""
    if any("rootless" in str(option) for option in info.get("SecurityOptions") or ()):
        return "0:0"  # there, this user is root within
    return f"{os.getuid()}:{os.getgid()}"

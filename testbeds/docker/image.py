"""What is in a container: the host's own programs, read-only over an empty image, or an image that somebody built.

`host` needs no build and no registry, and runs the very files that the controller runs. A container sees of the host
what is mounted and no more; it can write to /tmp only, which is memory and counts as the container's.
"""

from __future__ import annotations

import io
import os
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from docker import DockerClient
from docker.errors import APIError, ImageNotFound
from docker.types import Mount

import harness
from harness.errors import TestbedError
from harness.transport.tls import AUTHORITY

HOST = "host"
"""What a testbed's `image` says when containers are to run the host's own programs."""

REPOSITORY = "ammeter-host"
LABEL = "ammeter"
_USERLAND = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
# What programs need of /etc: the loader's cache, who users are, the time zone, certificates, alternatives (BLAS).
# Not all of it: there are the host's secrets too, and the engine writes hosts, hostname and resolv.conf of its own.
_ETC = (
    "alternatives",
    "group",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "localtime",
    "nsswitch.conf",
    "passwd",
    "protocols",
    "services",
    "ssl/certs",
    "ssl/openssl.cnf",
)
_SCRATCH_MODE = 0o1777


def _source() -> Path:
    """Return the folder from which this very package is imported."""
    return Path(harness.__file__).absolute().parents[1]


def _present(paths: Sequence[Path]) -> list[Path]:
    """Return the paths that are there, and where they lead if they are links; each once."""
    there = [path for path in paths if path.exists()]
    return list(dict.fromkeys(found for path in there for found in (path, path.resolve())))


def _userland() -> list[Path]:
    # an empty image has no links: /bin and /lib64 are mounted for what they are on merged-/usr hosts, folders of /usr
    system = [Path(path) for path in _USERLAND if Path(path).exists()]
    settings = [Path("/etc") / name for name in _ETC if (Path("/etc") / name).exists()]
    prefixes = [Path(prefix) for prefix in (sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix)]
    return [*system, *settings, *_present([*prefixes, Path(sys.executable), _source()])]


def _scratch() -> list[Path]:
    """Folders that containers have of their own, in memory: where temporary files go, and the host keeps runs' keys."""
    return list(dict.fromkeys([Path("/tmp"), Path(tempfile.gettempdir()).absolute()]))


def _mounted(paths: Sequence[Path]) -> list[Mount]:
    """Return mounts that show each path, read-only, at its own place; what lies within another's is shown by that."""
    scratch = _scratch()
    shown: dict[Path, bool] = dict.fromkeys(scratch, False)  # does what lies beneath it show?
    mounts = []
    for path in sorted(set(paths), key=lambda path: len(path.parts)):
        if shown.get(path) is False or path == Path(path.anchor):
            raise TestbedError(f"{path} cannot be shown to containers as a whole; use a folder of your own within it")
        above = next((shown[parent] for parent in (path, *path.parents) if parent in shown), False)
        if not above:
            shown[path] = True
            mounts.append(Mount(str(path), str(path), type="bind", read_only=True))
    return [*(Mount(str(path), None, type="tmpfs", tmpfs_mode=_SCRATCH_MODE) for path in scratch), *mounts]


def _extra(paths: Sequence[Path]) -> list[Path]:
    missing = [str(path) for path in paths if not path.exists()]
    if missing:
        raise TestbedError(f"{missing[0]} is not there, so no container can be shown it; check the path")
    return _present([path.absolute() for path in paths])


def mounts(extra: Sequence[Path] = ()) -> list[Mount]:
    """Return the mounts of a container of the `host` image: the host's programs, this Python, and `extra`.

    Args:
        extra: further folders and files: data, the user's own methods.

    Raises:
        TestbedError: a path is missing, or is the whole of / or of the temporary folder.
    """
    return _mounted([*_userland(), *_extra(extra)])


def key_mounts(folder: Path, node: str) -> list[Mount]:
    """Return the mounts that show a node its own key and certificate, and the authority's; nobody else's.

    Args:
        folder: made by `harness.transport.tls.make`.

    Raises:
        TestbedError: the node has no key there.
    """
    folder = folder.absolute()
    files = [folder / AUTHORITY, folder / f"{node}.pem", folder / f"{node}.key"]
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        raise TestbedError(f"{node}: {missing[0]} is missing; make the run's keys for all its nodes")
    # an empty folder first, should a folder above be shown as a whole
    cover = Mount(str(folder), None, type="tmpfs", tmpfs_mode=0o755)
    return [cover, *(Mount(str(file), str(file), type="bind", read_only=True) for file in files)]


@dataclass(frozen=True)
class Image:
    """An image that is there, and how to run a worker from it.

    Attributes:
        reference: the engine's name of it.
        worker: what to put before a worker's arguments in a container's command.
        environment: variables that a container needs.
    """

    reference: str
    worker: tuple[str, ...]
    environment: Mapping[str, str]
    _host: bool

    def mounts(self, extra: Sequence[Path] = ()) -> list[Mount]:
        """Return a container's mounts: those of `mounts` for the host's image, `extra` alone for one that was built.

        Raises:
            TestbedError: as `mounts`.
        """
        return mounts(extra) if self._host else _mounted(_extra(extra))


def prepare(client: DockerClient, name: str = HOST) -> Image:
    """Return an image that containers can be made of; the host's is made when missing.

    Args:
        name: "host", or an image that was built (docker/Dockerfile is one; its entry point is the worker).

    Raises:
        TestbedError: the engine has no such image.
    """
    common = {"HOME": "/tmp", "LANG": "C.UTF-8", "PYTHONUNBUFFERED": "1"}
    if name != HOST:
        try:
            client.images.get(name)
        except ImageNotFound:
            raise TestbedError(
                f"image: the engine has no {name!r}; build it (docker build -t {name} -f docker/Dockerfile .), or say "
                f"'image: {HOST}'"
            ) from None
        return Image(name, (), common, False)
    reference = f"{REPOSITORY}:latest"
    try:
        client.images.get(reference)
    except ImageNotFound:
        _make_empty(client)
    folders = [str(Path(sys.executable).parent), "/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin"]
    environment = {
        **common,
        "PATH": os.pathsep.join(folders),
        "PYTHONPATH": str(_source()),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    return Image(reference, (sys.executable, "-m", "harness.worker"), environment, True)


def _make_empty(client: DockerClient) -> None:
    """Make an image with nothing in it: `tar -c --files-from /dev/null | docker import - ammeter-host`."""
    nothing = io.BytesIO()
    with tarfile.open(fileobj=nothing, mode="w"):
        pass
    try:
        client.api.import_image_from_data(
            nothing.getvalue(), repository=REPOSITORY, tag="latest", changes=[f"LABEL {LABEL}=1"]
        )
    except APIError as error:
        raise TestbedError(f"image: the engine does not make the empty image ({error.explanation})") from None

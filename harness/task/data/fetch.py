"""Download the published files of a data set to where its loader reads them, and check their checksums."""

from __future__ import annotations

import logging
import os
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pooch

from harness.errors import DataError
from harness.task.data import registry
from harness.task.data.originals import Originals

Progress = Callable[[str, int, int], None]
"""Called with the file's name, the bytes had so far and the bytes in all (0 if the server does not say)."""

_TIMEOUT_S = 60


class Entry(NamedTuple):
    """One line of the catalogue."""

    name: str
    title: str
    bundled: bool
    fetchable: bool
    licence: str


def catalogue() -> list[Entry]:
    """Return every data set, sorted by name; needs no files and no network."""
    entries = []
    for name in registry.names():
        module = registry.module(name)
        fetchable = isinstance(module.ORIGINALS, Originals)
        entries.append(Entry(name, module.INFO.title, module.INFO.bundled, fetchable, module.INFO.licence))
    return entries


def fetch(name: str, root: Path, progress: Progress | None = None, base_url: str | None = None) -> Path:
    """Download the files of data set `name` to its folder below `root` and return that folder.

    A file that is there and has the right checksum is not downloaded again; one whose download has the wrong
    checksum is not kept. `base_url` replaces the published place, for a mirror.

    Raises ConfigError if there is no such set; DataError if it has nothing to fetch, or a download or the
    unpacking fails.
    """
    module = registry.module(name)
    originals = module.ORIGINALS
    if originals is None:
        raise DataError(f"data set {name!r} comes with an installed package; there is nothing to fetch")
    if not isinstance(originals, Originals):
        raise DataError(f"data set {name!r} cannot be fetched: {originals.where}")
    folder = root / originals.folder
    place = (base_url or originals.base_url).rstrip("/") + "/"
    for file_name, checksum in originals.checksums.items():
        _download(place + file_name, folder / file_name, checksum, progress)
        if originals.unpack:
            _unpack(folder / file_name, originals.unpack)
    return folder


def _download(url: str, path: Path, checksum: str, progress: Progress | None) -> None:
    bar = _Bar(path.name, progress) if progress else False
    try:
        with _quiet():
            pooch.retrieve(
                url=url,
                known_hash=checksum,
                fname=path.name,
                path=path.parent,
                downloader=pooch.HTTPDownloader(progressbar=bar, timeout=_TIMEOUT_S),
            )
    except (ValueError, OSError) as error:  # pooch: a wrong checksum; requests: everything of the network
        raise DataError(
            f"fetching {url} to {path} failed: {error}; try again, or put the file there yourself"
        ) from error


def _unpack(archive: Path, members: tuple[str, ...]) -> None:
    """Write `members` of the tar file `archive` beside it, each complete or not at all."""
    try:
        with tarfile.open(archive) as tar:
            for member in members:
                stream = tar.extractfile(member)
                if stream is None:
                    raise KeyError(f"{member} is not a file")
                target = archive.parent / member
                target.parent.mkdir(parents=True, exist_ok=True)
                partial = target.with_name(target.name + ".partial")
                try:
                    with stream, partial.open("wb") as out:
                        shutil.copyfileobj(stream, out)
                    os.replace(partial, target)
                finally:
                    partial.unlink(missing_ok=True)
    except (KeyError, tarfile.TarError, zlib.error, EOFError, OSError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{archive}: unpacking failed ({reason}); check the free space, delete the file and fetch again"
        ) from error


class _Bar:
    """Pooch's idea of a progress bar, passed on to a `Progress`."""

    def __init__(self, file_name: str, progress: Progress) -> None:
        self.total = 0
        self._had = 0
        self._file_name = file_name
        self._progress = progress

    def update(self, more_bytes: int) -> None:
        self._had += more_bytes
        if self.total:
            self._had = min(self._had, self.total)  # pooch counts the last chunk as a whole one
        self._progress(self._file_name, self._had, self.total)

    def reset(self) -> None:
        self._had = 0

    def close(self) -> None:
        pass


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep pooch from writing to the terminal, which belongs to the command line."""
    logger = pooch.get_logger()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)

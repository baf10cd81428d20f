"""Writing to disk: a file whole or not at all, and the disk's refusals in one sentence."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from harness.errors import StoreError


@contextlib.contextmanager
def refusals(folder: Path) -> Iterator[None]:
    """Turn the disk's refusals into one sentence."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        remedy = {
            errno.ENOSPC: "the disk is full: free some space; complete runs are kept, start the same command again",
            errno.EDQUOT: "your quota is used up: free some space, then start the same command again",
            errno.EROFS: "the disk is read-only: give another folder with --runs",
            errno.EACCES: "you may not write there: give another folder with --runs",
            errno.EPERM: "you may not write there: give another folder with --runs",
            errno.ENOTDIR: "a file is in the way: give another folder with --runs",
            errno.EEXIST: "a file is in the way: give another folder with --runs",
        }.get(error.errno or 0)
        remedy = remedy or f"{error.strerror or error}: give another folder with --runs"
        raise StoreError(f"{error.filename or folder}: cannot be written; {remedy}") from error


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(path.name + ".part")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)

"""Where the published files of a data set come from, and what to tell a user who lacks them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Originals:
    """Published files that the data set's loader reads as they are.

    `checksums` maps each file under `base_url` to its SHA-256 in hex, or to "md5:HEX" where only that is
    published; the files go to `folder` below the data folder. `unpack` lists the members to take out of each
    file, a tar archive, into `folder`.
    """

    base_url: str
    folder: str
    checksums: Mapping[str, str]
    unpack: tuple[str, ...] = ()

    def remedy(self, name: str) -> str:
        """What to do when the files of data set `name` are missing or damaged."""
        return f"run `ammeter data fetch {name}`, or set AMMETER_DATA or --data DIR to the folder that has them"


@dataclass(frozen=True)
class NotFetchable:
    """No published files in the layout that the loader reads; `where` says how to come by them."""

    where: str

    def remedy(self, name: str) -> str:
        """What to do when the files of data set `name` are missing or damaged."""
        return f"set AMMETER_DATA or --data DIR to the folder that has them ({name}: {self.where})"

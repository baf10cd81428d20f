"""A text file as numbered lines, gzipped or not; every complaint names the file and the line."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from math import isfinite
from pathlib import Path

from harness.errors import ProfileError


def numbered(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (number from 1, text without its end) of every line that is not blank.

    Raises:
        ProfileError: the file cannot be read, or is not text.
    """
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line.rstrip("\r\n")
    except UnicodeDecodeError:
        raise ProfileError(f"{path}: is not UTF-8 text; is the format right?") from None
    except (EOFError, zlib.error) as error:
        raise ProfileError(f"{path}: is no whole gzip file ({error}); fetch it again") from None
    except OSError as error:
        raise ProfileError(f"{path}: cannot be read: {error.strerror or error}; check the path") from None


def number(text: str, what: str, place: str) -> float:
    """Return a finite number of at least 0.

    Args:
        what: which figure, for the error.
        place: "file:line".

    Raises:
        ProfileError: it is none.
    """
    try:
        value = float(text)
    except ValueError:
        raise ProfileError(f"{place}: {what} {text.strip()!r} is not a number") from None
    if not isfinite(value) or value < 0:
        raise ProfileError(f"{place}: {what} {text.strip()} is negative or not finite; mend or cut the file there")
    return value

"""Read the files of a data set and say precisely what is wrong with them.

Every function raises DataError naming the file, what was expected, what was found and the remedy.
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.errors import DataError


def folder_with(root: Path | None, folders: Sequence[str], files: Sequence[str], remedy: str) -> Path:
    """Return the first of `folders` below `root` that holds all of `files`."""
    if root is None:
        raise DataError(f"no data folder given: {remedy}")
    candidates = [root / folder for folder in folders]
    for candidate in candidates:
        if all((candidate / name).is_file() for name in files):
            return candidate
    lacking = []
    for candidate in candidates:
        missing = [name for name in files if not (candidate / name).is_file()]
        lacking.append(f"{candidate} lacks {', '.join(missing)}")
    raise DataError(f"data files missing: {'; '.join(lacking)}: {remedy}")


def read_bytes(path: Path, remedy: str) -> bytes:
    """Return the content of `path`."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}): {remedy}") from error


def read_gzip(path: Path, remedy: str) -> bytes:
    """Return the decompressed content of the gzip file `path`."""
    data = read_bytes(path, remedy)
    try:
        return gzip.decompress(data)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{path}: expected a whole gzip file, found {len(data)} bytes that do not decompress ({error}): {remedy}"
        ) from error


def read_idx(path: Path, ndim: int, remedy: str) -> npt.NDArray[np.uint8]:
    """Return the uint8 array of `ndim` dimensions in the gzipped IDX file `path`.

    Format: two zero bytes, type 0x08 (uint8), number of dimensions, each size as big-endian 32 bits, values.
    """
    data = read_gzip(path, remedy)
    header_bytes = 4 + 4 * ndim
    magic = bytes((0, 0, 0x08, ndim))
    if data[:4] != magic:
        raise DataError(
            f"{path}: expected magic number {int.from_bytes(magic, 'big')} (IDX, uint8, {ndim} dimensions), "
            f"found {int.from_bytes(data[:4], 'big')}: {remedy}"
        )
    if len(data) < header_bytes:
        raise DataError(f"{path}: expected an IDX header of {header_bytes} bytes, found {len(data)} bytes: {remedy}")
    shape = tuple(int.from_bytes(data[4 + 4 * k : 8 + 4 * k], "big") for k in range(ndim))
    expected_bytes = header_bytes + math.prod(shape)
    if len(data) != expected_bytes:
        raise DataError(
            f"{path}: the header says shape {shape}, so {expected_bytes} bytes, found {len(data)}: {remedy}"
        )
    return np.frombuffer(data, dtype=np.uint8, offset=header_bytes).reshape(shape).copy()


def read_npz(
    path: Path, arrays: Mapping[str, tuple[type[np.generic], int]], remedy: str
) -> dict[str, npt.NDArray[Any]]:
    """Return the named arrays of the .npz file `path`; `arrays` maps each name to its dtype and ndim."""
    found: dict[str, npt.NDArray[Any]] = {}
    try:
        with path.open("rb") as file:  # np.load leaves a file it opened itself open when it fails
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("a single array, not an archive")
            with archive:
                present = sorted(archive.files)
                for name in arrays:
                    if name in archive.files:
                        found[name] = archive[name]
    except Exception as error:  # zip, zlib and numpy each raise their own kinds for damaged bytes
        raise DataError(f"{path}: expected a NumPy .npz archive, found a damaged one ({error}): {remedy}") from error
    for name, (dtype, ndim) in arrays.items():
        if name not in found:
            raise DataError(
                f"{path}: expected arrays {', '.join(arrays)}, found {', '.join(present) or 'none'}: {remedy}"
            )
        array = found[name]
        if array.dtype != dtype or array.ndim != ndim:
            raise DataError(
                f"{path}: expected {name!r} as {np.dtype(dtype)} with {ndim} dimension(s), "
                f"found {array.dtype} with shape {array.shape}: {remedy}"
            )
    return found


def read_lines(path: Path, remedy: str) -> list[str]:
    """Return the lines of the UTF-8 text file `path`, split at line feeds only, without line ends."""
    data = read_bytes(path, remedy)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}, line {line}: expected UTF-8 text, found byte 0x{data[error.start]:02x} ({error.reason}): {remedy}"
        ) from error
    lines = [line.rstrip("\r") for line in text.split("\n")]
    if lines[-1] == "":
        lines.pop()
    return lines


def check_labels(path: Path, labels: npt.NDArray[Any], num_classes: int, remedy: str) -> None:
    """Check that `labels` [N] lie in 0..num_classes-1."""
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(wrong):
        raise DataError(
            f"{path}: expected labels from 0 to {num_classes - 1}, found {labels[wrong[0]]} at sample "
            f"{wrong[0]} ({len(wrong)} such): {remedy}"
        )

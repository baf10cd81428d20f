"""Where the tests of the data sets find real files, and how they make small ones."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

REPOSITORY = Path(__file__).parents[4]


@pytest.fixture(scope="session")
def real_root() -> Callable[[str], Path]:
    """The data folder, if it has the named folder; else the test is skipped."""

    def root(folder: str) -> Path:
        given = os.environ.get("AMMETER_DATA")
        place = Path(given) if given else REPOSITORY.parent / "shared" / "data"
        if not (place / folder).exists():
            pytest.skip(f"no real data: {place / folder} does not exist; set AMMETER_DATA")
        return place

    return root


@pytest.fixture(scope="session")
def real_cifar10(real_root: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with CIFAR-10's binary version, unpacked from mosaics where that is what there is."""
    root = real_root("cifar10")
    if (root / "cifar10" / "cifar-10-batches-bin").exists():
        return root
    script = root / "unpack_cifar10.py"
    if not script.exists():
        pytest.skip(f"no CIFAR-10 in the binary version below {root}, and nothing to unpack it with")
    unpacked = tmp_path_factory.mktemp("cifar10")
    subprocess.run([sys.executable, str(script), str(unpacked)], check=True, capture_output=True)
    return unpacked


@pytest.fixture
def write_idx() -> Callable[..., None]:
    """Write a gzipped IDX file, with its magic number and header overridable."""

    def write(path: Path, array: np.ndarray, magic: int | None = None, shape: tuple[int, ...] = ()) -> None:
        magic = 0x0800 + array.ndim if magic is None else magic
        header = magic.to_bytes(4, "big") + b"".join(n.to_bytes(4, "big") for n in shape or array.shape)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes(), mtime=0))

    return write

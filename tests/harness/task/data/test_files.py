from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.errors import DataError
from harness.task.data import files

REMEDY = "get it again"
WriteIdx = Callable[..., None]


def test_folder_with_takes_the_first_complete_folder(tmp_path: Path) -> None:
    for folder, names in (("a", ["x"]), ("b", ["x", "y"])):
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / name).touch()
    assert files.folder_with(tmp_path, ("a", "b"), ("x", "y"), REMEDY) == tmp_path / "b"
    with pytest.raises(DataError, match=r"a lacks y, z; .*b lacks z: get it again"):
        files.folder_with(tmp_path, ("a", "b"), ("x", "y", "z"), REMEDY)


def test_read_bytes_names_a_file_it_cannot_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none: cannot be read \(No such file.*get it again"):
        files.read_bytes(tmp_path / "none", REMEDY)


def test_read_idx_returns_what_was_written(tmp_path: Path, write_idx: WriteIdx) -> None:
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    write_idx(tmp_path / "a.gz", array)
    found = files.read_idx(tmp_path / "a.gz", 3, REMEDY)
    assert found.flags.writeable
    np.testing.assert_array_equal(found, array)


def test_read_idx_refuses_another_magic_number(tmp_path: Path, write_idx: WriteIdx) -> None:
    write_idx(tmp_path / "a.gz", np.zeros((2, 3, 4)))
    with pytest.raises(DataError, match=r"a.gz: expected magic number 2049 .*found 2051: get it again"):
        files.read_idx(tmp_path / "a.gz", 1, REMEDY)


@pytest.mark.parametrize("shape", [(2, 3, 5), (2, 3, 3), (2**32 - 1, 2**32 - 1, 2**32 - 1)])
def test_read_idx_refuses_a_size_that_is_not_the_headers(
    tmp_path: Path, write_idx: WriteIdx, shape: tuple[int, ...]
) -> None:
    write_idx(tmp_path / "a.gz", np.zeros((2, 3, 4)), shape=shape)
    with pytest.raises(DataError, match=r"header says shape .* bytes, found 40: get it again"):
        files.read_idx(tmp_path / "a.gz", 3, REMEDY)


def test_read_idx_refuses_half_a_header(tmp_path: Path) -> None:
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"\x00\x00\x08\x03\x00"))
    with pytest.raises(DataError, match="expected an IDX header of 16 bytes, found 5 bytes"):
        files.read_idx(tmp_path / "a.gz", 3, REMEDY)


@pytest.mark.parametrize("damage", ["truncated", "middle", "not gzip", "empty"])
def test_damaged_gzip_is_a_data_error(tmp_path: Path, damage: str) -> None:
    whole = gzip.compress(np.random.default_rng(0).bytes(5000))
    middle = whole[:100] + bytes(byte ^ 0xFF for byte in whole[100:200]) + whole[200:]
    data = {"truncated": whole[:2000], "middle": middle, "not gzip": b"<html>", "empty": b""}[damage]
    (tmp_path / "a.gz").write_bytes(data)
    with pytest.raises(DataError, match=r"a.gz: expected.*get it again"):
        files.read_idx(tmp_path / "a.gz", 1, REMEDY)


def test_read_npz_returns_the_named_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.arange(3, dtype=np.int16), other=np.zeros(1))
    found = files.read_npz(tmp_path / "a.npz", {"x": (np.int16, 1)}, REMEDY)
    assert list(found) == ["x"]
    assert found["x"].tolist() == [0, 1, 2]


def test_read_npz_names_a_missing_or_wrong_array(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.arange(3, dtype=np.int16))
    with pytest.raises(DataError, match=r"a.npz: expected arrays x, y, found x: get it again"):
        files.read_npz(tmp_path / "a.npz", {"x": (np.int16, 1), "y": (np.int16, 1)}, REMEDY)
    with pytest.raises(DataError, match=r"expected 'x' as int32 with 1 .* found int16 with shape \(3,\)"):
        files.read_npz(tmp_path / "a.npz", {"x": (np.int32, 1)}, REMEDY)
    with pytest.raises(DataError, match="'x' as int16 with 2"):
        files.read_npz(tmp_path / "a.npz", {"x": (np.int16, 2)}, REMEDY)


def test_read_npz_never_unpickles(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.array([{}], dtype=object))
    with pytest.raises(DataError, match="damaged one"):
        files.read_npz(tmp_path / "a.npz", {"x": (np.int16, 1)}, REMEDY)


def test_read_npz_refuses_a_single_array_and_an_absent_file(tmp_path: Path) -> None:
    with (tmp_path / "a.npz").open("wb") as out:
        np.save(out, np.zeros(3))
    for name in ("a.npz", "none.npz"):
        with pytest.raises(DataError, match=f"{name}: expected a NumPy .npz archive"):
            files.read_npz(tmp_path / name, {"x": (np.int16, 1)}, REMEDY)


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(where=st.integers(0, 10_000), value=st.integers(1, 255), cut=st.none() | st.integers(0, 10_000))
def test_a_damaged_npz_is_read_or_refused_but_never_crashes(
    tmp_path: Path, where: int, value: int, cut: int | None
) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, x=np.arange(100, dtype=np.int16), y=np.zeros(3, dtype=np.uint8))
    data = bytearray(path.read_bytes())
    data[where % len(data)] ^= value
    path.write_bytes(data if cut is None else data[: cut % len(data)])
    try:
        found = files.read_npz(path, {"x": (np.int16, 1), "y": (np.uint8, 1)}, REMEDY)
    except DataError:
        return
    assert found["x"].dtype == np.int16


def test_read_lines_splits_at_line_feeds_only(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes("é \x85 x\r\ny\n\nz\n".encode())
    assert files.read_lines(tmp_path / "a", REMEDY) == ["é \x85 x", "y", "", "z"]


def test_read_lines_names_the_line_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"one\ntwo\nthr\xe9e\n")
    with pytest.raises(DataError, match=r"a, line 3: expected UTF-8 text, found byte 0xe9 .*get it again"):
        files.read_lines(tmp_path / "a", REMEDY)


def test_check_labels_names_the_first_wrong_sample() -> None:
    files.check_labels(Path("f"), np.array([0, 9], dtype=np.uint8), 10, REMEDY)
    with pytest.raises(DataError, match=r"f: expected labels from 0 to 9, found 10 at sample 1 \(2 such\)"):
        files.check_labels(Path("f"), np.array([0, 10, 11], dtype=np.uint8), 10, REMEDY)

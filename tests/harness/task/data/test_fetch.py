from __future__ import annotations

import functools
import hashlib
import http.server
import io
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.errors import ConfigError, DataError
from harness.task.data import cifar10, fashion_mnist, sst2
from harness.task.data import fetch as fetching
from harness.task.data.originals import Originals

TEXT = b"1 fine\n" * 1000


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str]]:
    """A folder and the address it is served at."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    folder = tmp_path / "site"
    folder.mkdir()
    with http.server.HTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()
        thread.join()


@pytest.fixture
def one_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """SST-2 made of a single file, TEXT."""
    originals = Originals("http://127.0.0.1:9/", "sst2", {"a.txt": hashlib.sha256(TEXT).hexdigest()})
    monkeypatch.setattr(sst2, "ORIGINALS", originals)


def test_catalogue_lists_every_set() -> None:
    listed = {entry.name: entry for entry in fetching.catalogue()}
    assert list(listed) == ["ag_news", "cifar10", "digits", "fashion_mnist", "sst2", "uci_har"]
    assert [name for name, entry in listed.items() if entry.bundled] == ["digits"]
    assert [name for name, entry in listed.items() if entry.fetchable] == ["cifar10", "fashion_mnist", "sst2"]
    assert listed["fashion_mnist"].licence == "MIT"


@pytest.mark.usefixtures("one_file")
def test_fetch_stores_the_file_and_reports_progress(site: tuple[Path, str], tmp_path: Path) -> None:
    folder, url = site
    (folder / "a.txt").write_bytes(TEXT)
    seen: list[tuple[str, int, int]] = []
    stored = fetching.fetch("sst2", tmp_path / "data", lambda *report: seen.append(report), base_url=url)
    assert stored == tmp_path / "data" / "sst2"
    assert (stored / "a.txt").read_bytes() == TEXT
    assert [path.name for path in stored.iterdir()] == ["a.txt"]
    assert seen[-1] == ("a.txt", len(TEXT), len(TEXT))


@pytest.mark.usefixtures("one_file")
def test_a_file_that_is_there_is_not_fetched_again(site: tuple[Path, str], tmp_path: Path) -> None:
    folder, url = site
    (folder / "a.txt").write_bytes(TEXT)
    fetching.fetch("sst2", tmp_path, base_url=url)
    (folder / "a.txt").unlink()
    fetching.fetch("sst2", tmp_path, base_url=url)


@pytest.mark.usefixtures("one_file")
def test_a_damaged_file_is_replaced(site: tuple[Path, str], tmp_path: Path) -> None:
    folder, url = site
    (folder / "a.txt").write_bytes(TEXT)
    (tmp_path / "sst2").mkdir()
    (tmp_path / "sst2" / "a.txt").write_bytes(TEXT[:10])
    fetching.fetch("sst2", tmp_path, base_url=url)
    assert (tmp_path / "sst2" / "a.txt").read_bytes() == TEXT


@pytest.mark.usefixtures("one_file")
def test_a_wrong_checksum_leaves_nothing_in_place(
    site: tuple[Path, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, url = site
    (folder / "a.txt").write_bytes(TEXT[:-1])
    with pytest.raises(DataError, match=r"fetching http.*a.txt to .*failed: .*hash"):
        fetching.fetch("sst2", tmp_path, base_url=url)
    assert list((tmp_path / "sst2").iterdir()) == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("one_file")
def test_a_missing_page_and_a_dead_server_are_data_errors(site: tuple[Path, str], tmp_path: Path) -> None:
    _, url = site
    with pytest.raises(DataError, match=r"failed: 404 .*try again"):
        fetching.fetch("sst2", tmp_path, base_url=url)
    with pytest.raises(DataError, match=r"fetching http://127.0.0.1:9/a.txt to .*failed"):
        fetching.fetch("sst2", tmp_path)
    assert list((tmp_path / "sst2").iterdir()) == []


@pytest.mark.usefixtures("one_file")
def test_a_root_that_is_a_file_is_a_data_error(site: tuple[Path, str], tmp_path: Path) -> None:
    folder, url = site
    (folder / "a.txt").write_bytes(TEXT)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="failed"):
        fetching.fetch("sst2", tmp_path / "file", base_url=url)


def archive(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def serve_cifar10(folder: Path, data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "cifar-10-binary.tar.gz").write_bytes(data)
    originals = Originals(
        base_url="http://127.0.0.1:9/",
        folder="cifar10",
        checksums={"cifar-10-binary.tar.gz": "md5:" + hashlib.md5(data).hexdigest()},
        unpack=cifar10.ORIGINALS.unpack,
    )
    monkeypatch.setattr(cifar10, "ORIGINALS", originals)


def test_an_archive_is_unpacked_where_the_loader_looks(
    site: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, url = site
    batches = {name: name.encode() for name in cifar10.ORIGINALS.unpack}
    serve_cifar10(folder, archive({**batches, "../outside": b"x", "readme.html": b"x"}), monkeypatch)
    root = tmp_path / "data"
    fetching.fetch("cifar10", root, base_url=url)
    for name, data in batches.items():
        assert (root / "cifar10" / name).read_bytes() == data
    assert len(list((root / "cifar10" / "cifar-10-batches-bin").iterdir())) == 6
    assert sorted(path.name for path in (root / "cifar10").iterdir()) == [
        "cifar-10-batches-bin",
        "cifar-10-binary.tar.gz",
    ]
    with pytest.raises(DataError, match=r"data_batch_1.bin: expected 10000 records .* found 37: run `ammeter"):
        cifar10.load(root)


@pytest.mark.parametrize("damage", ["member missing", "member is a folder", "truncated", "not an archive"])
def test_an_archive_that_does_not_unpack_is_a_data_error(
    site: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    folder, url = site
    names = cifar10.ORIGINALS.unpack
    whole = archive({name: hashlib.sha512(name.encode()).digest() * 999 for name in names})
    if damage == "member missing":
        whole = archive({names[0]: b"x"})
    elif damage == "member is a folder":
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
            entry = tarfile.TarInfo(names[0])
            entry.type = tarfile.DIRTYPE
            tar.addfile(entry)
        whole = buffer.getvalue()
    elif damage == "truncated":
        whole = whole[: len(whole) // 2]
    else:
        whole = b"<html>"
    serve_cifar10(folder, whole, monkeypatch)
    with pytest.raises(DataError, match=r"cifar-10-binary.tar.gz: unpacking failed .*fetch again"):
        fetching.fetch("cifar10", tmp_path, base_url=url)
    assert not list(tmp_path.rglob("*.partial"))


def test_sets_without_published_files_say_where_to_look(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'digits' comes with an installed package; there is nothing to fetch"):
        fetching.fetch("digits", tmp_path)
    with pytest.raises(DataError, match=r"'ag_news' cannot be fetched: .*AG_corpus"):
        fetching.fetch("ag_news", tmp_path)
    with pytest.raises(DataError, match=r"'uci_har' cannot be fetched: .*archive.ics.uci.edu"):
        fetching.fetch("uci_har", tmp_path)
    with pytest.raises(ConfigError, match="did you mean 'sst2'"):
        fetching.fetch("sst", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.data
@pytest.mark.parametrize("originals", [sst2.ORIGINALS, fashion_mnist.ORIGINALS], ids=lambda o: o.folder)
def test_checksums_are_those_of_the_real_files(real_root: Callable[[str], Path], originals: Originals) -> None:
    folder = real_root(originals.folder) / originals.folder
    for name, checksum in originals.checksums.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == checksum


@pytest.mark.data
def test_a_fetched_set_loads(site: tuple[Path, str], tmp_path: Path, real_root: Callable[[str], Path]) -> None:
    folder, url = site
    for name in sst2.ORIGINALS.checksums:
        (folder / name).write_bytes((real_root("sst2") / "sst2" / name).read_bytes())
    fetching.fetch("sst2", tmp_path / "data", base_url=url)
    assert sst2.load(tmp_path / "data").info.train_samples == 6920

"""What a container can see and write."""

from __future__ import annotations

import asyncio
import contextlib
import io
import sys
import tarfile
import tempfile
from pathlib import Path

import pytest
from docker_host import engine_or_skip, opened, output, python, reading, run_id

from harness.errors import TestbedError
from harness.transport import tls
from testbeds.docker import image
from testbeds.docker.access import connect

ROOT = Path(__file__).parents[3]


def shown(extra: list[Path]) -> dict[str, str]:
    """Where each mount is, and of which type."""
    return {mount["Target"]: mount["Type"] for mount in image.mounts(extra)}


def test_mounts_are_read_only_and_each_at_its_own_place() -> None:
    mounts = image.mounts()
    binds = [mount for mount in mounts if mount["Type"] == "bind"]
    assert binds
    assert all(mount["ReadOnly"] and mount["Source"] == mount["Target"] for mount in binds)
    assert {mount["Target"] for mount in mounts if mount["Type"] == "tmpfs"} == {"/tmp", tempfile.gettempdir()}
    assert "/usr" in {mount["Target"] for mount in binds}
    assert not {"/", "/etc", "/etc/shadow", "/proc"} & {mount["Target"] for mount in binds}


def test_a_folder_within_one_that_is_shown_is_not_mounted_again(tmp_path: Path) -> None:
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    assert str(inner) not in shown([tmp_path / "a", inner])
    assert shown([inner])[str(inner)] == "bind"  # /tmp is above it, and is the container's own


def test_a_folder_within_the_containers_own_is_mounted_though_one_further_above_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    data = scratch / "data"
    data.mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    found = shown([tmp_path, data])
    assert (found[str(tmp_path)], found[str(scratch)], found[str(data)]) == ("bind", "tmpfs", "bind")


def test_a_link_is_shown_with_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "home").mkdir()
    link = tmp_path / "home" / "data"
    link.symlink_to(tmp_path / "real")
    assert {str(tmp_path / "home"), str(tmp_path / "real")} <= set(shown([tmp_path / "home", link]))


def test_what_cannot_be_shown_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TestbedError, match=r"missing is not there.*check the path"):
        image.mounts([tmp_path / "missing"])
    for whole in (Path("/"), Path(tempfile.gettempdir())):
        with pytest.raises(TestbedError, match=f"^{whole} cannot be shown to containers as a whole"):
            image.mounts([whole])


def test_a_node_without_a_key_is_named(tmp_path: Path) -> None:
    tls.make(tmp_path / "keys", ["device-0"])
    with pytest.raises(TestbedError, match=r"device-1: .*device-1\.pem is missing"):
        image.key_mounts(tmp_path / "keys", "device-1")


def test_the_host_image_runs_this_python_with_torch_and_writes_to_memory_only() -> None:
    engine_or_skip()
    script = """
import sys, torch, harness.worker as w, pathlib
print(sys.version_info[:3], torch.__version__, torch.ones(3).sum().item(), pathlib.Path(w.__file__).parents[2])
for folder in ("/tmp", "/", "/usr", sys.prefix, "/etc", "/var"):
    try: (pathlib.Path(folder) / "mine").write_text("x")
    except OSError: continue
    print("wrote", folder)
"""

    async def main() -> None:
        import torch

        async with opened() as engine:
            await python(engine, "device-0", script)
            lines = (await output(engine, "device-0")).splitlines()
            version = f"{sys.version_info[:3]} {torch.__version__} 3.0 {Path(image.harness.__file__).parents[1]}"
            assert lines == [version, "wrote /tmp"]

    asyncio.run(main())


def test_a_node_sees_its_own_key_only_though_the_folder_above_is_shown(tmp_path: Path) -> None:
    engine_or_skip()
    keys = tmp_path / "keys"
    nodes = ["device-0", "device-1", "server"]
    tls.make(keys, nodes)
    (tmp_path / "data.csv").write_text("1")
    files = [f"{node}.{kind}" for node in nodes for kind in ("pem", "key")]

    async def main() -> None:
        async with opened() as engine:
            for node in nodes:
                script = reading(keys, files) + reading(keys.parent, ["data.csv"])
                script += f"from harness.transport import tls; tls.client_context(folder, {node!r})\n".replace(
                    "folder", f"pathlib.Path({str(keys)!r})"
                )
                await python(engine, node, script, mounts=engine.image.mounts([tmp_path]), keys=keys)
            for node in nodes:
                lines = (await output(engine, node)).splitlines()
                assert lines[0] == str(["authority.pem", f"{node}.key", f"{node}.pem"])
                said = dict(line.split() for line in lines[1:] if not line.startswith("["))
                own = {f"{node}.pem", f"{node}.key"}
                assert said == {name: "read" if name in own else "FileNotFoundError" for name in files} | {
                    "data.csv": "read"
                }

    asyncio.run(main())


def test_the_host_image_is_made_when_missing_and_kept() -> None:
    engine_or_skip()
    with contextlib.closing(connect()) as client:
        first = image.prepare(client)
        made = client.images.get(first.reference)
        assert made.labels == {image.LABEL: "1"}
        assert made.attrs["Size"] == 0
        assert image.prepare(client) == first
        assert client.images.get(first.reference).id == made.id
        assert first.worker == (sys.executable, "-m", "harness.worker")


def test_of_a_built_image_only_what_is_asked_for_is_mounted(tmp_path: Path) -> None:
    engine_or_skip()
    built = f"ammeter-{run_id()}"
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("something"))
    with contextlib.closing(connect()) as client:
        with pytest.raises(TestbedError, match=f"image: the engine has no '{built}'; build it"):
            image.prepare(client, built)
        client.api.import_image_from_data(packed.getvalue(), repository=built, tag="latest")
        try:
            found = image.prepare(client, built)
            assert (found.reference, found.worker) == (built, ())
            assert [mount["Target"] for mount in found.mounts([tmp_path]) if mount["Type"] == "bind"] == [str(tmp_path)]
            assert "PYTHONPATH" not in found.environment
        finally:
            client.images.remove(built)


def test_the_dockerfile_copies_every_package_and_what_installing_them_needs() -> None:
    lines = (ROOT / "docker" / "Dockerfile").read_text().splitlines()
    copied = {word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]}
    assert all((ROOT / name).exists() for name in copied)
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py") if path.parent.name != "tests"}
    assert packages | {"pyproject.toml", "constraints.txt", "README.md"} <= copied
    assert lines[-1] == 'ENTRYPOINT ["python", "-m", "harness.worker"]'

"""`python -m harness.worker`: its arguments, and a controller that is not there."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from harness.controller.settings import Settings
from harness.transport import tls
from harness.worker import __main__ as module
from harness.worker.session import CONTROLLER

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "keys"
    tls.make(folder, [CONTROLLER, "device-0"])
    return folder


@pytest.fixture(autouse=True)
def _same_process_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_call_process", lambda _: None)
    monkeypatch.setattr(module, "JOIN_S", 0.3)


def nobody() -> str:
    """Return an address at which nobody listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{bound.getsockname()[1]}"


def test_without_a_controller_it_ends_with_status_2_and_a_sentence(keys: Path, capsys: pytest.CaptureFixture[str]):
    address = nobody()
    assert module.main(["--name", "device-0", "--controller", address, "--keys", str(keys)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("device-0: ")
    assert "controller" in said
    assert address in said
    assert said.count("\n") == 1


def test_a_controller_that_says_nothing_is_given_up(keys: Path, capsys: pytest.CaptureFixture[str]):
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        address = f"127.0.0.1:{deaf.getsockname()[1]}"
        assert module.main(["--name", "device-0", "--controller", address, "--keys", str(keys)]) == 2
    assert capsys.readouterr().err.startswith("device-0: ")


def test_without_its_keys_it_ends_with_status_2_and_names_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert module.main(["--name", "device-0", "--controller", nobody(), "--keys", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert str(tmp_path) in said
    assert "Traceback" not in said


@pytest.mark.parametrize("address", ["4000", ":4000", "host:", "host:port", "host:0", "host:70000", "host:-1"])
def test_an_address_that_is_none_is_refused(address: str, keys: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as left:
        module.main(["--name", "device-0", f"--controller={address}", "--keys", str(keys)])
    assert left.value.code == 2
    assert f"{address!r} is no HOST:PORT" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["--name", "--controller", "--keys"])
def test_what_it_must_know_must_be_given(missing: str, capsys: pytest.CaptureFixture[str]):
    given = {"--name": "device-0", "--controller": "127.0.0.1:4000", "--keys": "."}
    del given[missing]
    with pytest.raises(SystemExit) as left:
        module.main([word for pair in given.items() for word in pair])
    assert left.value.code == 2
    assert missing in capsys.readouterr().err


@pytest.mark.slow
def test_it_is_a_program(keys: Path):
    words = [
        sys.executable,
        "-m",
        "harness.worker",
        "--name",
        "device-0",
        "--controller",
        "nowhere",
        "--keys",
        str(keys),
    ]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert "'nowhere' is no HOST:PORT" in done.stderr


def test_a_worker_waits_for_its_controller_no_longer_than_the_controller_for_it():
    assert Settings(threads={}).start_s >= 60.0

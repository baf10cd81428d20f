"""What a run says of its host: plain data that does not need git, /proc or any particular machine."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch

from results import environment


def test_host_and_versions_are_plain_data() -> None:
    found = environment.describe()
    assert json.loads(json.dumps(found)) == found
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert torch.__version__.startswith(found["packages"]["torch"].partition("+")[0])
    assert found["cores"] >= 1
    assert found["memory_bytes"] > 2**28
    assert len(found["load"]) == 3
    assert found["processor"]


def test_the_time_has_a_zone() -> None:
    assert datetime.fromisoformat(environment.describe()["time"]).utcoffset() is not None


@pytest.mark.parametrize("error", [FileNotFoundError("git"), subprocess.TimeoutExpired("git", 10)])
def test_without_git_there_is_no_commit(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(environment.subprocess, "run", refuse)
    assert environment.describe()["commit"] is None


def test_outside_a_checkout_there_is_no_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "environment.py"))
    assert environment.describe()["commit"] is None


def test_a_changed_checkout_is_marked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A commit of our own, then an edit: the same commit with a +."""

    def git(*words: str) -> None:
        who = ("-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false")
        subprocess.run(["git", *who, *words], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "-m", "first")
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "environment.py"))
    clean = environment.describe()["commit"]
    (tmp_path / "file").write_text("two")
    assert len(clean) == 12
    assert environment.describe()["commit"] == clean + "+"


def test_without_proc_the_processor_has_a_name_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> str:
        raise FileNotFoundError("/proc/cpuinfo")

    monkeypatch.setattr(environment.Path, "read_text", refuse)
    assert environment.describe()["processor"]

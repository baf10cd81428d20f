"""testbeds/_fleet/timings.py: written and read again, and everything else refused by place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.errors import ConfigError
from testbeds._fleet.timings import Timing, read, write

DIGEST = "0123456789abcdef"


def test_what_is_written_is_read(tmp_path: Path):
    given = {
        "device-0": {DIGEST: Timing("step", 0.1 + 0.2, 40), DIGEST[::-1]: Timing("infer", 0.0, 1)},
        "server": {},
    }
    write(tmp_path / "t.json", given)
    assert read(tmp_path / "t.json") == given


def file(seconds: Any = 1.5, count: Any = 3, digest: str = DIGEST, **more: Any) -> str:
    timing = {"name": "step", "seconds": seconds, "count": count}
    return json.dumps({"format": 1, "nodes": {"server": {digest: timing}}, **more})


def test_the_format_by_hand(tmp_path: Path):
    (tmp_path / "t.json").write_text(file())
    assert read(tmp_path / "t.json") == {"server": {DIGEST: Timing("step", 1.5, 3)}}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "invalid JSON"),
        ('{"format": 1, "nodes": {}', "invalid JSON"),
        ("[]", "input should be an object"),
        ('{"format": 1}', "nodes: field required"),
        ('{"format": 1, "nodes": {"server": {"%s": 3}}}' % DIGEST, f"nodes.server.{DIGEST}: input should be"),  # noqa: UP031
        (file(format=2), "format: input should be 1"),
        (file(more=2), "more: extra inputs are not permitted"),
        (file(digest="step"), "nodes.server.step: string should match"),
        (file(seconds=-1e-9), rf"nodes.server.{DIGEST}.seconds: .* greater than or equal to 0"),
        (file(seconds=float("nan")), rf"nodes.server.{DIGEST}.seconds: .* finite"),
        (file(seconds=float("inf")), rf"nodes.server.{DIGEST}.seconds: .* finite"),
        (file(seconds="1"), rf"nodes.server.{DIGEST}.seconds: .* number"),
        (file(seconds=True), rf"nodes.server.{DIGEST}.seconds: .* number"),
        (file(count=0), rf"nodes.server.{DIGEST}.count: .* greater than or equal to 1"),
        (file(count=1.5), rf"nodes.server.{DIGEST}.count: .* integer"),
    ],
)
def test_what_is_no_such_file_is_refused_by_place(tmp_path: Path, text: str, said: str):
    path = tmp_path / "t.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=rf"t\.json: {said}.*; measured times are JSON of format 1"):
        read(path)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read(tmp_path / "t.json")

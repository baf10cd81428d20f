"""ammeter fit: its tables, the lines it gives for a profile, and what it says to what makes no sense."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import yaml

from harness.cli import main as command
from profiles import library

Ammeter = Callable[..., tuple[int, str, str]]

MINE = """
title: mine
source: timed here
input: [3, 32, 32]
classes: 10
batch: 4
boards:
  rpi-5-8g:
    fit: [conv_flops_per_s, memory_bytes_per_s]
    steps:
      vgg-5: {step_s: 0.02, frozen_s: 0.01}
      resnet-18: {step_s: 0.9, infer_s: {1: 0.08, 4: 0.3}}
      vgg-11: {step_s: 0.5}
"""


@pytest.fixture
def ammeter(capsys: pytest.CaptureFixture[str]) -> Ammeter:
    """Run `ammeter fit ...`; return exit code, stdout, stderr."""

    def go(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = command.main(["fit", *arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return go


@pytest.fixture
def mine(tmp_path: Path) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(MINE)
    return str(path)


def test_people_get_errors_means_and_rates(ammeter: Ammeter, mine: str) -> None:
    code, out, err = ammeter(mine)
    assert (code, err) == (0, "")
    assert "rpi-5-8g: error of the predicted step, %" in out
    assert "mean absolute error: fitted " in out
    assert "rates: conv_flops_per_s " in out
    assert "memory_bytes_per_s " in out
    assert "unseen" not in out.splitlines()[-3]


def test_a_program_gets_a_row_per_time(ammeter: Ammeter, mine: str) -> None:
    code, out, _ = ammeter(mine, "--format", "csv")
    assert code == 0
    table = pd.read_csv(io.StringIO(out))
    assert list(zip(table["network"], table["batch"], strict=True)) == [
        ("vgg-5", 4),
        ("resnet-18", 4),
        ("resnet-18", 1),
        ("resnet-18", 4),
        ("vgg-11", 4),
    ]
    assert (100 * (table["priced_s"] / table["measured_s"] - 1)).tolist() == pytest.approx(table["fitted_pct"].tolist())
    assert table["unseen_pct"].isna().all()


def test_what_is_left_out_is_predicted(ammeter: Ammeter, mine: str) -> None:
    code, out, _ = ammeter(mine, "--without", "vgg-11", "--format", "json")
    assert code == 0
    rows = {row["network"]: row for row in json.loads(out)}
    assert rows["vgg-11"]["unseen_pct"] is not None
    assert rows["vgg-11"]["fitted_pct"] is None
    assert rows["vgg-5"]["fitted_pct"] is not None


def test_the_figures_are_lines_of_a_profile(ammeter: Ammeter, mine: str, tmp_path: Path) -> None:
    """Put into the board's file, they load; and the measured steps carry what the new rates make of them."""
    code, out, _ = ammeter(mine, "--figures")
    assert code == 0
    figures = yaml.safe_load(out)
    assert set(figures) == {"conv_flops_per_s", "memory_bytes_per_s", "measured"}
    assert [step["network"] for step in figures["measured"]] == [
        f"{name} 3x32x32" for name in ("vgg-5", "resnet-18", "vgg-11")
    ]
    shipped = Path(str(library._index("devices")["rpi-5-8g"])).read_text()
    content = yaml.safe_load(shipped)
    content["figures"] |= figures
    path = tmp_path / "board.yaml"
    path.write_text(yaml.safe_dump(content))
    assert [step.batch for step in library.device(str(path)).measured] == [4, 4, 4]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("raspbery-pi",), "is no published source of step times; did you mean 'raspberry-pi'?"),
        (("absent.yaml",), "absent.yaml: cannot be read"),
        (("raspberry-pi", "--on", "rpi-6"), "--on rpi-6: raspberry-pi has no times of it"),
        (("raspberry-pi", "--without", "vgg-19"), "--without vgg-19: raspberry-pi has no times of it"),
        (("jetson-nano", "--without", "resnet-18"), "--without leaves nothing to fit jetson-nano-4g/10w to"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_sentence(ammeter: Ammeter, words: tuple[str, ...], said: str) -> None:
    code, out, err = ammeter(*words)
    assert code == 2
    assert out == ""
    assert said in err
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("rpi-5-8g", "rpi-6", "'rpi-6' is no device profile"),
        ("vgg-5:", "vgg-4:", "vgg-4"),
        ("[3, 32, 32]", "[3, 8, 8]", "8"),
        ("fit: [conv_flops_per_s, memory_bytes_per_s]", "fit: [depthwise_flops_per_s]", "depthwise_flops_per_s"),
    ],
)
def test_a_file_that_names_what_there_is_not_is_refused(
    ammeter: Ammeter, tmp_path: Path, old: str, new: str, said: str
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(MINE.replace(old, new))
    code, _, err = ammeter(str(path))
    assert code == 2
    assert said in err
    assert "Traceback" not in err

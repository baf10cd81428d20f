"""A verb imports what it needs, not what the others need."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from harness.cli import main as command

ROOT = Path(__file__).parents[3]
QUICKEST = (
    "import sys; from harness.cli.main import main; code = main(sys.argv[1:]); "
    "print(code, sorted({'matplotlib', 'plots.gallery', 'harness.cli.doctor'} & set(sys.modules)))"
)


def last_line(*arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", QUICKEST, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_runs_are_made_without_what_draws_figures(tmp_path: Path) -> None:
    short = ("-s", "training.rounds=1", "-s", "methods=[fedavg]", "-s", "mode=timing", "-s", "seeds=[1]")
    arguments = ["run", "quickstart", *short, "--runs", str(tmp_path), "--figures", str(tmp_path / "figures")]
    assert last_line(*arguments, "--no-figures") == "0 []"
    assert last_line(*arguments) == "0 ['matplotlib', 'plots.gallery']"
    assert list((tmp_path / "figures").rglob("*.pdf"))


def test_a_run_is_made_without_what_tables_need() -> None:
    """They take a hundred megabytes, which training could use, and start-up time."""
    program = (
        "import sys, harness.cli.run; print(sorted({'pandas', 'pyarrow', 'matplotlib', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_one_verb_or_all() -> None:
    assert set(command.verbs("list")) == {"list"}
    assert command.verbs("common") == command.verbs("nonsense") == {}
    assert {"list", "run", "doctor"} <= set(command.verbs())


@pytest.mark.parametrize("given", [["nonsense"], ["common"], [], ["--runs", "x"]])
def test_what_is_no_verb_is_refused_and_all_verbs_are_named(
    given: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        command.main(given)
    assert "usage: ammeter" in capsys.readouterr().err


def test_the_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        command.main(["--help"])
    shown = capsys.readouterr().out
    for name, module in command.verbs().items():
        assert name in shown
        assert hasattr(module, "main")

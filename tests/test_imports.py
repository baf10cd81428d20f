"""Imports point down only: cli > methods, testbeds, results, plots > harness; profiles below testbeds."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = ("harness", "methods", "testbeds", "profiles", "results", "plots")
FORBIDDEN = {
    "harness": {"methods", "testbeds", "results", "plots", "profiles"},  # found by name at run time instead
    "methods": {"testbeds", "results", "plots", "profiles"},
    "testbeds": {"methods", "results", "plots"},
    "profiles": {"methods", "testbeds", "results", "plots"},
    "results": {"methods", "testbeds", "plots", "torch"},
    "plots": {"methods", "testbeds", "torch"},
}


def imported(path: Path) -> set[str]:
    """The modules that a file imports anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_imports_only_what_is_below_it(layer: str) -> None:
    files = [path for path in (ROOT / layer).rglob("*.py") if (ROOT / "harness" / "cli") not in path.parents]
    assert files
    wrong = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in files
        for name in imported(path)
        if name.split(".")[0] in FORBIDDEN[layer]
    ]
    assert not wrong


def test_profiles_know_only_errors_reading_and_work_of_the_harness() -> None:
    allowed = ("harness.errors.", "harness.reading.", "harness.cost.work.")
    names = {name for path in (ROOT / "profiles").rglob("*.py") for name in imported(path)}
    harness = {name for name in names if name.split(".")[0] == "harness"}
    assert harness
    assert not [name for name in harness if not f"{name}.".startswith(allowed)]


@pytest.mark.parametrize("method", sorted(path.stem for path in (ROOT / "methods").glob("[!_]*.py")))
def test_a_method_shares_code_only_through_underscored_files(method: str) -> None:
    names = imported(ROOT / "methods" / f"{method}.py")
    assert not [name for name in names if name.startswith("methods.") and not name.startswith("methods._")]


@pytest.mark.slow
@pytest.mark.parametrize("package", ["results", "plots"])
def test_tables_and_figures_do_without_torch(package: str) -> None:
    script = (
        f"import importlib, pkgutil, sys, {package} as p\n"
        f"[importlib.import_module(f'{package}.{{m.name}}') for m in pkgutil.iter_modules(p.__path__)]\n"
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

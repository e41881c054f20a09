"""The house rules: import directions, file and function length, docstrings, pinned versions."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "saccade"
FILES = sorted(SOURCE.rglob("*.py"))
MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60
LONG_FUNCTIONS: dict[str, str] = {}
"""`file:function` -> why it may be longer."""


def functions(path: Path) -> list[tuple[str, int]]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [
        (f"{path.relative_to(SOURCE)}:{node.name}", (node.end_lineno or 0) - node.lineno + 1)
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]


def test_packages_import_in_one_direction() -> None:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as l; l()"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_file_is_short_and_says_what_it_is(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if path.name == "__init__.py" and not text.strip():
        return
    assert text.count("\n") <= MAX_FILE_LINES
    assert ast.get_docstring(ast.parse(text)), "no module docstring"


def test_functions_stay_short() -> None:
    long = {
        name: lines
        for path in FILES
        for name, lines in functions(path)
        if lines > MAX_FUNCTION_LINES and name not in LONG_FUNCTIONS
    }
    assert not long


def test_the_allow_list_of_long_functions_holds_no_short_ones() -> None:
    lengths = dict(entry for path in FILES for entry in functions(path))
    assert all(lengths.get(name, 0) > MAX_FUNCTION_LINES for name in LONG_FUNCTIONS)


def test_the_versions_the_doctor_knows_are_the_pinned_ones() -> None:
    from saccade.cli_doctor import TESTED

    pins = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line and not line.startswith("#")
    )
    assert {name: pins[name] for name in TESTED} == TESTED


def test_the_reference_pages_are_what_the_code_says() -> None:
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        from build_reference import REFERENCE, pages  # type: ignore[import-not-found]
    finally:
        sys.path.pop(0)
    for name, text in pages().items():
        assert (REFERENCE / name).read_text(encoding="utf-8") == text, f"{name}: run `make docs`"


def test_ci_runs_the_command_that_developers_run() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o100
    assert "make test" in script.read_text()

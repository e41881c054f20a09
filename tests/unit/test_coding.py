"""Files of written code: refused unless asked to be run, judged line by line, mistakes named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from saccade.cli import app
from saccade.config.errors import InputError
from saccade.evaluation.coding import coding_table, judge_file

PROBLEM = {
    "task_id": "demo/0",
    "prompt": "def double(n):\n",
    "entry_point": "double",
    "test": "def check(candidate):\n    assert candidate(4) == 8\n",
}
RIGHT, WRONG = "    return 2 * n\n", "    return n\n"


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    problems = write(tmp_path / "problems.jsonl", PROBLEM, {**PROBLEM, "task_id": "demo/1"})
    rows = [{"task_id": "demo/0", "completion": one} for one in (RIGHT, WRONG)]
    return write(tmp_path / "said.jsonl", *rows), problems


def test_nothing_runs_unless_asked_and_the_message_says_what_would(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    said, problems = files
    mark = tmp_path / "ran"
    write(said, {"task_id": "demo/0", "completion": f"    open({str(mark)!r}, 'w')\n"})

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("something was run")

    with pytest.raises(InputError, match=r"judging runs them[\s\S]*fix: add --run-code"):
        judge_file(said, problems=problems, judge=refuse)
    assert not mark.exists()


def test_completions_are_judged_and_kept(files: tuple[Path, Path]) -> None:
    said, problems = files
    result = judge_file(said, problems=problems, run_code=True)
    assert result["pass_at"] == {"1": 0.5, "2": 1.0}
    assert result["statuses"] == {"passed": 1, "failed": 1}
    assert (result["tasks"], result["asked"], result["samples"]) == (1, 2, 2)
    lines = [json.loads(line) for line in Path(result["results"]).read_text().splitlines()]
    assert [line["passed"] for line in lines] == [True, False]
    assert coding_table(result)


def test_a_file_may_hold_its_own_tests(tmp_path: Path) -> None:
    said = write(tmp_path / "own.jsonl", {**PROBLEM, "completion": RIGHT})
    assert judge_file(said, run_code=True)["pass_at"] == {"1": 1.0}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"task_id": "demo/9", "completion": RIGHT}, r"line 1: no tests for the task 'demo/9'"),
        ({"task_id": "demo/0"}, r"line 1: `completion` must be a text"),
        ({"completion": RIGHT}, r"line 1: `task_id` must be a text"),
    ],
)
def test_mistakes_in_a_line_are_named(
    files: tuple[Path, Path], row: dict[str, Any], message: str
) -> None:
    said, problems = files
    with pytest.raises(InputError, match=message):
        judge_file(write(said, row), problems=problems, run_code=True)


def test_an_entry_point_is_a_name(tmp_path: Path) -> None:
    row = {**PROBLEM, "entry_point": "double); import os; (0", "completion": RIGHT}
    with pytest.raises(InputError, match="no name of a function"):
        judge_file(write(tmp_path / "bad.jsonl", row), run_code=True)


def test_the_verb_judges_a_file(files: tuple[Path, Path]) -> None:
    said, problems = files
    command = ["eval", str(said), "--problems", str(problems)]
    refused = CliRunner().invoke(app, command)
    assert refused.exit_code != 0
    done = CliRunner().invoke(app, [*command, "--run-code", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["pass_at"]["1"] == 0.5


def test_line_separators_of_unicode_within_a_text_end_no_line(files: tuple[Path, Path]) -> None:
    said, problems = files
    completion = "    note = '\u2028 \u2029 \x85'\n" + RIGHT
    row = {"task_id": "demo/0", "completion": completion}
    said.write_text(json.dumps(row, ensure_ascii=False) + "\r\n\n", encoding="utf-8")
    result = judge_file(said, problems=problems, run_code=True)
    assert (result["samples"], result["pass_at"]) == (1, {"1": 1.0})

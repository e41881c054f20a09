"""Judge a file of written code: every completion is run against its tests, if asked to.

In go predictions (lines of `task_id`, `completion`; several per task are attempts) and problems
(HumanEval's lines of `task_id`, `prompt`, `test`, `entry_point`; the predictions may hold these
themselves); out come `NAME.results.jsonl` beside the predictions, a verdict per completion, and a
summary: pass@k, what failed how, what the sandbox kept out of reach. Nothing is run unless the
caller says so. Left out: writing code.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from saccade.config.errors import InputError
from saccade.evaluation.load import Progress, no_progress
from saccade.scoring.code_tests import Problem, judge_code, mean_pass_at
from saccade.scoring.sandbox import Limits, Ran
from saccade.training.rundir import write_atomically

SHOWN_K = (1, 2, 5, 10, 100)
SHOWN_OUTPUT = 500
"""Characters of a program's output that are kept."""
ISOLATION = {
    "network": "the network",
    "files": "files outside its folder",
    "processes": "other processes",
}
WHAT_IT_DOES = (
    "--run-code runs every completion of the file: in a process and folder of its own, limited in"
    " time, memory, processes, files and output, without network and environment where the system"
    " permits (Linux), and kills all it started"
)


def judge_file(
    predictions: Path,
    *,
    problems: Path | None = None,
    run_code: bool = False,
    limit: int | None = None,
    limits: Limits | None = None,
    progress: Progress = no_progress,
    judge: Callable[..., Ran] = judge_code,
) -> dict[str, Any]:
    """Judge a file of completions; raises InputError unless told to run them."""
    rows = _read_lines(predictions)[:limit]
    if not run_code:
        raise InputError(
            f"{predictions}: these {len(rows)} completions are programs, and judging runs them"
            f"\n  {WHAT_IT_DOES}\n  fix: add --run-code if that is what you want"
        )
    known = _problems(problems) if problems is not None else {}
    tasks = [_problem(row, known=known, where=where) for where, row in rows]
    results = []
    for number, (task, (where, row)) in enumerate(zip(tasks, rows, strict=True)):
        progress("running code", number, len(rows))
        completion = _text(row, "completion", where=where)
        results.append((task.task, judge(task, completion, limits=limits)))
    progress("running code", len(rows), len(rows))
    lines = [
        {
            "task_id": task, "passed": ran.passed, "status": ran.status, "detail": ran.detail,
            "seconds": round(ran.seconds, 3), "output": ran.output[:SHOWN_OUTPUT],
            "completion": row["completion"],
        }
        for (task, ran), (_, row) in zip(results, rows, strict=True)
    ]  # fmt: skip
    file = predictions.with_suffix(".results.jsonl")
    write_atomically(file, "".join(json.dumps(line) + "\n" for line in lines))
    return {**_summary(results), "asked": len(known) or None, "results": str(file)}


def _summary(results: list[tuple[str, Ran]]) -> dict[str, Any]:
    counts: dict[str, tuple[int, int]] = {}
    for task, ran in results:
        attempts, right = counts.get(task, (0, 0))
        counts[task] = attempts + 1, right + ran.passed
    told = [ran.isolation for _, ran in results if ran.isolation]
    return {
        "tasks": len(counts),
        "samples": len(results),
        "pass_at": mean_pass_at(counts, ks=SHOWN_K),
        "statuses": dict(Counter(ran.status for _, ran in results).most_common()),
        "isolation": {
            name: bool(told) and all(one.get(name, False) for one in told) for name in ISOLATION
        },
    }


def coding_table(result: Mapping[str, Any]) -> Any:
    """The summary as a terminal table."""
    from rich.console import Group
    from rich.table import Table

    title = f"{result['samples']} completions for {result['tasks']} tasks"
    table = Table(title=title, title_justify="left")
    table.add_column("reading")
    table.add_column("value", justify="right")
    for k, value in result["pass_at"].items():
        table.add_row(f"pass@{k} %", f"{100 * value:.1f}")
    for status, count in result["statuses"].items():
        table.add_row(status, str(count))
    held = [name for key, name in ISOLATION.items() if result["isolation"][key]]
    lines = [f"out of reach: {', '.join(held)}"] if held else []
    if len(held) < len(ISOLATION):
        rest = [name for key, name in ISOLATION.items() if not result["isolation"][key]]
        lines.append(f"this system did NOT keep out of reach: {', '.join(rest)}")
    if result["asked"] and result["asked"] > result["tasks"]:
        lines.append(f"{result['asked'] - result['tasks']} tasks have no completion: not counted")
    return Group(table, *lines, f"verdicts: {result['results']}")


def _read_lines(path: Path) -> list[tuple[str, dict[str, Any]]]:
    rows = []
    # not splitlines(): JSON texts may hold line separators of Unicode as they are
    for number, line in enumerate(path.read_text("utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"{where}: not JSON: {error}") from error
        if not isinstance(row, dict):
            raise InputError(f"{where}: not an object\n  fix: one JSON object per line")
        rows.append((where, row))
    if not rows:
        raise InputError(f"{path}: no lines\n  fix: one JSON object per line")
    return rows


def _problems(path: Path) -> dict[str, Problem]:
    found = [_problem(row, known={}, where=where) for where, row in _read_lines(path)]
    return {problem.task: problem for problem in found}


def _problem(row: Mapping[str, Any], *, known: Mapping[str, Problem], where: str) -> Problem:
    task = _text(row, "task_id", where=where)
    if task in known:
        return known[task]
    if known or "test" not in row:
        raise InputError(
            f"{where}: no tests for the task {task!r}"
            "\n  fix: name the file of problems with --problems, or put prompt, test and"
            " entry_point into each line"
        )
    parts = (_text(row, name, where=where) for name in ("prompt", "test", "entry_point"))
    problem = Problem(task, *parts)
    if not problem.entry_point.isidentifier():
        raise InputError(f"{where}: entry_point {problem.entry_point!r} is no name of a function")
    return problem


def _text(row: Mapping[str, Any], name: str, *, where: str) -> str:
    value = row.get(name)
    if not isinstance(value, str):
        raise InputError(f"{where}: `{name}` must be a text\n  fix: HumanEval's names of fields")
    return value

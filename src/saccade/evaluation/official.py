"""Official benchmarks by lmms-eval: run it in its own environment, bring its results home.

In go a run, task names and the Python of an environment that has lmms-eval; out come the
harness's own files under `runs/NAME/official/lmms-eval/`, its scores (by their own metric names,
with versions) under `official` in `evaluation.json`, and its answers as `predictions.jsonl` beside
them, in the format of the run's own. They are kept apart from the run's own predictions, because
only the harness may judge them again. lmms-eval pins dozens of packages, so it is never imported
here; what it loads is `lmms_plugin.py`. Left out: downloading benchmarks (the harness does).
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.table import Table

from saccade.config.errors import InputError, OutsideError
from saccade.config.resolve import to_yaml
from saccade.config.schema import Budget
from saccade.evaluation.records import Prediction, token_counts, write_predictions
from saccade.evaluation.run import add_official
from saccade.training.rundir import RunDir, write_atomically

HARNESS = "lmms-eval"
TESTED = "0.7.3"
"""Version of lmms-eval whose command line and files this was checked against."""
PROBE = """
import importlib.metadata as m, json
import lmms_eval
models = [e.name for e in m.entry_points(group="lmms_eval.models")]
print(json.dumps({"version": m.version("lmms_eval"), "models": models}))
"""
PROBE_SECONDS = 300
LOG_TAIL = 12
"""Lines of the harness's log that an error quotes."""

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Environment:
    """A Python that has lmms-eval and the plugin."""

    python: Path
    version: str


def check_environment(python: Path | None) -> Environment:
    """Look for lmms-eval and the plugin in the environment of `python`.

    Raises OutsideError with the commands that install what is missing.
    """
    if python is None or not python.is_file():
        what = "no environment was named" if python is None else f"{python}: no such Python"
        raise OutsideError(f"{HARNESS} runs in its own environment; {what}{_how_to_install()}")
    probe = subprocess.run(
        [str(python), "-c", PROBE], capture_output=True, text=True, check=False,
        timeout=PROBE_SECONDS,
    )  # fmt: skip
    if probe.returncode != 0:
        last = (probe.stderr.strip().splitlines() or ["(no message)"])[-1]
        raise OutsideError(f"{python}: {HARNESS} cannot be used: {last}{_how_to_install()}")
    found = json.loads(probe.stdout.strip().splitlines()[-1])
    if "saccade" not in found["models"]:
        raise OutsideError(
            f"{python}: has {HARNESS} {found['version']} but not saccade"
            f"\n  fix: {python} -m pip install --no-deps {_own_package()}"
        )
    return Environment(python, found["version"])


def lmms_command(
    run: RunDir,
    *,
    tasks: Sequence[str],
    python: Path,
    folder: Path,
    arm: str = "trained",
    limit: int | None = None,
    include: Path | None = None,
) -> list[str]:
    """The exact command line; `include` is a folder with tasks of one's own."""
    if not tasks:
        raise InputError("no task was named\n  fix: add --tasks, for example --tasks vqav2_val")
    arguments = {
        "pretrained": run.path.resolve(),
        "config": (folder / "config.yaml").resolve(),
        "arm": arm,
        "counts": (folder / "tokens.jsonl").resolve(),
    }
    for name, value in arguments.items():
        if "," in str(value) or "=" in str(value):
            raise InputError(f"{value}: {name} may hold no comma or equals sign for {HARNESS}")
    command = [
        str(python), "-m", "lmms_eval", "--model", "saccade",
        "--model_args", ",".join(f"{name}={value}" for name, value in arguments.items()),
        "--tasks", ",".join(tasks), "--batch_size", str(run.config().eval.batch_size),
        "--log_samples", "--output_path", str(folder.resolve()),
    ]  # fmt: skip
    command += ["--limit", str(limit)] if limit is not None else []
    return command + (["--include_path", str(include.resolve())] if include is not None else [])


def run_official(
    run: RunDir,
    *,
    tasks: Sequence[str],
    python: Path | None,
    arm: str = "trained",
    limit: int | None = None,
    include: Path | None = None,
    tell: Tell = lambda line: None,
) -> dict[str, Any]:
    """Run the harness on this run, show its log, and import what it wrote.

    Raises OutsideError when the environment is not ready or the harness fails.
    """
    environment = check_environment(python)
    folder = official_folder(run)
    command = lmms_command(
        run, tasks=tasks, python=environment.python, folder=folder, arm=arm, limit=limit,
        include=include,
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "config.yaml", to_yaml(run.config()))
    (folder / "tokens.jsonl").unlink(missing_ok=True)
    before = set(folder.rglob("*_results.json"))
    stream(command, log_file=folder / "log.txt", tell=tell)
    written = sorted(set(folder.rglob("*_results.json")) - before)
    if not written:
        raise OutsideError(
            f"{HARNESS} ended well but wrote no results into {folder}"
            f"\n  fix: read {folder / 'log.txt'}; this was checked with {HARNESS} {TESTED}"
        )
    return import_results(
        run, written[-1], counts=folder / "tokens.jsonl", arm=arm, installed=environment.version
    )  # fmt: skip


def stream(command: Sequence[str], *, log_file: Path, tell: Tell) -> None:
    """Run a command, passing each line of its output on and into a file."""
    tell(" ".join(command))
    lines: list[str] = []
    with (
        log_file.open("w", encoding="utf-8") as log,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        ) as process,
    ):
        assert process.stdout is not None
        try:
            for line in process.stdout:
                log.write(line)
                log.flush()
                tell(line.rstrip())
                lines = [*lines[1 - LOG_TAIL :], line]
        except BaseException:
            process.terminate()
            raise
    if process.returncode != 0:
        raise OutsideError(
            f"{HARNESS} failed with exit code {process.returncode}; the end of its log:\n"
            + "".join(lines)
            + f"  fix: read {log_file}"
        )


def import_results(
    run: RunDir,
    results: Path,
    *,
    counts: Path | None = None,
    arm: str = "trained",
    installed: str | None = None,
) -> dict[str, Any]:
    """Read a results file of lmms-eval and the samples beside it; returns what was stored.

    `counts` are the plugin's token counts, by default those of the same call. `installed` is the
    harness's version where it is known: its own file names one only in a git checkout. Raises
    InputError when the file is not one.
    """
    found = _read_results(results)
    keep = 1.0 if arm == "full" else run.config().selector.keep
    spent = _token_rows(counts or results.parent.parent / "tokens.jsonl")
    predictions: list[Prediction] = []
    tasks: dict[str, Any] = {}
    for task, values in found["results"].items():
        metrics = _metrics(values)
        samples = results.with_name(results.name.replace("_results.json", f"_samples_{task}.jsonl"))
        rows = [
            _prediction(row, task=task, metrics=metrics, spent=spent, arm=arm, keep=keep)
            for row in _samples(samples)
        ]
        predictions += rows
        tasks[task] = {
            "version": _task_version(found, task),
            "samples": _sample_count(found, task) or len(rows),
            "metrics": metrics,
        }
    known = [one for one in predictions if one.tokens]
    stored = {
        "version": installed or found.get("lmms_eval_version"),
        "arm": arm,
        "keep": keep,
        "date": found.get("date"),
        "results": str(results),
        "tasks": tasks,
        "tokens": token_counts(known) if known else None,
    }
    official_folder(run).mkdir(parents=True, exist_ok=True)
    write_predictions(official_folder(run) / "predictions.jsonl", predictions)
    add_official(run, HARNESS, stored)
    return stored


def official_folder(run: RunDir) -> Path:
    """Where the harness's files of a run live."""
    return run.path / "official" / HARNESS


def official_table(stored: dict[str, Any]) -> Table:
    """The harness's scores, by its own names."""
    table = Table(title=f"{HARNESS} {stored['version']}", title_justify="left")
    for name in ("task", "metric", "score", "standard error", "samples"):
        table.add_column(name, justify="left" if name in ("task", "metric") else "right")
    for task, entry in stored["tasks"].items():
        for name, score in entry["metrics"].items():
            error = score["stderr"]
            table.add_row(
                task, name, f"{score['value']:.4f}", "" if error is None else f"{error:.4f}",
                str(entry["samples"]),
            )  # fmt: skip
    if stored["tokens"]:
        kept, full = (stored["tokens"][f"visual_tokens_{name}"] for name in ("kept", "full"))
        table.caption = f"visual tokens kept {kept:.1f} of {full:.1f} per question"
    return table


def _read_results(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file\n  fix: name a ..._results.json") from None
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error})\n  fix: name a ..._results.json") from None
    if not isinstance(found, dict) or not isinstance(found.get("results"), dict):
        raise InputError(
            f"{path}: no results of {HARNESS}\n  fix: name the ..._results.json it wrote"
        )
    return found


def _metrics(values: dict[str, Any]) -> dict[str, dict[str, float | None]]:
    """From `exact_match,none` and `exact_match_stderr,none` to names with value and error."""
    found: dict[str, dict[str, float | None]] = {}
    for key, value in values.items():
        name, _, filtered = key.partition(",")
        errors = name.endswith(("_stderr", "_stderr_clt", "_stderr_clustered"))
        if not filtered or errors or isinstance(value, bool) or not isinstance(value, int | float):
            continue
        label = name if filtered == "none" else f"{name} ({filtered})"
        error = values.get(f"{name}_stderr,{filtered}")
        found[label] = {
            "value": float(value),
            "stderr": float(error) if isinstance(error, int | float) else None,
        }
    return found


def _sample_count(found: dict[str, Any], task: str) -> int | None:
    counts = found.get("n-samples", {}).get(task, {})
    return counts.get("effective") if isinstance(counts, dict) else None


def _task_version(found: dict[str, Any], task: str) -> str | None:
    """The version its YAML states, which the harness lists among its metadata."""
    metadata = found.get("configs", {}).get(task, {}).get("metadata") or []
    stated = [one["version"] for one in metadata if isinstance(one, dict) and "version" in one]
    version = stated[0] if stated else found.get("versions", {}).get(task)
    return None if version is None else str(version)


def _samples(path: Path) -> list[dict[str, Any]]:
    """The task's logged answers; none when samples were not logged."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line.strip()]


def _prediction(
    row: dict[str, Any],
    *,
    task: str,
    metrics: dict[str, Any],
    spent: dict[str, dict[str, Any]],
    arm: str,
    keep: Budget,
) -> Prediction:
    name = next((m for m in metrics if isinstance(row.get(m), int | float)), None)
    score = float(row[name]) if name is not None else 0.0
    answer = row.get("filtered_resps", "")
    answer = answer[0] if isinstance(answer, list) and answer else answer
    identity = f"{task}/{row.get('doc_id')}"
    tokens = spent.get(identity, {})
    return Prediction(
        id=identity,
        group=str(row.get("doc_hash", identity)),
        kind=task,
        question=str(row.get("input", "")),
        answers=(str(row.get("target", "")),),
        prediction=str(answer),
        correct=score >= 0.5,
        full=tuple(tokens.get("full", ())),
        kept=tuple(tokens.get("kept", ())),
        tokens=int(tokens.get("tokens", 0)),
        answer_cells_kept=None,
        arm=arm,
        keep=keep,
        metric=f"{HARNESS}: {name}",
        score=score,
    )


def _token_rows(counts: Path) -> dict[str, dict[str, Any]]:
    if not counts.is_file():
        return {}
    rows = [json.loads(line) for line in counts.read_text("utf-8").splitlines()]
    return {row["id"]: row for row in rows}


def _how_to_install() -> str:
    """The commands that make the environment; never into an existing one, it may be saccade's."""
    folder = "lmms-eval-env"
    pip = f"{folder}/bin/python -m pip install"
    steps = (
        f"python3 -m venv {folder}",
        f"{pip} 'torch==2.13.*' 'transformers==5.23.*' {HARNESS}=={TESTED}",
        # what it would pull in (hydra) contradicts a pin of the harness, and is not needed there
        f"{pip} --no-deps {_own_package()}",
    )
    lines = "".join(f"\n    {step}" for step in steps)
    return f"\n  fix: make one and add --python {folder}/bin/python{lines}"


def _own_package() -> str:
    """What pip installs to get this very saccade: the checkout, else the released version."""
    checkout = Path(__file__).resolve().parents[3]
    if (checkout / "pyproject.toml").is_file():
        return str(checkout)
    try:
        return f"saccade=={version('saccade')}"
    except PackageNotFoundError:
        return "saccade"

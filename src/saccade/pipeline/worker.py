"""One run, trained and scored in a process of its own, for whoever starts many of them.

One line of JSON flows in on stdin (a resolved configuration), one line flows out on stdout (what
`score` found, or the error with its exit code); progress goes to stderr, like that of any run. A
process each keeps memory flat over a hundred runs. The process that started this one holds stdin
open; when it is gone, so is this one: the run continues from its checkpoint the next time. Left
out: which runs there are, and what is made of their scores.

    python -m saccade.pipeline.worker < job.json
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Mapping
from typing import Any

from rich.console import Console

from saccade.config.errors import Preempted, SaccadeError
from saccade.config.resolve import Resolved
from saccade.config.schema import Config
from saccade.training.events import read_events, step_series
from saccade.training.progress import Progress, shown
from saccade.training.rundir import RunDir


def job_of(resolved: Resolved) -> dict[str, Any]:
    """A configuration as the line this process reads."""
    config = resolved.config.model_dump(mode="json")
    return {"config": config, "sources": resolved.sources, "recipe": resolved.recipe}


def main() -> int:
    """Do the job on stdin."""
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_leave_with_the_parent, daemon=True).start()
    # what other libraries print must not get between the lines of the answer
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    resolved = Resolved(Config.model_validate(job["config"]), job["sources"], job["recipe"])
    try:
        answer, code = {"result": work(resolved)}, 0
    except SaccadeError as error:
        answer, code = {"error": str(error)}, error.exit_code
    answers.write(json.dumps(answer) + "\n")
    answers.flush()
    return code


def _leave_with_the_parent() -> None:
    sys.stdin.read()
    os._exit(Preempted.exit_code)


def work(resolved: Resolved) -> dict[str, Any]:
    """Train or continue the run (a finished one is left as it is), then score it."""
    from saccade.training.run import train

    console = Console(stderr=True, highlight=False)
    train(resolved, console=console)
    return score(RunDir.of(resolved.config), console=console)


def score(run: RunDir, *, console: Console) -> dict[str, Any]:
    """Hard selection at every budget of `eval.keep`, as `saccade compare` measures it."""
    from saccade.evaluation.compare import Comparison
    from saccade.evaluation.load import arms_of

    config = run.config()
    if config.recipe == "recursion":
        return {**_score_thinking(run, console=console), **_training_facts(run)}
    arm = "trained" if "trained" in arms_of(config) else "full"
    progress = Progress(steps=config.training.steps)
    progress.start_at(config.training.steps)

    def advance(what: str, done: int, total: int) -> None:
        progress.phase, progress.phase_done, progress.phase_total = what, done, total

    comparison = Comparison(run, samples=None, keep=None, arms=[arm], progress=advance)
    with shown(progress, console):
        comparison.answer(comparison.cells)
    budgets = []
    for cell in comparison.cells:
        answers = [a for i, a in comparison.store.answers(cell).items() if i in comparison.ids]
        correct = {one.id: int(one.correct) for one in answers}
        budgets.append({"budget": cell.budget, "correct": correct})
    groups = {
        one.id: one.group
        for cell in comparison.cells
        for one in comparison.store.answers(cell).values()
    }
    return {"budgets": budgets, "groups": groups, **_training_facts(run)}


def _score_thinking(run: RunDir, *, console: Console) -> dict[str, Any]:
    """Puzzles right after some steps of thinking, and with halting; in place of budgets."""
    from saccade.evaluation.thinking import evaluate_thinking, right_at

    result = evaluate_thinking(run, limit=run.config().eval.samples)
    console.print(f"{run.path}: {100 * result['accuracy']:.1f} % exact", highlight=False)
    rows = right_at(run, result)
    budgets = [{"budget": name, "correct": correct} for name, correct in rows.items()]
    return {"budgets": budgets, "groups": {}, "mean_steps": result["halting"]["mean_steps"]}


def _training_facts(run: RunDir) -> dict[str, Any]:
    """What the event log says of size and time; steps that were repeated count once."""
    events = read_events(run.events_file)
    plans: list[Mapping[str, Any]] = [event for event in events if event["type"] == "plan"]
    per_step = plans[-1]["samples_per_step"] if plans else 0
    seconds, before = 0.0, 0
    for step in step_series(events):  # of every so many steps (`training.log_every`)
        if step["samples_per_s"]:
            seconds += (step["step"] - before) * per_step / step["samples_per_s"]
        before = step["step"]
    return {
        "trainable_parameters": plans[-1]["trainable_parameters"] if plans else None,
        "train_seconds": round(seconds, 3),
    }


if __name__ == "__main__":
    sys.exit(main())

"""Votes of a recursive model over the variants of ARC tasks, beside baselines that need no model.

In go a run, the tasks that were asked and what was said about every variant; out come shares of
tests whose solution is among the best k, and `submission.json` with two attempts per test input.
Each variant votes with its answer after the last step of thinking, weighed by its halting score as
published. Copying the input and painting the commonest colour stand beside it. Tasks of which no
variant was asked (a limit) are left out and counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from saccade.data.generate.puzzles import INPUT
from saccade.data.grids.source import VARIANT, ArcPuzzles
from saccade.data.grids.submission import (
    baseline_score,
    copy_input,
    make_submission,
    paint_majority,
    score_submission,
    write_submission,
)
from saccade.data.grids.vote import Ballot, pass_at_k
from saccade.training.rundir import RunDir

if TYPE_CHECKING:
    from saccade.data.samples import Sample
    from saccade.models.recursion.trace import Traced

SUBMISSION = "submission.json"
SHOWN = (1, 2, 5, 10, 100)


def vote(run: RunDir, source: ArcPuzzles, found: Sequence[tuple[Sample, Traced]]) -> dict[str, Any]:
    """Count the votes, write the submission, and score both it and the baselines."""
    ballot, asked = Ballot(), set[str]()
    for sample, traced in found:
        variant = sample.facts[VARIANT]
        asked.add(variant.split("|||")[0])
        ballot.add_tokens(
            variant, shown=sample.facts[INPUT], predicted=traced.answers_NL[-1],
            halt_logit=traced.halt[-1], shape=source.shape,
        )  # fmt: skip
    tasks = [task for task in source.tasks if task.name in asked]
    submission = make_submission(ballot, tasks)
    write_submission(run.path / SUBMISSION, submission)
    return {
        "tasks": len(tasks),
        "left_out": len(source.tasks) - len(tasks),
        "predictions": len(found),
        "pass_at": {str(k): value for k, value in pass_at_k(ballot, tasks, ks=SHOWN).items()},
        "two_attempts": score_submission(submission, tasks),
        "copy_input": baseline_score(tasks, copy_input),
        "majority_colour": baseline_score(tasks, paint_majority),
    }


def voting_line(found: Mapping[str, Any]) -> str:
    """The result in words."""
    passed = ", ".join(f"pass@{k} {100 * value:.1f} %" for k, value in found["pass_at"].items())
    return (
        f"voting over {found['predictions']} predictions of {found['tasks']} tasks: two attempts"
        f" {100 * found['two_attempts']:.1f} % ({passed})\n"
        f"copying the input: {100 * found['copy_input']:.1f} %; painting its commonest colour:"
        f" {100 * found['majority_colour']:.1f} %"
    )

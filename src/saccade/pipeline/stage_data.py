"""The kind of stage `data`: look at every row before anything is trained on it.

The resolved sources flow in; `data.json` (what `saccade data check` finds, for both splits) and
counts flow out. Broken rows fail nothing by themselves: a gate says how many are too many. Left
out: visual tokens, which are the model's matter, and whether the answers are true.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from saccade.data.check import CheckReport, check_source
from saccade.training.rundir import write_atomically

if TYPE_CHECKING:
    from saccade.pipeline.stages import StageContext, StageResult

SHOWN = 5


def data_stage(context: StageContext) -> StageResult:
    """Check `data.train` and `data.eval`; measures `rows`, `eval_rows`, `broken`, `blind`.

    `blind` is the share of held-out rows that their kind's commonest answer is right about.
    """
    from saccade.pipeline.stages import StageResult

    assert context.resolved is not None
    data = context.resolved.config.data
    reports: dict[str, CheckReport] = {}
    for split, source in (("train", data.train), ("eval", data.eval)):

        def progress(done: int, rows: int, split: str = split) -> None:
            context.stoppable(f"checking {split}", done, rows)

        reports[split] = check_source(source, progress=progress)
    for split, one in reports.items():
        one.statistics.pop("visual_tokens_per_image", None)
        for item in one.problems[:SHOWN]:
            context.say(f"{split}: {item.where}: {item.problem}\n  fix: {item.fix}")
    path = context.folder / "data.json"
    content = {split: one.to_json() for split, one in reports.items()}
    write_atomically(path, json.dumps(content, indent=2) + "\n")
    metrics = {
        "rows": float(reports["train"].rows),
        "eval_rows": float(reports["eval"].rows),
        "broken": float(sum(one.rows - one.rows_ok for one in reports.values())),
        "blind": float(reports["eval"].statistics["majority_share"]),
    }
    return StageResult(metrics, {"report": path})

"""What a launch would be, before it is one: plan, places, price, findings, memory.

The words of a form flow in, plain values flow out, made by the functions behind `saccade launch
--dry-run` and `saccade train --plan`. Nothing is spent and nothing is made. Left out: the launch,
which is the verb itself in a process of its own (`actions.py`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any


def plan_values(words: Sequence[str]) -> dict[str, Any]:
    """Plan a launch; raises what the command line raises."""
    from saccade.cli_inputs import export_dotenv, resolve_words
    from saccade.launch import begin, shown
    from saccade.launch.plan import plan_launch

    export_dotenv()
    plan = plan_launch(resolve_words(words), env=os.environ)
    standing = begin.standing(plan)
    again = standing is begin.Standing.ENDED
    columns, ranking = shown.ranking_table(plan) if plan.choice.ranking else ([], [])
    return {
        "words": list(words), "launch": plan.launch.key, "standing": str(standing),
        "rows": shown.plan_rows(plan), "columns": columns, "ranking": ranking,
        "findings": [one.to_json() for one in plan.findings],
        "question": shown.question(plan, again=again),
        "blocked": [one.name for one in plan.findings if one.level == "block"],
        "json": plan.to_json(),
    }  # fmt: skip


def memory_values(words: Sequence[str]) -> dict[str, Any]:
    """What `saccade train --plan --json` says: tokens, memory, the largest batch."""
    from saccade.tui.sources import verb_json

    return verb_json(["train", *words, "--plan", "--json"])

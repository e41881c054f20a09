"""What a sweep found, as plain data: `sweep.json` and the rows of the table.

A plan and its study flow in; a summary (trials, the best one, importance) flows out. It is written
after every trial, so a reader always finds the newest whole one. Left out: figures
(`sweep_plots.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from saccade.pipeline.sweep_plan import SweepPlan
from saccade.pipeline.sweep_study import Study, importances, last_value
from saccade.training.events import plain
from saccade.training.rundir import write_atomically

STATES = {"COMPLETE": "finished", "PRUNED": "stopped", "FAIL": "failed", "RUNNING": "running"}


def summarise(plan: SweepPlan, study: Study, *, importance: bool = False) -> dict[str, Any]:
    """Everything known so far; importance costs a moment and is left for the end."""
    trials = study.asked()
    rows = [
        {
            "trial": one.number,
            "state": STATES[one.state.name],
            "value": last_value(one),
            "reports": len(one.intermediate_values),
            "curve": [one.intermediate_values[n] for n in sorted(one.intermediate_values)],
            "seconds": one.user_attrs.get("seconds"),
            "parameters": study.values(one) if _is_drawn(plan, one.params) else {},
            "run": str(plan.trial_folder(one.number)),
        }
        for one in trials
    ]
    sweep = plan.sweep
    return {
        "v": 1,
        "name": sweep.name,
        "method": sweep.method,
        "metric": sweep.metric,
        "goal": "maximize" if sweep.maximize else "minimize",
        "trials_wanted": plan.trials,
        "counts": {state: _count(rows, state) for state in STATES.values()},
        "reports": sum(row["reports"] for row in rows),
        "reports_per_trial": plan.reports,
        "best": best_row(rows, maximize=sweep.maximize),
        "importance": importances(sweep, trials) if importance else {},
        "trials": rows,
    }


def best_row(rows: Sequence[Mapping[str, Any]], *, maximize: bool) -> Mapping[str, Any] | None:
    """The finished trial with the best value."""
    finished = [row for row in rows if row["state"] == "finished"]
    sign = -1.0 if maximize else 1.0
    return min(finished, key=lambda row: sign * row["value"], default=None)


def ranked(summary: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Rows of the table: finished ones from the best down, then the others by number."""
    sign = -1.0 if summary["goal"] == "maximize" else 1.0
    order = list(STATES.values())

    def place(row: Mapping[str, Any]) -> tuple[int, float, int]:
        finished = row["state"] == "finished"
        return order.index(row["state"]), sign * row["value"] if finished else 0.0, row["trial"]

    return sorted(summary["trials"], key=place)


def write_summary(summary: Mapping[str, Any], *, folder: Path) -> None:
    """Write `sweep.json`."""
    text = json.dumps(plain(summary), indent=2, allow_nan=False)
    write_atomically(folder / "sweep.json", text + "\n")


def _is_drawn(plan: SweepPlan, params: Mapping[str, Any]) -> bool:
    return all(one.constant or one.key in params for one in plan.sweep.parameters)


def _count(rows: Sequence[Mapping[str, Any]], state: str) -> int:
    return sum(row["state"] == state for row in rows)

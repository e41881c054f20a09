"""What `saccade pipeline show` draws: the graph with states, durations, costs and artifacts.

A `Plan` flows in, rows (plain data) and a Rich tree flow out. Everything is read from disk and
nothing is changed or started, so it can be called while the pipeline runs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.text import Text
from rich.tree import Tree

from saccade.config.errors import SaccadeError
from saccade.pipeline.execute import Runner
from saccade.pipeline.graph import Stage
from saccade.pipeline.plan import Plan
from saccade.pipeline.stage_state import RECORD, Record, failure, lock_of, spent_seconds
from saccade.training.guards import StopRequest
from saccade.training.progress import duration

STYLES = {
    "finished": "green", "running": "cyan", "failed": "red", "gate closed": "red",
    "damaged": "red", "interrupted": "yellow", "changed": "yellow",
}  # fmt: skip
MEANINGS = {
    "changed": "ran before, with another configuration, code or input",
    "interrupted": "continues where it stopped",
    "damaged": "an artifact is gone or changed; runs again",
    "waits": "what it needs is not finished",
}


def pipeline_rows(plan: Plan) -> list[dict[str, Any]]:
    """One row per stage in running order: state, needs, time, cost, metrics, artifacts."""
    runner = Runner(
        plan, StopRequest(), say=_ignore, progress=_no_progress, console=Console(quiet=True)
    )
    return [_row(runner, plan.stage(name)) for name in plan.pipeline.order()]


def pipeline_tree(name: str, rows: Sequence[Mapping[str, Any]]) -> RenderableType:
    """Draw the rows as a tree; a stage that needs several stands below the last of them."""
    by_name = {row["stage"]: row for row in rows}
    root = Tree(Text(name, style="bold"), guide_style="dim")
    places: dict[str, Tree] = {}
    widths = [max(len(str(row[key])) for row in rows) for key in ("stage", "uses", "state")]
    for stage, row in by_name.items():
        needs = sorted(row["needs"], key=list(by_name).index)
        above = places[needs[-1]] if needs else root
        places[stage] = above.add(_label(row, widths, also=needs[:-1]))
    states = [row["state"] for row in rows]
    cost = [row["cost_usd"] for row in rows if row["cost_usd"] is not None]
    total = duration(sum(row["seconds"] or 0.0 for row in rows))
    text = f"{states.count('finished')} of {len(rows)} finished, {total} spent"
    text += f", ${sum(cost):.2f}" if cost else ""
    notes = [f"{state}: {MEANINGS[state]}" for state in dict.fromkeys(states) if state in MEANINGS]
    return Group(root, Text(text), *(Text(note, style="dim") for note in notes))


def _row(runner: Runner, stage: Stage) -> dict[str, Any]:
    state, record, folder = _state(runner, stage)
    seconds = record.seconds if record else (spent_seconds(folder) if folder else 0.0)
    return {
        "stage": stage.name,
        "uses": stage.uses,
        "state": state,
        "needs": list(stage.needs()),
        "target": str(stage.target.value),
        "seconds": seconds or None,
        "cost_usd": record.cost_usd if record else None,
        "metrics": dict(record.metrics) if record else {},
        "inputs": {name: one.text for name, one in stage.inputs.items()},
        "outputs": {
            key: f"{one.name}:v{one.version}"
            for key, one in (record.outputs if record else {}).items()
        },
        "folder": str(folder) if folder else None,
        "problem": failure(folder) if folder and state == "failed" else None,
        "where": stage.where,
    }


def _state(runner: Runner, stage: Stage) -> tuple[str, Record | None, Any]:
    plan = runner.plan
    before = "changed" if _ran_before(plan, stage.name) else "to do"
    try:
        folder, key = runner.folder(stage)
    except KeyError:
        return "changed" if before == "changed" else "waits", None, None
    except SaccadeError:
        return before, None, None
    record = Record.read(folder, key=key)
    if record is not None:
        if any(plan.store.fault(one.digest) for one in record.outputs.values()):
            return "damaged", record, folder
        runner.records[stage.name] = record
        closed = any(gate.fault(record.metrics) for gate in stage.gates)
        return "gate closed" if closed else "finished", record, folder
    if lock_of(folder).is_held():
        return "running", None, folder
    if failure(folder):
        return "failed", None, folder
    if folder.is_dir():
        return "interrupted", None, folder
    missing = [one for one in stage.needs() if one not in runner.records]
    return (before if not missing or before == "changed" else "waits"), None, None


def _ran_before(plan: Plan, name: str) -> bool:
    for path in plan.root.glob(f"{name}-*/{RECORD}"):
        try:
            if json.loads(path.read_text("utf-8")).get("stage") == name:
                return True
        except (OSError, ValueError):
            continue
    return False


def _label(row: Mapping[str, Any], widths: Sequence[int], *, also: Sequence[str]) -> Text:
    text = Text(f"{row['stage']:<{widths[0]}}  ", style="bold")
    text.append(f"{row['uses']:<{widths[1]}}  ", style="not bold dim")
    style = STYLES.get(row["state"], "")
    text.append(f"{row['state']:<{widths[2]}}", style=f"not bold {style}".strip())
    more = [duration(row["seconds"])] if row["seconds"] else []
    more += [f"${row['cost_usd']:.2f}"] if row["cost_usd"] is not None else []
    more += [f"on {row['target']}"] if row["target"] != "local" else []
    more += [f"{name} {value:.4g}" for name, value in list(row["metrics"].items())[:3]]
    more += [f"also needs {', '.join(also)}"] if also else []
    made = [f"{key} {name.rpartition(':')[2]}" for key, name in row["outputs"].items()]
    more += [f"made {' '.join(made)}"] if made else []
    more += [str(row["problem"]).splitlines()[0]] if row["problem"] else []
    text.append("  " + ", ".join(more) if more else "", style="not bold")
    return text


def _ignore(message: str) -> None:
    """Say nothing."""


def _no_progress(what: str, done: int, total: int) -> None:
    """Show nothing."""

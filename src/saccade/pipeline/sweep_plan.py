"""What a sweep consists of before anything runs: its folder, its size, and whether it makes sense.

A `SweepFile` and a resolver flow in; a `SweepPlan` flows out, with every swept value checked
against the schema (a mistake is named with its line in the sweep file) and the warnings a person
should read first. Nothing is started here.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saccade.config.errors import InputError
from saccade.config.keys import hint_for, nearest
from saccade.config.layers import Layer, Value
from saccade.config.resolve import Resolved, flatten
from saccade.config.schema import Config
from saccade.evaluation.dataset_scores import MEANINGS
from saccade.pipeline.ablate import Resolver
from saccade.pipeline.stages import RECIPE_METRICS
from saccade.pipeline.sweep_file import SweepFile, own_parameters
from saccade.pipeline.sweep_space import MOST_POINTS
from saccade.pipeline.targets import target_fault
from saccade.training.rundir import is_free

PLACE = re.compile(r"\$\{([a-z]+)(?:\.([^}]+))?\}")
"""Something to fill into a word of a command: `${folder}`, `${parameters.rate}`."""
PLACES = ("folder", "reports", "parameters")


@dataclass(frozen=True)
class SweepPlan:
    """A checked sweep: `trials` in all, `reports` of the metric per trial where that is known."""

    sweep: SweepFile
    folder: Path
    trials: int
    reports: int | None
    resolve: Resolver
    key: Mapping[str, str]
    warnings: tuple[str, ...] = field(default_factory=tuple)

    def trial_folder(self, number: int) -> Path:
        """Where a trial's run lives."""
        return self.folder / f"trial-{number}"

    def lock_file(self, number: int) -> Path:
        """The lock that a trial's program inherits."""
        return self.trial_folder(number) / ".trial"

    def run_name(self, number: int) -> str:
        """A trial's run; in a store, sweeps meet each other's runs, so there it names its sweep."""
        if self.sweep.target == "local":
            return f"trial-{number}"
        return f"{self.sweep.name}-{_digest(dict(self.key))[:6]}-trial-{number}"

    def resolved(self, values: Mapping[str, Any], *, number: int) -> Resolved:
        """The configuration of one trial."""
        own, place = Layer(), f"sweep {self.sweep.name}"
        own.values["run.root"] = Value(str(self.folder), place)
        own.values["run.name"] = Value(self.run_name(number), place)
        return self.resolve(on_top=[self.sweep.layer, own_parameters(self.sweep, values), own])


def plan_sweep(sweep: SweepFile, *, resolve: Resolver, trials: int | None = None) -> SweepPlan:
    """Check a sweep against the schema and count it; raises InputError naming what is wrong."""
    base = resolve(on_top=[sweep.layer]).config
    fault = target_fault(sweep.target)
    if fault:
        raise InputError(f"{sweep.place('target')}: saccade.target: {sweep.target}: {fault}")
    reports = sweep.reports
    if sweep.command:
        filled_command(sweep, dict.fromkeys(PLACES, ""), {one.key: "" for one in sweep.parameters})
    else:
        _refuse_metric(sweep, base)
        _try_values(sweep, resolve)
        reports = reports_of(sweep, base)
    warnings = [*sweep.notes, *stopping_warnings(sweep, reports=reports)]
    return SweepPlan(
        sweep=sweep,
        folder=base.run.root / sweep.name,
        trials=_count(sweep, trials),
        reports=reports,
        resolve=resolve,
        key=_key(sweep, base),
        warnings=tuple(warnings),
    )


def reports_of(sweep: SweepFile, config: Config) -> int:
    """Reports a trial makes at most: evaluations during training, swept lengths included."""
    known = {
        "training.steps": config.training.steps, "training.eval_every": config.training.eval_every,
    }  # fmt: skip
    swept = {one.key: [p for p in one.probes() if isinstance(p, int)] for one in sweep.parameters}
    steps = max([*swept.get("training.steps", []), *_fixed(known, swept, "training.steps")])
    every = [*swept.get("training.eval_every", []), *_fixed(known, swept, "training.eval_every")]
    often = min((one for one in every if one > 0), default=0)
    return steps // often if often else 0


def _fixed(known: Mapping[str, int], swept: Mapping[str, list[int]], key: str) -> list[int]:
    return [] if swept.get(key) else [known[key]]


def stopping_warnings(sweep: SweepFile, *, reports: int | None) -> list[str]:
    """Says when `early_terminate` cannot save anything: rungs count reports of the metric."""
    stopping = sweep.stopping
    if stopping is None or reports is None:
        return []
    if not reports:
        return [
            f"{stopping.where}: early_terminate: trials report {sweep.metric} only at their end,"
            " so none can be stopped\n  fix: set training.eval_every under saccade.set"
        ]
    if stopping.first >= reports:
        return [
            f"{stopping.where}: early_terminate: never stops a trial early: it first looks after"
            f" {stopping.first} reports of {sweep.metric}, and a trial makes {reports}"
            f" (training.steps / training.eval_every)\n  fix: min_iter counts reports, not steps:"
            f" use at most {max(reports - 1, 1)}, or evaluate more often"
            if not sweep.command
            else f"{stopping.where}: early_terminate: never stops a trial early: it first looks"
            f" after {stopping.first} reports, and a trial makes {reports}"
            "\n  fix: use a smaller min_iter, or report more often"
        ]
    return []


def filled_command(
    sweep: SweepFile, places: Mapping[str, Any], values: Mapping[str, Any]
) -> list[str]:
    """The words of a sweep's command for one trial; InputError for a place that is not there."""

    def put(match: re.Match[str]) -> str:
        place, name = match.groups()
        if place == "parameters" and name is not None:
            if name in values:
                return str(values[name])
        elif place in places and name is None:
            return str(places[place])
        known = [*(f"${{{one}}}" for one in places), *(f"${{parameters.{one}}}" for one in values)]
        hint = hint_for(match[0], known)
        raise InputError(f"{sweep.place('command')}: saccade.command: {match[0]}: unknown; {hint}")

    return [PLACE.sub(put, word) for word in sweep.command]


def _count(sweep: SweepFile, trials: int | None) -> int:
    if sweep.method == "grid":
        points = math.prod(one.size or 1 for one in sweep.parameters)
        if points > MOST_POINTS:
            raise InputError(
                f"{sweep.place('method')}: method: a grid of {points} points; it may have"
                f" {MOST_POINTS}\n  fix: give fewer values, or method: random with a run_cap"
            )
        return min(points, trials or sweep.trials or points)
    count = trials or sweep.trials
    if count is None:
        raise InputError(
            f"{sweep.place('method')}: method: {sweep.method} never ends by itself"
            "\n  fix: give run_cap in the file, or --trials N"
        )
    return count


def _refuse_metric(sweep: SweepFile, config: Config) -> None:
    known = RECIPE_METRICS.get(config.recipe)
    if known is None:
        return
    stems = [name.rstrip("*") for name in known if name.endswith("*")]
    names = [*(name for name in known if "*" not in name), *MEANINGS]
    if sweep.metric in names or any(sweep.metric.startswith(stem) for stem in stems):
        return
    near = nearest(sweep.metric, names)
    hint = f"did you mean {near}?" if near else f"there is {', '.join(known)}"
    raise InputError(
        f"{sweep.place('metric')}: metric.name: {sweep.metric}: {config.recipe} does not measure"
        f" it; {hint}"
    )


def _try_values(sweep: SweepFile, resolve: Resolver) -> None:
    """Every choice, and both ends of every range, must be values of their keys."""
    probes = {one.key: one.probes() for one in sweep.parameters}
    for position in range(max(len(listed) for listed in probes.values())):
        values = {key: listed[min(position, len(listed) - 1)] for key, listed in probes.items()}
        resolve(on_top=[sweep.layer, own_parameters(sweep, values)])


def _key(sweep: SweepFile, config: Config) -> dict[str, str]:
    """What trials of one sweep have in common, hashed part by part."""
    swept = {one.key for one in sweep.parameters}
    values = flatten(config.model_dump(mode="json"))
    counted = {k: v for k, v in values.items() if k not in swept and not is_free(k)}
    space: Sequence[Any] = [
        [one.key, one.draw, one.texts(), one.low, one.high, one.q, repr(one.bell), one.weights]
        for one in sweep.parameters
    ]
    parts = {
        "method": [sweep.method, sweep.seed],
        "metric": [sweep.metric, sweep.maximize],
        "parameters": space,
        "saccade": list(sweep.command) if sweep.command else counted,
    }
    return {name: _digest(content) for name, content in parts.items()}


def _digest(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]

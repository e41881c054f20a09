"""`saccade ablate`: every variant of a recipe x every seed, trained, scored, put side by side.

An `Ablation` and a configuration flow in; `runs/ablate-NAME/VARIANT/seed-S/` (ordinary runs) and
`ablation.json|csv|md` flow out. Trials run one after another, each in a process of its own
(`worker.py`). A trial is finished when its `trial.json` carries the key of today's configuration
and data; finished ones are skipped, an interrupted one continues from its checkpoint, so the same
command continues after Ctrl+C, a kill or a lost machine. What decides is the configuration and the
data, never the code. Left out: several trials at once.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from saccade.config.errors import InputError, OutsideError, Preempted, SaccadeError, of_exit_code
from saccade.config.layers import Layer, Value
from saccade.config.resolve import Resolved, flatten
from saccade.config.schema import Config
from saccade.data.sources import open_source
from saccade.pipeline.ablation_table import summarise, write_reports
from saccade.pipeline.programs import own_environment
from saccade.pipeline.variants import GRID, Ablation, Variant
from saccade.pipeline.worker import job_of
from saccade.training.guards import StopRequest
from saccade.training.progress import duration
from saccade.training.rundir import FREE_KEYS, RunDir, write_atomically

UNKEYED = (
    *(key for key in FREE_KEYS if key not in ("data.eval", "eval")),
    "eval.arms", "eval.seeds", "eval.batch_size",
)  # fmt: skip
"""Keys and sections that move neither the weights nor the scores of a trial."""
START_SECONDS = 10.0
"""What starting a process costs, roughly: importing, loading the base."""
POLL_SECONDS = 0.1
RESULT = "trial.json"


class Resolver(Protocol):
    """`resolve` with recipe, overrides and files already given."""

    def __call__(self, *, on_top: Sequence[Layer]) -> Resolved: ...


@dataclass(frozen=True)
class Trial:
    """One variant with one seed; `key` names everything its scores depend on."""

    variant: Variant
    seed: int
    resolved: Resolved
    key: str

    @property
    def run(self) -> RunDir:
        return RunDir.of(self.resolved.config)

    def result(self) -> dict[str, Any] | None:
        """What was found, or None while it is not finished under this configuration."""
        with suppress(FileNotFoundError, ValueError):
            stored = json.loads((self.run.path / RESULT).read_text("utf-8"))
            if stored.get("key") == self.key:
                return stored
        return None


@dataclass(frozen=True)
class Plan:
    """What an ablation consists of: all trials, and the variants asked for this time."""

    ablation: Ablation
    name: str
    folder: Path
    seeds: tuple[int, ...]
    trials: tuple[Trial, ...]
    chosen: tuple[str, ...]

    def missing(self) -> list[Trial]:
        """Trials that are asked for and not finished."""
        return [t for t in self.trials if t.variant.name in self.chosen and t.result() is None]

    def summary(self) -> dict[str, Any]:
        """Everything that is finished so far, as plain data."""
        results = {(t.variant.name, t.seed): t.result() for t in self.trials}
        finished = {place: found for place, found in results.items() if found is not None}
        return summarise(self.ablation, name=self.name, seeds=self.seeds, results=finished)


def plan_ablation(
    ablation: Ablation,
    *,
    resolve: Resolver,
    seeds: Sequence[int] = (),
    only: Sequence[str] = (),
    prefix: str = "ablate",
) -> Plan:
    """Resolve every variant and seed; raises InputError before anything is trained.

    `seeds` default to the configured `run.seed`, `only` (variants or groups) to all; `prefix`
    begins the name of the folder.
    """
    base = resolve(on_top=[]).config
    if base.recipe != ablation.recipe:
        raise InputError(
            f"{ablation.shown} varies the recipe {ablation.recipe}, not {base.recipe}"
            "\n  fix: name that recipe, or give another file with --file"
        )
    name = "-".join(filter(None, (base.run.name or base.recipe, ablation.own_name)))
    folder = base.run.root / f"{prefix}-{name}"
    ablation = _without_degenerate_points(ablation, resolve)
    chosen = ablation.choose(only)
    seeds = tuple(dict.fromkeys(seeds)) or (base.run.seed,)
    prints: dict[str, str] = {}

    def trial(variant: Variant, seed: int) -> Trial:
        place = f"ablation {name}"
        own = Layer()
        own.put("run.root", str(folder / variant.name), where=place)
        own.put("run.name", f"seed-{seed}", where=place)
        own.values["run.seed"] = Value(value=seed, where=place)
        resolved = resolve(on_top=[variant.layer, own])
        return Trial(variant, seed, resolved, trial_key(resolved.config, prints=prints))

    trials = tuple(trial(variant, seed) for seed in seeds for variant in ablation.variants)
    _refuse_twins(ablation, trials[: len(ablation.variants)])
    for one in trials:
        _refuse_changed_data(one, prints=prints)
    return Plan(ablation, name, folder, seeds, trials, tuple(chosen))


def _without_degenerate_points(ablation: Ablation, resolve: Resolver) -> Ablation:
    """Drop points of a grid that come to the same configuration as a variant before them."""
    if not any(GRID in variant.groups for variant in ablation.variants):
        return ablation
    kept: list[Variant] = []
    seen: set[str] = set()
    for variant in ablation.variants:
        config = resolve(on_top=[variant.layer]).config
        text = json.dumps(config.model_dump(mode="json"), sort_keys=True)
        if GRID not in variant.groups or text not in seen:
            kept.append(variant)
        seen.add(text)
    return replace(ablation, variants=tuple(kept))


def trial_key(config: Config, *, prints: dict[str, str] | None = None) -> str:
    """Hash of what a trial's scores depend on; `prints` keeps fingerprints between calls."""
    values = flatten(config.model_dump(mode="json"))
    counted = {
        key: value
        for key, value in values.items()
        if not any(key == free or key.startswith(free + ".") for free in UNKEYED)
    }
    training = config.training
    counted["samples per step"] = training.batch_size * training.accumulation
    known = {} if prints is None else prints
    for split in ("train", "eval"):
        counted[f"fingerprint of {split}"] = _fingerprint(config, split, known)
    text = json.dumps(counted, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _fingerprint(config: Config, split: str, known: dict[str, str]) -> str:
    source = getattr(config.data, split)
    name = source.model_dump_json()
    if name not in known:
        known[name] = open_source(source).fingerprint()
    return known[name]


def _refuse_twins(ablation: Ablation, trials: Sequence[Trial]) -> None:
    seen: dict[str, str] = {}
    for trial in trials:
        values = trial.resolved.config.model_dump(mode="json", exclude={"run"})
        text = json.dumps(values, sort_keys=True)
        if text in seen:
            settings = ", ".join(trial.variant.settings()) or "nothing"
            raise InputError(
                f"{ablation.shown}: {seen[text]} and {trial.variant.name} are the same"
                f" configuration here ({trial.variant.name} sets {settings})"
                "\n  fix: leave out the override that makes them equal"
            )
        seen[text] = trial.variant.name


def _refuse_changed_data(trial: Trial, *, prints: dict[str, str]) -> None:
    """A run trained on other data must not be taken for this one."""
    earlier = (trial.run.provenance() or {}).get("data", {}).get("train")
    now = _fingerprint(trial.resolved.config, "train", prints)
    if earlier is not None and earlier != now:
        raise InputError(
            f"{trial.run.path}: the training data changed since this run was started"
            f" (data.train: {earlier} -> {now})"
            "\n  fix: restore the data, or start another ablation with run.name=NAME"
        )


def describe(plan: Plan) -> str:
    """What is going to be done, and about how long it takes."""
    missing, config = plan.missing(), plan.trials[0].resolved.config
    asked = [trial for trial in plan.trials if trial.variant.name in plan.chosen]
    per_step = config.training.batch_size * config.training.accumulation
    text = (
        f"{len(plan.chosen)} variants x {len(plan.seeds)} seed(s) = {len(asked)} trials,"
        f" {len(asked) - len(missing)} finished; each {config.training.steps} steps x {per_step}"
        f" samples, then {config.eval.samples} questions at {len(config.eval.keep)} budgets"
    )
    if not missing:
        return text
    seconds = seconds_per_trial(plan)
    known = "time is known after the first trial"
    if seconds is not None:
        known = f"about {duration(seconds)} each, {duration(seconds * len(missing))} in all"
    return f"{text}; {known}"


def seconds_per_trial(plan: Plan) -> float | None:
    """Wall time of one trial: the mean of finished ones, else the file's own measurement."""
    found = [result["wall_seconds"] for t in plan.trials if (result := t.result()) is not None]
    if found:
        return sum(found) / len(found)
    if plan.ablation.seconds_per_sample is None:
        return None
    config = plan.trials[0].resolved.config
    trained = config.training.steps * config.training.batch_size * config.training.accumulation
    scored = config.eval.samples * len(config.eval.keep)
    return START_SECONDS + plan.ablation.seconds_per_sample * (trained + scored)


def run_ablation(plan: Plan, *, say: Callable[[str], None]) -> dict[str, Any]:
    """Run what is missing, one trial after another; returns the summary of all finished ones.

    Raises Preempted (143) after a stop request, the trial's own error for a mistake of the user or
    something missing, and SaccadeError at the end when trials diverged (the others are run).
    """
    _make(plan.folder)
    failed: list[str] = []
    missing = plan.missing()
    with StopRequest().watching() as stop, RunDir(plan.folder).lock():
        for number, trial in enumerate(missing, start=1):
            say(_title(plan, trial, number=number, of=len(missing)))
            try:
                _run_trial(trial, stop=stop)
            except TrialFailed as error:
                failed.append(str(error))
                say(f"failed: {error}")
            write_reports(plan.summary(), folder=plan.folder)
        summary = plan.summary()
        write_reports(summary, folder=plan.folder)
    if failed:
        lines = "".join(f"\n  {line}" for line in failed)
        raise SaccadeError(f"{plan.folder}: {len(failed)} trial(s) failed:{lines}")
    return summary


class TrialFailed(SaccadeError):
    """One trial diverged; the others need not stop for it."""


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutsideError(
            f"{folder}: cannot be made ({error.strerror or error})"
            "\n  fix: free or unlock the folder, or choose another with run.root=FOLDER"
        ) from error


def _title(plan: Plan, trial: Trial, *, number: int, of: int) -> str:
    settings = ", ".join(f"{k}={v}" for k, v in trial.variant.settings().items())
    seconds = seconds_per_trial(plan)
    left = "" if seconds is None else f", about {duration(seconds * (of - number + 1))} to go"
    name = f"{trial.variant.name}, seed {trial.seed}"
    return f"[{number}/{of}{left}] {name}{': ' + settings if settings else ''}"


def _run_trial(trial: Trial, *, stop: StopRequest) -> None:
    started = time.monotonic()
    code, answer = run_in_own_process(trial.resolved, stop=stop)
    where = f"{trial.variant.name}, seed {trial.seed}"
    if "result" in answer:
        found = answer["result"]
        wall = max(time.monotonic() - started, found["train_seconds"])
        about = {"v": 1, "key": trial.key, "variant": trial.variant.name, "seed": trial.seed}
        content = {**about, "wall_seconds": round(wall, 1), **found}
        write_atomically(trial.run.path / RESULT, json.dumps(content) + "\n")
        return
    if stop or code == Preempted.exit_code:
        raise Preempted(f"{where}: stopped; the same command continues where it was")
    message = answer.get("error", f"the process ended with {code}; its messages stand above")
    kind = of_exit_code(code) or (TrialFailed if "error" in answer else SaccadeError)
    raise kind(f"{where}: {message}")


def run_in_own_process(resolved: Resolved, *, stop: StopRequest) -> tuple[int, dict[str, Any]]:
    """Train and score one configuration in another process; its exit code and its answer.

    A stop request becomes a SIGTERM there (it saves); a second Ctrl+C kills it.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8") as answers:
        child = subprocess.Popen(
            [sys.executable, "-m", "saccade.pipeline.worker"],
            stdin=subprocess.PIPE,
            stdout=answers,
            env=own_environment(),
            process_group=0,  # Ctrl+C comes here first; it is passed on once, as SIGTERM
            text=True,
        )
        stop.on_exit = child.kill
        assert child.stdin is not None
        try:
            with suppress(BrokenPipeError):
                child.stdin.write(json.dumps(job_of(resolved)) + "\n")
                child.stdin.flush()
            code = _wait(child, stop=stop)
        finally:
            child.kill()
            with suppress(BrokenPipeError):
                child.stdin.close()
            child.wait()
        answers.seek(0)
        lines = answers.read().splitlines()
    return code, json.loads(lines[-1]) if lines else {}


def _wait(child: subprocess.Popen[str], *, stop: StopRequest) -> int:
    told = False
    while True:
        if stop and not told:
            child.terminate()
            told = True
        with suppress(subprocess.TimeoutExpired):
            return child.wait(timeout=POLL_SECONDS)

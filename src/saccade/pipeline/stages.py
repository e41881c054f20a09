"""The kinds of stages: one table, kind -> what it needs, gives, measures, and the function.

A `StageContext` (own folder, inputs as files, the resolved configuration) flows in, a `StageResult`
(metrics, outputs as files) flows out. A new kind is one function and one line in `KINDS`. A kind
must continue when it is called again with the same folder; hashing, locks, retries, gates and
storing are `execute.py`'s. No torch is imported before a stage works.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from saccade.config.errors import OutsideError, Preempted, SaccadeError
from saccade.config.layers import Layer, Value
from saccade.config.resolve import Resolved, resolve
from saccade.config.schema import Config
from saccade.evaluation.dataset_scores import MEANINGS
from saccade.evaluation.load import Progress
from saccade.pipeline.deploy import deploy_stage
from saccade.pipeline.graph import Stage
from saccade.pipeline.programs import not_started
from saccade.pipeline.stage_data import data_stage
from saccade.training.guards import StopRequest
from saccade.training.rundir import MEASURING_KEYS, RunDir

POLL_SECONDS = 0.05
RUN_LEAVES_OUT = (
    "checkpoints", "inputs", "wandb", "stage.json", "spent.json", "failed.json", "launch.yaml",
)  # fmt: skip
"""What of a run directory is not part of the artifact `run`."""
TRAINING_CODE = ("config", "data", "models", "scoring", "training")
MEASURING_CODE = (*TRAINING_CODE, "evaluation")


class StageFailed(SaccadeError):
    """A stage did not do what it should; the message is for the user."""


@dataclass(frozen=True)
class StageContext:
    """All a stage's function may use.

    `resolved` is there for kinds that have a configuration of their own, `layer` is what `set:`
    says, `outputs` are the places where a command writes; `lock_fd` is handed to other programs,
    so that an orphan of a killed pipeline keeps others out of its folder.
    """

    stage: Stage
    folder: Path
    inputs: Mapping[str, Path]
    stop: StopRequest
    say: Callable[[str], None]
    progress: Progress
    console: Console
    resolved: Resolved | None = None
    layer: Layer = field(default_factory=Layer)
    command: tuple[str, ...] = ()
    outputs: Mapping[str, Path] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    lock_fd: int | None = None

    def stoppable(self, what: str, done: int, total: int) -> None:
        """Show progress; raises Preempted after a stop request."""
        if self.stop:
            raise Preempted(f"{self.stage.name}: stopped; the same command continues where it was")
        self.progress(what, done, total)


@dataclass(frozen=True)
class StageResult:
    """What a stage found and made: numbers, and a file or folder for each output."""

    metrics: Mapping[str, float]
    outputs: Mapping[str, Path]


@dataclass(frozen=True)
class Kind:
    """What the checks need to know of a kind before anything runs.

    `inputs` must be given; `outputs` is None where the file declares them; `metrics` are names or
    patterns; `code` are the packages whose change makes a finished stage run again. A `configured`
    kind resolves a configuration of its own; of the others `set:` may name the `settable` keys.
    `leave_out` says what of an output's folder is not stored.
    """

    work: Callable[[StageContext], StageResult]
    about: str
    code: tuple[str, ...]
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] | None = ()
    metrics: tuple[str, ...] = ()
    configured: bool = False
    settable: tuple[str, ...] = ()
    has_command: bool = False
    leave_out: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


RECIPE_METRICS = {
    "relevance": ("loss", "accuracy", "accuracy_*"),
    "pretrain": (
        "loss",
        "recall_at_1",
        "recall_at_1_image",
        "recall_over_chance",
        "caption_loss",
        "caption_accuracy",
    ),
    "tiny-base": ("loss", "accuracy", "accuracy_*"),
    "sft": ("loss", "accuracy", "accuracy_*"),
    "dpo": ("loss", "accuracy", "accuracy_*", "preference_*"),
}
"""Final metrics of each recipe; of a recipe that is not here any name is believed."""


def train_stage(context: StageContext) -> StageResult:
    """Train or continue a run in the stage's folder: any recipe."""
    from saccade.training.run import train

    assert context.resolved is not None
    metrics = train(context.resolved, console=context.console)
    run = RunDir.of(context.resolved.config)
    model = run.path / "model"
    return StageResult(_numbers(metrics), {"model": model, "run": run.path})


def evaluate_stage(context: StageContext) -> StageResult:
    """Score a run on its held-out samples."""
    from saccade.evaluation.run import evaluate_run, evaluation_file

    run = opened(context)
    keep = run.config().selector.keep if context.layer.values else None
    result = evaluate_run(run, keep=keep, progress=context.stoppable)
    metrics = {name: result[name] for name in ("accuracy", "majority", "samples")}
    metrics |= result["scores"]
    metrics |= {f"accuracy_{kind}": found["accuracy"] for kind, found in result["kinds"].items()}
    if result["metrics"] != ["accuracy"]:
        metrics |= {f"{name}_accuracy": result["accuracy"] for name in result["metrics"]}
    outputs = {
        "run": run.path,
        "evaluation": evaluation_file(run),
        "predictions": run.predictions_file,
    }
    return StageResult(_numbers(metrics), outputs)


def compare_stage(context: StageContext) -> StageResult:
    """Measure the trained selector and every baseline at equal numbers of visual tokens."""
    from saccade.evaluation.compare import compare_run, comparison_file

    run = opened(context)
    result = compare_run(run, progress=context.stoppable)
    metrics = {
        f"{row['arm']}@{row['budget']}": row["accuracy"]
        for row in result["rows"]
        if row.get("matched", "tokens") == "tokens"
    }
    return StageResult(_numbers(metrics), {"run": run.path, "comparison": comparison_file(run)})


def report_stage(context: StageContext) -> StageResult:
    """Write a run's self-contained report.html."""
    from saccade.microscope.report import write_report

    path = write_report(opened(context), progress=context.stoppable)
    return StageResult({}, {"report": path})


def ablate_stage(context: StageContext) -> StageResult:
    """Train and score every variant of a recipe; continues with the trials that are missing."""
    from saccade.pipeline.ablate import plan_ablation, run_ablation
    from saccade.pipeline.variants import find_ablation

    assert context.resolved is not None
    base = context.resolved
    own = Layer()
    own.put("run.root", str(context.folder), where=context.stage.where)

    def resolver(*, on_top: Sequence[Layer]) -> Resolved:
        return resolve_again(base, on_top=[own, *on_top])

    plan = plan_ablation(find_ablation(base.config.recipe), resolve=resolver)
    summary = run_ablation(plan, say=context.say)
    metrics = {
        f"{row['variant']}@{one['budget']}": one["accuracy"]
        for row in summary["variants"]
        for one in row["budgets"]
    }
    files = {"table": plan.folder / "ablation.md", "results": plan.folder / "ablation.json"}
    return StageResult(_numbers(metrics), files)


def command_stage(context: StageContext) -> StageResult:
    """Run a program; it writes its outputs, and its metrics to `${metrics}` as JSON."""
    for place in context.outputs.values():
        place.parent.mkdir(parents=True, exist_ok=True)
    context.say(f"{context.stage.name}: {' '.join(context.command)}")
    code = run_command(context.command, context=context)
    if (code != 0 and context.stop) or code == Preempted.exit_code:
        raise Preempted(f"{context.stage.name}: stopped; the same command continues where it was")
    message = f"{context.stage.where}: {context.stage.name}: {context.command[0]} ended with {code}"
    if code == OutsideError.exit_code:
        raise OutsideError(f"{message} (something is missing outside); its messages stand above")
    if code != 0:
        raise StageFailed(f"{message}; its messages stand above")
    return StageResult(_command_metrics(context), context.outputs)


def run_command(words: Sequence[str], *, context: StageContext) -> int:
    """Run a program to its end; a stop request becomes one SIGTERM there. Returns its exit code."""
    try:
        child = subprocess.Popen(
            list(words),
            stdin=subprocess.DEVNULL,
            stdout=2,  # stdout is for results
            env=dict(context.env),
            pass_fds=() if context.lock_fd is None else (context.lock_fd,),
            process_group=0,  # Ctrl+C comes here first; it is passed on once, as SIGTERM
        )
    except OSError as error:
        where = f"{context.stage.where}: {context.stage.name}"
        raise not_started(error, where=where, program=words[0]) from error
    context.stop.on_exit = child.kill
    told = False
    try:
        while True:
            if context.stop and not told:
                child.terminate()
                told = True
            with suppress(subprocess.TimeoutExpired):
                return child.wait(timeout=POLL_SECONDS)
    finally:
        child.kill()
        child.wait()
        context.stop.on_exit = lambda: None


def opened(context: StageContext) -> RunDir:
    """The run given as input, a private copy, with `set:` on top of its configuration."""
    run = RunDir.open(context.inputs["run"])
    if not (context.layer.values or context.layer.choices):
        return run
    changed = resolve(file=run.config_file, on_top=[context.layer]).config

    class ChangedRun(RunDir):
        def config(self) -> Config:
            return changed

    return ChangedRun(run.path)


def resolve_again(base: Resolved, *, on_top: Sequence[Layer]) -> Resolved:
    """A resolved configuration with more layers on top; its own values come from its YAML."""
    layer = Layer(recipe=Value(base.recipe, "pipeline"))
    for key, value in base.config.model_dump(mode="json").items():
        if key != "recipe":
            layer.put(key, value, where="pipeline")
    return resolve(base.recipe, on_top=[layer, *on_top])


def _command_metrics(context: StageContext) -> dict[str, float]:
    path = context.folder / "metrics.json"
    if not path.is_file():
        return {}
    try:
        return _numbers(json.loads(path.read_text("utf-8")))
    except (ValueError, AttributeError) as error:
        raise StageFailed(
            f"{path}: expected a JSON object of numbers ({error})"
            f"\n  fix: mend what {context.stage.name} writes to ${{metrics}}"
        ) from error


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in metrics.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }


KINDS: dict[str, Kind] = {
    "data": Kind(
        data_stage, "check every row of the data", ("config", "data"),
        outputs=("report",), configured=True, metrics=("rows", "eval_rows", "broken", "blind"),
    ),
    "train": Kind(
        train_stage, "train or continue a run of any recipe", TRAINING_CODE,
        outputs=("model", "run"), configured=True, leave_out={"run": RUN_LEAVES_OUT},
    ),
    "evaluate": Kind(
        evaluate_stage, "score a run on its held-out samples", MEASURING_CODE,
        inputs=("run",), outputs=("run", "evaluation", "predictions"), settable=MEASURING_KEYS,
        metrics=("accuracy", "majority", "samples", *MEANINGS, "accuracy_*", "*_accuracy"),
    ),
    "compare": Kind(
        compare_stage, "measure the selector and every baseline at equal tokens", MEASURING_CODE,
        inputs=("run",), outputs=("run", "comparison"), settable=MEASURING_KEYS,
        metrics=("*@*",),
    ),
    "report": Kind(
        report_stage, "write report.html", (*MEASURING_CODE, "microscope"),
        inputs=("run",), outputs=("report",), settable=MEASURING_KEYS,
    ),
    "ablate": Kind(
        ablate_stage, "train and score every variant of a recipe", MEASURING_CODE,
        outputs=("table", "results"), configured=True, metrics=("*@*",),
    ),
    "deploy": Kind(
        deploy_stage, "write a Space folder that answers in a browser",
        (*MEASURING_CODE, "assets/space", "pipeline"), inputs=("run",), outputs=("space", "model"),
        settable=MEASURING_KEYS, metrics=("drift", "answers_changed", "samples"),
    ),
    "command": Kind(
        command_stage, "run a program", (), outputs=None, has_command=True,
    ),
}  # fmt: skip
"""Every kind that `uses:` may name."""

"""From a configuration to a finished run directory: train, resume, evaluate, finish.

A resolved configuration flows in; `runs/NAME/` and the final metrics flow out. Everything a user
can get wrong (folder, lock, changed values) is checked before torch is imported. The same call
continues an interrupted run and does nothing for a finished one. What is trained is the recipe's,
how a step works is the trainer's.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from saccade.config.errors import FULL, InputError, Preempted
from saccade.config.resolve import Resolved
from saccade.config.schema import Config
from saccade.data.sources import SampleSource, leave_out_broken, open_source
from saccade.training.checkpoints import (
    clean_leftovers,
    disk_full,
    newest_good,
    set_aside,
)
from saccade.training.events import EventLog, SilentLog, read_events, step_series
from saccade.training.grounding_phases import runs_of
from saccade.training.guards import StopRequest
from saccade.training.progress import Progress, shown
from saccade.training.provenance import provenance
from saccade.training.rundir import RunDir, write_atomically
from saccade.training.survival import Survival
from saccade.training.threads import choose_threads
from saccade.training.tracking import NullSink, open_sink

if TYPE_CHECKING:
    from saccade.training.callbacks import Boundary, Watchers
    from saccade.training.memory_plan import Plan
    from saccade.training.trainers import Recipe, SaccadeTrainer

RECIPES = {
    "pretrain": "saccade.training.recipes.pretrain:PretrainRecipe",
    "relevance": "saccade.training.recipes.relevance:RelevanceRecipe",
    "tiny-base": "saccade.training.recipes.tiny_base:TinyBaseRecipe",
    "sft": "saccade.training.recipes.sft:SftRecipe",
    "dpo": "saccade.training.recipes.dpo:DpoRecipe",
    "recursion": "saccade.training.recipes.recursion:RecursionRecipe",
    "thoughts": "saccade.training.recipes.thoughts:ThoughtsRecipe",
    "grounding": "saccade.training.recipes.grounding:open_phase",
}
"""Where each recipe lives; imported only when it is trained."""

Changed = Mapping[str, tuple[Any, Any]]


@dataclass(frozen=True)
class Process:
    """This process among those that train together (as torchrun numbers them)."""

    rank: int
    world_size: int
    local_world_size: int

    @classmethod
    def current(cls) -> Process:
        """Read torchrun's environment; a process started without it is alone."""
        number = {name: int(os.environ.get(name, default)) for name, default in (
            ("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_WORLD_SIZE", "1"))}  # fmt: skip
        return cls(number["RANK"], number["WORLD_SIZE"], number["LOCAL_WORLD_SIZE"])


def train(resolved: Resolved, *, console: Console | None = None) -> dict[str, Any]:
    """Train or continue a run, and those it stands on first; returns its final metrics.

    Raises InputError (2) and OutsideError (3) with a message for the user, TrainingDiverged (1)
    when numbers stop being finite, and Preempted (143) after saving on SIGTERM or Ctrl+C.
    """
    metrics: dict[str, Any] = {}
    for one in runs_of(resolved):
        _together()
        metrics = run_training(one, make_recipe=load_recipe, open_eval=open_source, console=console)
    return metrics


def _together() -> None:
    """Wait for the first process to export a run that the next one stands on."""
    if Process.current().world_size > 1:
        import torch.distributed as dist

        if dist.is_initialized():
            dist.barrier()


def load_recipe(config: Config) -> Recipe:
    """Import and build the recipe a configuration names."""
    module, _, name = RECIPES[config.recipe].partition(":")
    return getattr(importlib.import_module(module), name)(config)


def plan_training(resolved: Resolved) -> tuple[dict[str, Any], list[str]]:
    """Count tokens and measure memory as `train` would, and train nothing; writes no file.

    Returns the plan as values and as lines for people.
    """
    import torch

    from saccade.training.memory_plan import make_plan

    config, process = resolved.config, Process.current()
    torch.set_num_threads(choose_threads(config.training.threads, earlier=None))
    recipe = load_recipe(config)
    plan = make_plan(recipe, recipe.train_source(), config=config, world_size=process.world_size)
    return plan.as_dict(), plan.lines(batch_size=config.training.batch_size)


def run_training(
    resolved: Resolved,
    *,
    make_recipe: Callable[[Config], Recipe],
    open_eval: Callable[[Any], SampleSource],
    console: Console | None,
) -> dict[str, Any]:
    """`train` with the recipe and the evaluation source supplied by the caller."""
    process = Process.current()
    console = console or Console(stderr=True)
    run = RunDir.of(resolved.config)
    if process.rank == 0:
        run.prepare()
    with StopRequest().watching() as stop, run.lock() if process.rank == 0 else nullcontext():
        survival = Survival(
            resolved.config, run=run, stop=stop, console=console, first=process.rank == 0
        )
        survival.fetch()
        changed = run.adopt(resolved) if process.rank == 0 else {}
        done = survival.done()
        if done is not None:
            if process.rank == 0:
                console.print(f"{run.path}: already finished at step {done['target_step']}")
                survival.deliver(step=done["target_step"])
            return done["metrics"]
        job = _Job(resolved, run, process, stop, console, changed, make_recipe, open_eval, survival)
        return job.execute()


@dataclass
class _Job:
    """One unfinished run in one process, from the lock to DONE."""

    resolved: Resolved
    run: RunDir
    process: Process
    stop: StopRequest
    console: Console
    changed: Changed
    make_recipe: Callable[[Config], Recipe]
    open_eval: Callable[[Any], SampleSource]
    survival: Survival

    @property
    def config(self) -> Config:
        return self.resolved.config

    def execute(self) -> dict[str, Any]:
        """Train with watchers attached; whatever goes wrong is logged before it is raised."""
        watchers = self._watchers()
        with _shown_by_first(watchers.progress, self.console, self.process):
            self.stop.on_exit = lambda: self.console.show_cursor(True)
            exit_code = 1
            self.survival.watch(watchers)
            try:
                metrics = self._train(watchers)
                self.survival.finish(watchers, step=self.config.training.steps)
                exit_code = 0
            except Preempted:
                exit_code = Preempted.exit_code
                raise
            except BaseException as error:
                self._log_failure(watchers, error)
                if isinstance(error, OSError) and error.errno in FULL:
                    raise disk_full(self.run.checkpoints, error) from error
                raise
            finally:
                self.survival.close(watchers, exit_code=exit_code)
                watchers.sink.close(exit_code=exit_code)
        self._say(f"{self.run.path}: finished, {_listed(metrics)}")
        return metrics

    def _watchers(self) -> Watchers:
        from saccade.training.callbacks import Watchers

        progress = Progress(steps=self.config.training.steps)
        if self.process.rank:
            return Watchers(log=SilentLog(), progress=progress, sink=NullSink(), say=_silence)
        log = EventLog(self.run.events_file)
        watchers = Watchers(log=log, progress=progress, sink=NullSink(), say=self._say)
        watchers.sink = open_sink(self.config, run=self.run, warn=watchers.warn)
        return watchers

    def _train(self, watchers: Watchers) -> dict[str, Any]:
        import torch
        from transformers import set_seed

        threads = self._threads()
        torch.set_num_threads(threads)
        checkpoint = self._checkpoint(watchers)
        set_seed(self.config.run.seed)
        watchers.progress.begin("loading")
        recipe = self.make_recipe(self.config)
        source = self._without_broken(recipe.train_source(), watchers)
        self._record_origin(source, threads=threads)
        plan = self._plan(recipe, source, watchers)
        trainer = self._trainer(recipe, source, watchers)
        checkpoint = self.survival.bring_here(trainer.chosen_by_first(checkpoint))
        self._announce(trainer, watchers, plan=plan, threads=threads, checkpoint=checkpoint)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        return self._finish(trainer, watchers)

    def _threads(self) -> int:
        earlier = (self.run.provenance() or {}).get("threads")
        threads = choose_threads(self.config.training.threads, earlier=earlier)
        return max(1, threads // self.process.local_world_size) if earlier is None else threads

    def _checkpoint(self, watchers: Watchers) -> Path | None:
        """The checkpoint to continue from; damaged newer ones are reported and set aside."""
        if self.process.rank:
            return None
        clean_leftovers(self.run.checkpoints)
        found = newest_good(self.run.checkpoints)
        set_aside(self.run.checkpoints, found.damaged)
        instead = found.folder.name if found.folder else "the beginning"
        for damage in found.damaged:
            watchers.warn(f"damaged checkpoint {damage}; continuing from {instead}")
        return found.folder

    def _without_broken(self, source: SampleSource, watchers: Watchers) -> SampleSource:
        """Where broken samples are skipped, a source that knows them beforehand leaves them out."""
        if self.config.data.on_error == "skip":
            for problem in leave_out_broken(source):
                watchers.warn(problem)
        return source

    def _record_origin(self, source: SampleSource, *, threads: int) -> None:
        """Write provenance once; later starts must see the same training data."""
        if self.process.rank:
            return
        now = {"train": source.fingerprint()}
        earlier = self.run.provenance()
        if earlier is None:
            content = provenance(
                self.resolved, fingerprints=now, threads=threads,
                world_size=self.process.world_size,
            )  # fmt: skip
            write_atomically(self.run.provenance_file, _json(content))
        elif earlier["data"] != now:
            raise InputError(
                f"{self.run.path}: the training data changed since this run was started"
                f" (data.train: {earlier['data']['train']} -> {now['train']})"
                "\n  fix: restore the data, or start another run with run.name=NAME"
            )

    def _plan(self, recipe: Recipe, source: SampleSource, watchers: Watchers) -> Plan | None:
        """Count and measure on the first process, before the base may be shared out."""
        from saccade.training.memory_plan import make_plan

        if self.process.rank:
            return None
        watchers.progress.begin("planning")
        return make_plan(recipe, source, config=self.config, world_size=self.process.world_size)

    def _trainer(self, recipe: Recipe, source: SampleSource, watchers: Watchers) -> SaccadeTrainer:
        from saccade.training.callbacks import Boundary
        from saccade.training.trainers import SaccadeTrainer

        limit = self.config.training.eval_samples
        boundary = Boundary(
            self.config,
            run=self.run,
            watchers=watchers,
            stop=self.stop,
            eval_source=lambda: self._without_broken(
                self.open_eval(self.config.data.eval), watchers
            ),
            evaluate=lambda source: recipe.evaluate(source, limit=limit),
            evaluates=self.process.rank == 0 or self.config.training.parallel == "fsdp",
        )
        return SaccadeTrainer(
            recipe, config=self.config, source=source, run=self.run, boundary=boundary
        )

    def _announce(
        self,
        trainer: SaccadeTrainer,
        watchers: Watchers,
        *,
        plan: Plan | None,
        threads: int,
        checkpoint: Path | None,
    ) -> None:
        log, steps = watchers.log, self.config.training.steps
        earlier = self.process.rank == 0 and read_events(self.run.events_file)
        if earlier and any(event["type"] == "run_start" for event in earlier):
            step = int(checkpoint.name.removeprefix("step-")) if checkpoint else 0
            name = checkpoint.name if checkpoint else None
            log.append("resume", step=step, checkpoint=name, changed=self.changed)
            watchers.say(f"continuing from step {step}")
        else:
            log.append(
                "run_start", recipe=self.config.recipe, steps=steps, threads=threads,
                world_size=self.process.world_size, device=str(trainer.args.device),
            )  # fmt: skip
        groups = {name: _size(group) for name, group in trainer.recipe.groups().items()}
        parameters = list(trainer.recipe.model.parameters())
        trained = _size([one for one in parameters if one.requires_grad])
        log.append(
            "plan",
            samples=len(trainer.source),
            samples_per_step=trainer.share.samples_per_step,
            trainable_parameters=trained,
            parameters=_size(parameters),
            groups=groups,
            **(plan.as_dict() if plan else {}),
        )
        watchers.say(
            f"{self.config.recipe} -> {self.run.path}: {steps} steps x"
            f" {trainer.share.samples_per_step} of {len(trainer.source)} samples,"
            f" {trained:,} trainable parameters, {trainer.args.device}, {threads} CPU thread(s)"
        )
        for line in plan.lines(batch_size=self.config.training.batch_size) if plan else ():
            watchers.say(line)

    def _finish(self, trainer: SaccadeTrainer, watchers: Watchers) -> dict[str, Any]:
        """Evaluate, export, and write DONE last."""
        step, boundary = self.config.training.steps, trainer.boundary
        measured = self._final_evaluation(boundary, step=step) if boundary.evaluates else {}
        if self.process.rank:
            return {}
        losses = step_series(read_events(self.run.events_file))
        metrics = {"loss": losses[-1]["loss"], **measured}
        watchers.progress.begin("exporting")
        trainer.recipe.finish(self.run)
        watchers.log.append("done", step=step, metrics=metrics)
        self.run.finish(step=step, metrics=metrics)
        return metrics

    def _final_evaluation(self, boundary: Boundary, *, step: int) -> dict[str, float]:
        metrics = boundary.evaluation_at(step) or boundary.evaluate(step)
        if metrics is None:
            raise boundary.preempt(step=step)
        return metrics

    def _log_failure(self, watchers: Watchers, error: BaseException) -> None:
        # the disk may be what failed: the error itself must still reach the person
        with suppress(OSError):
            watchers.log.append("failed", message=str(error) or error.__class__.__name__)

    def _say(self, message: str) -> None:
        self.console.print(message, soft_wrap=True, highlight=False, markup=False)


@contextmanager
def _shown_by_first(progress: Progress, console: Console, process: Process) -> Iterator[None]:
    with shown(progress, console) if process.rank == 0 else nullcontext():
        yield


def _silence(message: str) -> None:
    """Say nothing: only the first process speaks."""


def _size(parameters: Sequence[Any]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def _listed(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, default=str) + "\n"

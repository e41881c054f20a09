"""The training loop: a thin subclass of the Hugging Face Trainer that knows no recipe by name.

A recipe (model, collate, loss) and a sample source flow in; updated weights stay in the recipe's
model, and each finished step goes to the step boundary (`callbacks.py`). Taken from the Trainer:
the loop itself, accumulation, data-parallel wrapping, mixed precision, clipping. Replaced: sample
order, the loss and its normalisation, optimizer and schedule, saving and resuming. Its own
logging, saving, evaluation and progress bars are off; nothing is written outside the run
directory.

The loss of a step is a sum over its supervised tokens divided by their number, counted over all
micro-batches and processes beforehand, so 8x1, 4x2 and two processes with 4 agree.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from saccade.config.errors import InputError
from saccade.config.schema import Config
from saccade.data.samples import Sample
from saccade.data.sources import SampleSource
from saccade.training import state
from saccade.training.batches import (
    MicroBatch,
    Share,
    StepBatches,
    count_supervised,
    count_tokens,
    make_loader,
    order_of,
)
from saccade.training.callbacks import Boundary, StepRecord
from saccade.training.checkpoints import Written, write_checkpoint
from saccade.training.gradients import GradientMonitor
from saccade.training.guards import check_finite
from saccade.training.optimizers import make_optimizer, make_schedule
from saccade.training.processes import everywhere
from saccade.training.rundir import RunDir
from saccade.training.sharding import average_gradients, shard_frozen, spread_from_first


class Recipe(Protocol):
    """What is trained, and how its loss comes about."""

    @property
    def model(self) -> nn.Module:
        """The model; `requires_grad` marks what is trained and saved."""
        ...

    def train_source(self) -> SampleSource:
        """Samples to train on; `order_of` says in which order."""
        ...

    def collate(self, samples: list[Sample]) -> dict[str, Any]:
        """Turn samples into a batch with `labels` (-100 is unsupervised); draws nothing random."""
        ...

    def loss(self, batch: dict[str, Any], *, step: int, denominator: Tensor) -> dict[str, Tensor]:
        """`loss` is the sum of token losses / `denominator`; other keys are metrics.

        `step` counts the optimizer steps already done, `denominator` the supervised tokens of the
        whole optimizer step per process (DDP averages over them). Losses of micro-batches are
        added up, so an auxiliary mean must be multiplied by the micro-batch's share of the
        supervised tokens. Metrics are averaged with that same share as weight.
        """
        ...

    def evaluate(self, source: SampleSource, *, limit: int) -> dict[str, float]:
        """Measure on the first `limit` samples, reading them through `source[i]`."""
        ...

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Named parameter groups for the gradient monitor."""
        ...

    def finish(self, run: RunDir) -> None:
        """Export what users load."""
        ...


class LossModule(nn.Module):
    """A recipe as a module: its forward pass is its loss, so that DDP sees the whole of it."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.model = recipe.model
        self._recipe = recipe

    def forward(
        self, batch: dict[str, Any], *, step: int, denominator: Tensor
    ) -> dict[str, Tensor]:
        """Loss with its graph, metrics without theirs."""
        parts = self._recipe.loss(batch, step=step, denominator=denominator)
        return {name: value if name == "loss" else value.detach() for name, value in parts.items()}

    def evaluate(self, source: SampleSource, *, limit: int) -> dict[str, float]:
        """The recipe's evaluation, through this module so that a sharded base is gathered."""
        return self._recipe.evaluate(source, limit=limit)

    def prepare_step(self, batches: list[dict[str, Any]]) -> None:
        """What the recipe wants of all micro-batches before the first, where it wants anything."""
        prepare = getattr(self._recipe, "prepare_step", None)
        if prepare is not None:
            prepare(batches)


@dataclass(frozen=True)
class Totals:
    """What one step added up to, on one process or on all."""

    loss: float
    metrics: dict[str, float]
    tokens: int
    sample_ids: list[str]

    @classmethod
    def of(cls, parts: list[Totals]) -> Totals:
        """The sum over processes."""
        names = sorted({name for part in parts for name in part.metrics})
        return cls(
            loss=sum(part.loss for part in parts),
            metrics={name: sum(part.metrics.get(name, 0.0) for part in parts) for name in names},
            tokens=sum(part.tokens for part in parts),
            sample_ids=[one for part in parts for one in part.sample_ids],
        )


def training_arguments(config: Config, *, folder: Path, device: torch.device) -> TrainingArguments:
    """The Trainer's settings: ours where they matter, off where it would write by itself."""
    training, on_cpu = config.training, device.type == "cpu"
    precision = training.precision
    if precision == "auto":
        precision = "fp32" if on_cpu else "bf16"
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=training.steps,
        per_device_train_batch_size=training.batch_size,
        gradient_accumulation_steps=training.accumulation,
        # infinity keeps the norm and clips nothing; 0 would skip measuring it first
        max_grad_norm=training.max_grad_norm or float("inf"),
        bf16=precision == "bf16",
        use_cpu=on_cpu,
        # naming a backend makes Accelerate expect several processes
        ddp_backend="gloo" if on_cpu and int(os.environ.get("WORLD_SIZE", "1")) > 1 else None,
        seed=config.run.seed,
        remove_unused_columns=False,
        ignore_data_skip=True,
        logging_nan_inf_filter=False,
        save_strategy="no",
        eval_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        log_level="error",
    )
    arguments.device  # noqa: B018  sets the number of devices, which the next line corrects
    # several visible GPUs without torchrun: use one rather than DataParallel's replicas
    arguments._n_gpu = min(1, arguments._n_gpu)
    return arguments


class SaccadeTrainer(Trainer):
    """Trains a recipe; every step ends at the boundary."""

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        recipe: Recipe,
        *,
        config: Config,
        source: SampleSource,
        run: RunDir,
        boundary: Boundary,
    ) -> None:
        device = next(recipe.model.parameters()).device
        module = LossModule(recipe)
        arguments = training_arguments(config, folder=run.path, device=device)
        self.sharded = config.training.parallel == "fsdp" and arguments.world_size > 1
        if self.sharded:
            shard_frozen(module, device=arguments.device, methods=["evaluate", "prepare_step"])
            # the Trainer's name for: placed and reduced by somebody else, so do not wrap it in DDP
            module.is_distributed_loading_by_transformers = True  # type: ignore[assignment]
        super().__init__(model=module, args=arguments, data_collator=recipe.collate)
        self.remove_callback(PrinterCallback)
        self._module = module
        self.recipe, self.config, self.run, self.boundary = recipe, config, run, boundary
        self.source = source
        self.monitor = GradientMonitor(recipe.groups())
        self.share = Share(
            batch_size=config.training.batch_size,
            accumulation=config.training.accumulation,
            world_size=self.args.world_size,
            rank=self.args.process_index,
        )
        if self.sharded:
            limit = config.training.eval_samples
            # every process holds a part of the base: all evaluate the same samples, in step
            boundary.evaluate_with = lambda source: module.evaluate(source, limit=limit)
            boundary.agree = self.agree
        self._clock = time.perf_counter()
        self._micro: list[MicroBatch] = []
        self._parts: dict[str, Tensor] = {}
        self._totals: Totals | None = None

    # data ------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader[Any]:
        """All steps as one long epoch that starts at the current step."""
        order = order_of(self.source, seed=self.config.run.seed)
        # a recipe that keeps samples over several steps says which new ones it takes
        batches = getattr(self.recipe, "batches", StepBatches)(
            order,
            share=self.share,
            steps=self.config.training.steps,
            first_step=lambda: self.state.global_step,
        )
        return make_loader(
            self.source,
            batches=batches,
            collate=self.recipe.collate,
            skip_broken=self.config.data.on_error == "skip",
            workers=self.config.training.workers,
            seed=self.config.run.seed,
        )

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], Tensor]:
        """The micro-batches of one step, and its supervised tokens over all processes."""
        self._micro = [next(epoch_iterator) for _ in range(num_batches)]
        self._parts = defaultdict(lambda: torch.zeros((), device=device))
        enter = getattr(self.recipe, "enter", None)
        if enter is not None:
            self._micro = [
                replace(micro, inputs=enter(micro.inputs, micro=number))
                for number, micro in enumerate(self._micro)
            ]
        inputs = [micro.inputs for micro in self._micro]
        if num_batches * self.args.world_size > 1:  # alone, a batch knows all of its step
            with self.compute_loss_context_manager():
                self._module.prepare_step(inputs)
        supervised = torch.tensor(sum(map(count_supervised, inputs)), device=device)
        return inputs, self._sum(supervised).clamp(min=1)

    # loss ------------------------------------------------------------------------------------

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """This micro-batch's part of the step's loss."""
        assert isinstance(num_items_in_batch, Tensor)  # `get_batch_samples` made it
        # DDP averages gradients over processes, but the loss is already divided by all tokens. The
        # correction goes into the denominator, where a recipe that bounds gradients sees it too.
        world = self.args.world_size
        parts = model(inputs, step=self.state.global_step, denominator=num_items_in_batch / world)
        share = count_supervised(inputs) / num_items_in_batch
        for name, value in parts.items():
            # in float64, so that adding up micro-batches does not depend on how they are cut
            self._parts[name] = self._parts[name] + value.detach().double() * (
                1.0 / world if name == "loss" else share
            )
        return parts["loss"]

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        step = self.state.global_step + 1
        if self.sharded:
            average_gradients(model.parameters())
        resting = getattr(self.recipe, "resting", lambda step: ())(self.state.global_step)
        self.monitor.before_update(step=step, resting=resting)
        norm: Any = super()._clip_grad_norm(model)
        self._totals = Totals.of(everywhere(self._own_part()))
        check_finite(
            step=step,
            loss=self._totals.loss,
            grad_norm=float(norm),
            sample_ids=self._totals.sample_ids,
            good=self.boundary.last_good,
        )
        return norm

    def _own_part(self) -> Totals:
        inputs = [micro.inputs for micro in self._micro]
        values = {name: float(value) for name, value in self._parts.items()}
        return Totals(
            loss=values.pop("loss"),
            metrics=values,
            tokens=sum(map(count_tokens, inputs)),
            sample_ids=[one for micro in self._micro for one in micro.sample_ids],
        )

    # step boundary ---------------------------------------------------------------------------

    def _maybe_log_save_evaluate(
        self,
        tr_loss: Tensor,
        grad_norm: Any,
        model: nn.Module,
        trial: Any,
        epoch: float,
        ignore_keys_for_eval: Any,
        start_time: float,
        learning_rate: float | None = None,
    ) -> None:
        totals, self._totals = self._totals, None
        if totals is None:  # the Trainer calls once more when the loader is exhausted
            return
        step, watchers = self.state.global_step, self.boundary.watchers
        updated = getattr(self.recipe, "updated", None)
        if updated is not None:
            updated(learning_rate=float(learning_rate or 0.0))
        for problem in (one for micro in self._micro for one in micro.problems):
            watchers.warn(f"skipped a broken row: {problem}")
        reports = self.monitor.after_update()
        flows = getattr(self.recipe, "flows", dict)()
        reports = {**reports, **flows} if reports else reports
        for trouble in self.monitor.new_troubles(reports):
            watchers.warn(f"step {step}: {trouble}")
        record = StepRecord(
            step=step,
            loss=totals.loss,
            metrics=totals.metrics,
            learning_rate=float(learning_rate or 0.0),
            grad_norm=float(grad_norm),
            seconds=max(1e-9, time.perf_counter() - self._clock),
            tokens=totals.tokens,
            sample_ids=totals.sample_ids,
            kept=self.share.samples_per_step if hasattr(self.recipe, "enter") else 0,
        )
        # the Trainer counts from the start of this process, which a resumed run must not
        self.state.epoch = step * self.share.samples_per_step / len(self.source)
        self.boundary.finished(self, record, gradients=reports)
        self._clock = time.perf_counter()

    # optimizer -------------------------------------------------------------------------------

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The recipe's own, or AdamW as configured."""
        if self.optimizer is None:
            own = getattr(self.recipe, "make_optimizer", None)
            training = self.config.training
            made = own(training) if own else make_optimizer(self.recipe.model, training=training)
            self.optimizer = made
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The configured schedule."""
        self.lr_scheduler = make_schedule(self.optimizer, training=self.config.training)
        self._created_lr_scheduler = True
        return self.lr_scheduler

    # checkpoints -----------------------------------------------------------------------------

    def save(self) -> Written | None:
        """Write a checkpoint of the current step; only the first process writes."""
        randomness = everywhere(state.random_states())
        own = getattr(self.recipe, "checkpoint_files", lambda gather: {})(everywhere)
        if not self.args.should_save:
            return None
        step, share = self.state.global_step, self.share
        about = {
            "v": 1,
            "step": step,
            "position": step * share.samples_per_step,
            "samples_per_step": share.samples_per_step,
            "seed": self.config.run.seed,
            "recipe": self.config.recipe,
            "world_size": share.world_size,
        }
        files = {
            state.WEIGHTS: state.weights_writer(self.recipe.model),
            state.OPTIMIZER: state.torch_writer(self.optimizer.state_dict()),
            state.SCHEDULER: state.torch_writer(self.lr_scheduler.state_dict()),
            state.RANDOM: state.torch_writer(randomness),
            state.STATE: state.json_writer(about),
            TRAINER_STATE_NAME: state.json_writer(asdict(self.state)),
            **own,
        }
        keep = self.config.training.keep_checkpoints
        return write_checkpoint(self.run.checkpoints, step=step, files=files, keep=keep)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        about = state.read_state(Path(resume_from_checkpoint))
        if about["samples_per_step"] != self.share.samples_per_step:
            raise InputError(
                f"{resume_from_checkpoint}: was trained with {about['samples_per_step']} samples"
                f" per step, now there are {self.share.samples_per_step}"
                "\n  fix: keep training.batch_size x training.accumulation x processes the same"
            )
        state.load_weights(self.recipe.model, checkpoint=Path(resume_from_checkpoint))
        getattr(self.recipe, "restore", lambda checkpoint: None)(Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            folder = Path(checkpoint)
            self.optimizer.load_state_dict(state.read_torch(folder / state.OPTIMIZER))
            self.lr_scheduler.load_state_dict(state.read_torch(folder / state.SCHEDULER))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        states = state.read_torch(Path(checkpoint) / state.RANDOM)
        if self.share.rank < len(states):
            state.set_random_states(states[self.share.rank])

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any
    ) -> Any:
        prepared = super()._prepare_for_training(
            max_steps, train_dataloader, resume_from_checkpoint
        )
        checkpoint = Path(resume_from_checkpoint) if resume_from_checkpoint else None
        self.boundary.begin(self, step=self.state.global_step, checkpoint=checkpoint)
        self._clock = time.perf_counter()
        return prepared

    # processes -------------------------------------------------------------------------------

    def _sync_replicated_trainable_parameters(self, model: nn.Module) -> None:
        # the Trainer's own version also averages gradients, by an operation gloo does not have
        spread_from_first(model.parameters())

    def agree(self, flag: bool) -> bool:
        """True everywhere when it is true anywhere."""
        if self.args.world_size == 1:
            return flag
        return bool(self._sum(torch.tensor(float(flag), device=self.args.device)) > 0)

    def chosen_by_first(self, value: Any) -> Any:
        """The first process's value, everywhere."""
        return everywhere(value)[0]

    def _sum(self, tensor: Tensor) -> Tensor:
        if self.args.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

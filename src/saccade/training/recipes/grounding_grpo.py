"""Phase `grpo` of the recipe `grounding`: groups of sampled episodes learn when to look again.

In go screenshots with instructions and boxes; out come an adapter and a merged model. Each step
samples a group of episodes per question with the real tools, pays each what `grounding/rewards.py`
says, and takes a step of GRPO (`grounding/grpo.py`) on packed rows. Episodes are drawn by seeds of
(run, step, place in the step, sample, number in the group), so an interrupted run makes the same
ones again. With `reuse` > 1 the same episodes serve several steps and are part of the checkpoint.
A policy that has collapsed stops the run. Left out: the rollouts themselves
(`grounding/rollouts.py`), tokens (`grounding/dialogue.py`), and what is true of any training
(`trainers.py`).

Shapes: R rows, L tokens of a row, E episodes of a batch.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Sampler

from saccade.config.errors import InputError
from saccade.config.resolve import flatten
from saccade.config.schema import Config
from saccade.data.boxes import Box
from saccade.data.samples import Sample
from saccade.data.sources import SampleSource
from saccade.grounding.collapse import Detectors
from saccade.grounding.dialogue import Dialogue
from saccade.grounding.episodes import Episode, Task, task_of
from saccade.grounding.grpo import LookWorth, choice_log_probs, grpo_loss, leanings
from saccade.grounding.rollouts import first_answers, roll
from saccade.training import state
from saccade.training.batches import SampleOrder, Share
from saccade.training.checkpoints import Writer, newest_good
from saccade.training.grounding_phases import refuse_what_cannot_be
from saccade.training.processes import everywhere
from saccade.training.recipes.grounding_demos import drawn_window, shows_whole
from saccade.training.recipes.grounding_episodes import FILE, EpisodeLog
from saccade.training.recipes.grounding_learner import ToolLearner
from saccade.training.recipes.grounding_order import (
    FreshBatches,
    Targets,
    held_out,
    open_for_training,
)
from saccade.training.recipes.grounding_paid import (
    Group,
    Tally,
    episode_seeds,
    paid_group,
    rows_of,
)
from saccade.training.rundir import RunDir, is_free

STATE = "grpo.pt"
UNSEEN = -1


class GrpoPhase:
    """What the training loop needs to know about groups of episodes."""

    def __init__(self, config: Config) -> None:
        refuse_what_cannot_be(config)
        self.config, self.settings = config, config.grounding.grpo
        self.learner = ToolLearner(config, lora=self.settings.adapter == "lora")
        self.model: nn.Module = self.learner.model
        self.base, self.processor = self.learner.base, self.learner.processor
        self.dialogue = Dialogue(self.base, self.processor, config=config)
        self.before: Dialogue | None = None
        if self.settings.beta and self.learner.adapter is None:
            frozen = copy.deepcopy(self.base).requires_grad_(False)
            self.before = Dialogue(frozen, self.processor, config=config)
        self.detectors = Detectors(self.settings)
        self.run = RunDir.of(config)
        self.log = EpisodeLog(self.run.path / FILE)
        self.now: Callable[[], int] = lambda: 0
        self.buffer: dict[int, dict[str, Any]] = {}
        self.tally, self.rows = Tally(), list[dict[str, Any]]()
        self.leanings: list[float] = []
        self.taught, self._opened = True, False
        self.learned: float | None = None
        self.worth: LookWorth | None = None
        self._digest = digest_of(config)
        self._pattern: dict[str, Tensor] = {}
        self._trl: Any = None

    # data ----------------------------------------------------------------------------------------

    def train_source(self) -> SampleSource:
        steps = round(self.settings.easy_steps * self.config.training.steps / self.settings.reuse)
        batch, micros, processes = self._cut()
        per_step = batch * micros * processes
        return Targets(
            open_for_training(self.config), seed=self.config.run.seed, easy=steps * per_step
        )

    def batches(
        self, order: SampleOrder, *, share: Share, steps: int, first_step: Callable[[], int]
    ) -> Sampler[list[int]]:
        """Fresh questions for the steps that sample, none for those that use episodes again."""
        self.now = first_step
        return FreshBatches(
            order, share=share, steps=steps, first_step=first_step, reuse=self.settings.reuse
        )

    def collate(self, samples: list[Sample]) -> dict[str, Any]:
        """Tasks; `input_ids` only say how many tokens a step will read at about."""
        tasks = [task_of(sample) for sample in samples]
        if tasks and not self._pattern:
            row = self.dialogue.rows([self._guessed(tasks[0])])
            self._pattern = {
                name: row[name][:1] for name in ("input_ids", "labels", "mm_token_type_ids")
            }
        shape = {name: one.expand(len(tasks), -1) for name, one in self._pattern.items()}
        return {"labels": torch.zeros(0, 1, dtype=torch.long), **shape, "tasks": tasks}

    def _guessed(self, task: Task) -> list[Episode]:
        """A group of demonstrations, each with all looks, to measure with."""
        box = task.box or Box(0.4, 0.4, 0.6, 0.6)
        zoom, offered = self.config.grounding.zoom, "zoom" in self.config.grounding.tools
        window = drawn_window(box, side=zoom.window, jitter=0.0, key="")
        if "wait" not in self.config.grounding.tools:
            task = replace(task, loading=None)
        task = replace(task, box=box)
        zooms = offered and zoom.calls and shows_whole(self.dialogue, task, window)
        looks = [window] if zooms else []
        return [
            self.dialogue.demonstration(task, looks=looks, index=i)
            for i in range(self.settings.group)
        ]

    # episodes ------------------------------------------------------------------------------------

    def enter(self, inputs: Mapping[str, Any], *, micro: int) -> dict[str, Any]:
        """Sample, judge and pack the groups of a micro-batch, or take those of an earlier step."""
        step = self.now()
        if micro == 0:
            self._begin(step)
        if step % self.settings.reuse == 0:
            drawn = self._sampled(inputs["tasks"], step=step, micro=micro)
            self.buffer[micro] = drawn | {"micro": micro}
        elif micro not in self.buffer:
            raise InputError(
                f"step {step} uses episodes again, and the checkpoint holds none"
                f"\n  fix: keep grounding.grpo.reuse={self.settings.reuse} and the processes as"
                " they were, or start another run with run.name=NAME"
            )
        batch = self.buffer[micro]
        self.taught = self.taught or bool(batch["learned_RL"].any())
        return dict(batch)

    def _begin(self, step: int) -> None:
        self.detectors.stop(step=step, saved=self._saved())
        if not self._opened and _first():
            self.log.go_back_to(step)
        self._opened = True
        self.tally, self.rows, self.leanings, self.taught = Tally(), [], [], False
        self.learned, self.worth = None, None

    def _saved(self) -> str:
        good = newest_good(self.run.checkpoints).folder
        return f"the last good checkpoint is {good}" if good else "there is no checkpoint yet"

    def _rolled(self, tasks: Sequence[Task], *, step: int, micro: int) -> list[list[Episode]]:
        """Each task's episodes, by seeds that no batch, process or resumed run changes."""
        settings, seed = self.settings, self.config.run.seed
        batch, micros, _ = self._cut()
        place = (_rank() * micros + micro) * batch
        if settings.rollouts == "trl":
            from saccade.training.trl_grounding import TrlGrounding

            self._trl = self._trl or TrlGrounding(
                self.config, base=self.base, processor=self.processor, folder=self.run.path / "trl"
            )
            names = "+".join(task.sample.id for task in tasks)
            (drawn,) = episode_seeds(seed, step=step, place=place, sample=names, group=1)
            return self._trl.episodes(tasks, seed=drawn)
        seeds = [
            episode_seeds(
                seed, step=step, place=number, sample=task.sample.id, group=settings.group
            )
            for number, task in enumerate(tasks, start=place)
        ]
        return roll(
            self.dialogue, tasks, group=settings.group, seeds=seeds,
            temperature=settings.temperature, shared=settings.rollouts == "shared",
        )  # fmt: skip

    def _sampled(self, tasks: Sequence[Task], *, step: int, micro: int) -> dict[str, Any]:
        settings = self.settings
        was_training = self.base.training
        self.base.eval()
        rolled = self._rolled(tasks, step=step, micro=micro)
        asked = self.settings.first_answers
        first = first_answers(self.dialogue, tasks) if asked else [None] * len(tasks)
        self.base.train(was_training)
        groups = [
            paid_group(one, config=self.config.grounding, first=before)
            for one, before in zip(rolled, first, strict=True)
        ]
        about = {"run_seed": self.config.run.seed, "config": self._digest}
        self.rows += rows_of(
            groups, run=self.run.path.name, step=step + 1, convention=self.dialogue.convention,
            extra=about,
        )  # fmt: skip
        self.leanings += [lean for one in groups for lean in leanings(one.looked)]
        tally = Tally.of(groups)
        self.tally.add(tally)
        own = self.config.training.batch_size * self.config.training.accumulation
        seen = tally.shares(episodes=own * settings.group, groups=own)
        return self._packed(groups) | {"seen": seen}

    def _packed(self, groups: Sequence[Group]) -> dict[str, Any]:
        """The learning batch of the groups that teach; of the first one, masked, if none does."""
        still = self.settings.beta > 0 or self.settings.entropy > 0
        teach = [one.judged.kept and (still or not one.judged.constant) for one in groups]
        kept = [one for one, teaches in zip(groups, teach, strict=True) if teaches]
        rows = kept or list(groups[:1])
        batch = self.dialogue.rows([one.episodes for one in rows])
        episodes = [episode for one in rows for episode in one.episodes]
        open_for = [mask for one in rows for mask in one.deciding(self.dialogue.call)]
        gain_E = torch.tensor([a for one in rows for a in one.judged.advantages])
        lean_E = torch.tensor([lean for one in rows for lean in leanings(one.looked)])
        worths = [one.look_worth(taught=t) for one, t in zip(groups, teach, strict=True)]
        learned_E = torch.tensor([bool(kept) and one for row in rows for one in row.learned])
        episode_RL = batch["episode_RL"]
        written_RL = (batch["labels"] != -100) & (episode_RL >= 0)
        at_RL = episode_RL.clamp(min=0)
        deciding_RL = per_token(batch, episodes, open_for)
        return batch | {
            "advantages_RL": gain_E[at_RL] * written_RL,
            "leanings_RL": lean_E[at_RL] * deciding_RL,
            "deciding_RL": deciding_RL,
            "look_worth": list(astuple(sum(worths, LookWorth()))),
            "learned_RL": learned_E[at_RL] & written_RL,
            "sampled_RL": per_token(batch, episodes, [one.log_probs for one in episodes]),
        }

    # loss ----------------------------------------------------------------------------------------

    def loss(self, batch: dict[str, Any], *, step: int, denominator: Tensor) -> dict[str, Tensor]:
        if "learned_RL" not in batch:  # only measured: demonstrations of the same size
            batch = self._measured(batch)
        settings, training = self.settings, self.config.training
        states_RLD = self.dialogue.states(batch)
        new_RL, entropy_RL, call_RL = self.dialogue.chances(
            batch, states=states_RLD, temperature=settings.temperature
        )
        kept = self.buffer.get(batch.get("micro", UNSEEN), {})
        with torch.no_grad():
            old_RL = kept.setdefault("old_RL", new_RL.detach())
            if settings.beta and "before_RL" not in kept:
                kept["before_RL"] = self._before(batch)
            plain_RL = new_RL.detach()
            if settings.temperature != 1:  # as episodes keep them
                plain_RL, _ = self.dialogue.log_probs(batch, states=states_RLD)
        learned_RL = batch["learned_RL"].to(new_RL.device)
        own = training.batch_size * training.accumulation * settings.group
        normaliser = own * settings.max_tokens
        price = self._price(batch)
        gain_RL = batch["advantages_RL"] - price * batch["leanings_RL"]
        found = grpo_loss(
            new_RL, old=old_RL.to(new_RL.device), advantages=gain_RL.to(new_RL),
            mask=learned_RL, normaliser=normaliser, config=settings,
            reference=kept["before_RL"].to(new_RL) if settings.beta else None,
            entropies=entropy_RL, entropy_normaliser=self._learned_tokens(learned_RL),
        )  # fmt: skip
        # the loop weighs metrics by written tokens, but these are means over episodes or batches
        written = (batch["labels"] != -100).sum().clamp(min=1)
        tokens = found.tokens.clamp(min=1) * training.accumulation
        gap_RL = (plain_RL - batch["sampled_RL"].to(new_RL)).abs() * learned_RL
        seen = {
            "ratio": torch.where(found.tokens > 0, found.ratio / tokens, 1 / training.accumulation),
            "clipped": (found.clipped_low + found.clipped_high) / tokens,
            "clipped_low": found.clipped_low / tokens,
            "clipped_high": found.clipped_high / tokens,
            "rollout_gap": gap_RL.sum() / tokens,
            **({} if settings.budget is None else {"price": price / training.accumulation}),
            **({"kl": found.kl / tokens} if settings.beta else {}),
            **batch["seen"],
        }
        mean = (denominator / written).double()
        choice = self._choice(batch, call_RL, gain_RL, normaliser=normaliser, kept=kept)
        return {
            "loss": found.total + choice,
            **{name: value * mean for name, value in seen.items()},
        }

    def _choice(
        self,
        batch: Mapping[str, Any],
        call_RL: Tensor,
        gain_RL: Tensor,
        *,
        normaliser: float,
        kept: dict[str, Any],
    ) -> Tensor | float:
        """The loss of having looked or not, apart from what was written."""
        if not self.settings.choice:
            return 0.0
        called_RL = (batch["input_ids"] == self.dialogue.call).to(call_RL.device)
        chosen_RL = choice_log_probs(call_RL, called=called_RL)
        old_RL = kept.setdefault("old_choice_RL", chosen_RL.detach())
        plain = self.settings.model_copy(update={"beta": 0.0})
        open_RL = (batch["learned_RL"] & batch["deciding_RL"]).to(call_RL.device)
        return self.settings.choice * grpo_loss(
            chosen_RL, old=old_RL.to(chosen_RL), advantages=gain_RL.to(chosen_RL), mask=open_RL,
            normaliser=normaliser, config=plain,
        ).total  # fmt: skip

    def prepare_step(self, batches: Sequence[Mapping[str, Any]]) -> None:
        """Add up a step in several parts: entropy is a mean over all its learned tokens, and one
        price of a look holds for all its episodes."""
        own = sum(int(one["learned_RL"].sum()) for one in batches)
        worth = sum((LookWorth(*one["look_worth"]) for one in batches), LookWorth())
        counts, worths = zip(*everywhere((own, worth)), strict=True)
        self.learned, self.worth = sum(counts) / len(counts), sum(worths, LookWorth())

    def _price(self, batch: Mapping[str, Any]) -> float:
        """What a look costs in this step beside `reward.call`; a batch alone knows it itself."""
        if self.settings.budget is None:
            return 0.0
        self.worth = self.worth or LookWorth(*batch["look_worth"])
        return self.worth.price(budget=self.settings.budget)

    def _learned_tokens(self, learned_RL: Tensor) -> float:
        """Learned tokens of the step per process; a batch alone knows them itself."""
        return max(1.0, float(learned_RL.sum()) if self.learned is None else self.learned)

    def _measured(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        rows = self.dialogue.rows([self._guessed(task) for task in batch["tasks"]])
        written_RL = rows["labels"] != -100
        return rows | {
            "advantages_RL": written_RL.float(), "learned_RL": written_RL,
            "leanings_RL": written_RL.float(), "deciding_RL": written_RL, "look_worth": [0.0] * 4,
            "sampled_RL": written_RL.float(), "seen": {},
        }  # fmt: skip

    def _before(self, batch: dict[str, Any]) -> Tensor:
        """Log-probabilities under the model before this phase."""
        warmth = self.settings.temperature
        if self.before is not None:
            return self.before.log_probs(batch, temperature=warmth)[0]
        with self.learner.as_it_was():
            return self.dialogue.log_probs(batch, temperature=warmth)[0]

    # after a step --------------------------------------------------------------------------------

    def updated(self, *, learning_rate: float) -> None:
        """After each update: note the step's episodes, and look for signs of a collapse."""
        self._write_prices()
        whole = Tally()
        parts = everywhere((self.rows, self.tally))
        for _, tally in parts:
            whole.add(tally)
        if not whole.counts["episodes"]:  # used again
            return
        self.detectors.note(whole.signs())
        if _first():
            self.log.append([row for rows, _ in parts for row in rows])

    def _write_prices(self) -> None:
        """Rows are made before the step's price is known: put it into them."""
        if self.settings.budget is None or self.worth is None:
            return
        price = self.worth.price(budget=self.settings.budget)
        for row, lean in zip(self.rows, self.leanings, strict=True):
            row |= {"advantage": row["advantage"] - price * lean, "price": price}

    def resting(self, step: int) -> list[str]:
        """Everything, at a step whose groups were all left out: it has no gradient at all."""
        return [] if self.taught else list(self.groups())

    # measuring -----------------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(self, source: SampleSource, *, limit: int) -> dict[str, float]:
        """The greedy policy on held-out targets.

        `accuracy` is the share of points in the half-open box (of those near enough to the target,
        for rows that know only a point), `iou_50`, where answers are boxes, of those that overlap
        it by half; `zoom_rate` the share of episodes with a crop; `pixels` the mean area looked at.
        """
        self.base.eval()
        skip = self.config.data.on_error == "skip"
        tally = Tally()
        for tasks in held_out(source, limit=limit, size=self.config.eval.batch_size, skip=skip):
            rolled = roll(
                self.dialogue, tasks, group=1, seeds=[[0]] * len(tasks), temperature=1.0,
                greedy=True,
            )  # fmt: skip
            tally.add(Tally.of([paid_group(one, config=self.config.grounding) for one in rolled]))
        return tally.measured(boxes=self.config.grounding.answer == "box")

    def groups(self) -> dict[str, list[nn.Parameter]]:
        return self.learner.groups()

    # state ---------------------------------------------------------------------------------------

    def checkpoint_files(self, gather: Callable[[Any], list[Any]]) -> dict[str, Writer]:
        """Streaks of the detectors, and episodes that later steps use again."""
        kept = self.buffer if (self.now() % self.settings.reuse) else {}
        buffers = gather([_plain(kept[micro]) for micro in sorted(kept)])
        return {
            STATE: state.torch_writer({
                "detectors": self.detectors.saved(), "buffers": buffers, "cut": self._cut(),
            })
        }  # fmt: skip

    def _cut(self) -> list[int]:
        """How a step's questions are dealt out: what episodes that are used again belong to."""
        training = self.config.training
        return [training.batch_size, training.accumulation, int(os.environ.get("WORLD_SIZE", "1"))]

    def restore(self, checkpoint: Path) -> None:
        """Take up what `checkpoint_files` wrote."""
        saved = state.read_torch(checkpoint / STATE)
        self.detectors.restore(saved["detectors"])
        if any(saved["buffers"]) and saved["cut"] != self._cut():
            raise InputError(
                f"{checkpoint}: holds episodes to use again, of another cut of the step"
                "\n  fix: keep training.batch_size, training.accumulation and the processes as they"
                " were, or start another run with run.name=NAME"
            )
        own = saved["buffers"][_rank()] if saved["buffers"] else []
        self.buffer = dict(enumerate(own))

    def finish(self, run: RunDir) -> None:
        """Write the adapter and the merged model; a policy that has collapsed is not handed on."""
        self.detectors.stop(step=self.config.training.steps, saved=self._saved())
        self.learner.save(run)


def per_token(
    batch: Mapping[str, Any], episodes: Sequence[Episode], values: Sequence[Tensor]
) -> Tensor:
    """[R, L]: the value of each token that an episode's policy wrote; 0 elsewhere.

    `values` has one number for each of the episode's `ids`.
    """
    episode_RL, written_RL = batch["episode_RL"], batch["labels"] != -100
    values_RL = torch.zeros(episode_RL.shape, dtype=values[0].dtype)
    for number, (episode, value) in enumerate(zip(episodes, values, strict=True)):
        values_RL[(episode_RL == number) & written_RL] = value[episode.written]
    return values_RL


def digest_of(config: Config) -> str:
    """A short name of everything in a configuration that moves the weights."""
    flat = flatten(config.model_dump(mode="json"))
    kept = {key: value for key, value in flat.items() if not is_free(key)}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:12]


def _plain(batch: Mapping[str, Any]) -> dict[str, Any]:
    """A learning batch as a checkpoint holds it."""
    return {
        name: value.detach().cpu() if isinstance(value, Tensor) else value
        for name, value in batch.items()
    }


def _rank() -> int:
    import torch.distributed as dist

    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def _first() -> bool:
    return _rank() == 0

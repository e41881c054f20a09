"""The same grounding task for TRL's GRPOTrainer: environment, rewards, trainer, and back.

A base with its processor and tasks flow in; a real `trl.GRPOTrainer` whose `environment_factory`
is our `Screen` and whose rewards are ours flows out, or episodes made by that trainer's own
generation. It is how results are compared (`grpo.rollouts=trl`), and a second way to train. What
TRL does otherwise: a call that is no JSON ends the episode without an answer, arguments of another
name are refused by TRL and cost nothing, and tokens of crops count as written ones for its limit.
Left out: our own loop (`recipes/grounding_grpo.py`), which reads a group's prompt only once.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from saccade.config.errors import InputError, OutsideError
from saccade.config.schema import Config
from saccade.data.chat import IGNORE_INDEX
from saccade.grounding.coordinates import CoordinateError
from saccade.grounding.dialogue import Dialogue
from saccade.grounding.environment import Answer, Screen, most_calls
from saccade.grounding.episodes import Episode, Finish, Task, outcome_of
from saccade.grounding.messages import instruction_text, read_turn, system_text
from saccade.grounding.rewards import Rewarded, group_rewards
from saccade.models.tools import FEW_TOKENS
from saccade.training.grounding_phases import refuse_other_tools
from saccade.training.state import untouched_randomness

NUMBER = "number"
"""Column that says which task a row is."""


class ScreenEnvironment:
    """One episode's screen as TRL drives it: `reset`, then `zoom` as often as the policy asks."""

    def __init__(self, dialogue: Dialogue, tasks: Sequence[Task]) -> None:
        self._dialogue, self._tasks = dialogue, tasks
        self._screen: Screen | None = None
        self._task: Task | None = None

    def reset(self, **columns: Any) -> None:
        """Begin the episode of the row's task."""
        self._task = self._tasks[int(columns[NUMBER])]
        self._screen = self._dialogue.screen(self._task)

    # no return type: it would become part of what the policy is told
    def zoom(self, box: list[float]):
        """
        Show a part of the latest picture enlarged.

        Args:
            box: [left, top, right, bottom] on the latest picture
        """
        result = self._now()[1].call("zoom", {"box": box})
        if result.view is None:
            return result.text
        words = [{"type": "text", "text": result.text}] if result.text else []
        return [{"type": "image", "image": result.view.image}, *words]

    def _now(self) -> tuple[Task, Screen]:
        if self._task is None or self._screen is None:
            raise RuntimeError("reset comes first")
        return self._task, self._screen


class TrlGrounding:
    """TRL's trainer on our task, and what its generation made."""

    def __init__(
        self,
        config: Config,
        *,
        base: Any,
        processor: Any,
        folder: Path,
        tasks: Sequence[Task] = (),
        **more: Any,
    ) -> None:
        """`more` are further settings of TRL's GRPOConfig. Raises OutsideError without TRL."""
        try:
            os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
            from trl.trainer.grpo_config import GRPOConfig
            from trl.trainer.grpo_trainer import GRPOTrainer
        except ImportError as error:
            raise OutsideError(
                "grounding.grpo.rollouts=trl needs TRL, which is not installed"
                "\n  fix: pip install 'saccade[rl]'"
            ) from error
        refuse_other_tools(config)
        self.config, self.tasks = config, list(tasks)
        self.dialogue = Dialogue(base, processor, config=config)
        self.made: list[Episode] = []
        self.paid: list[Rewarded] = []
        with untouched_randomness():  # the trainer seeds everything when it is made
            self.trainer: Any = GRPOTrainer(
                model=base,
                reward_funcs=self._reward,
                args=GRPOConfig(**self._settings(folder), **more),
                train_dataset=None if not self.tasks else self._dataset(),
                processing_class=processor_for_trl(processor, dialogue=self.dialogue),
                environment_factory=lambda: ScreenEnvironment(self.dialogue, self.tasks),
            )

    # rows ----------------------------------------------------------------------------------------

    def row(self, number: int) -> dict[str, Any]:
        """One row: the conversation so far, the screenshot as first seen, and which task it is."""
        task = self.tasks[number]
        said = instruction_text(task.instruction, self.config.grounding)
        messages = [{"role": "user", "content": said}]
        if len(self.dialogue.tokenizer) >= FEW_TOKENS:
            told = system_text(self.config.grounding, convention=self.dialogue.convention)
            messages.insert(0, {"role": "system", "content": told})
        picture = task.loading or task.image
        return {
            "prompt": messages,
            "image": picture.resize(self.dialogue.fit(picture.size), Image.Resampling.BICUBIC),
            NUMBER: number,
        }

    def _dataset(self) -> Any:
        import datasets

        return datasets.Dataset.from_list([self.row(number) for number in range(len(self.tasks))])

    def _settings(self, folder: Path) -> dict[str, Any]:
        config, settings = self.config, self.config.grounding.grpo
        on_cpu = self.dialogue.base.device.type == "cpu"
        return {
            "output_dir": str(folder),
            "per_device_train_batch_size": config.training.batch_size * settings.group,
            "per_device_eval_batch_size": config.training.batch_size * settings.group,
            "gradient_accumulation_steps": config.training.accumulation,
            "max_steps": config.training.steps,
            "learning_rate": config.training.learning_rate,
            "weight_decay": config.training.weight_decay,
            "seed": config.run.seed,
            "num_generations": settings.group,
            "temperature": settings.temperature,
            "max_completion_length": settings.max_tokens + self._given(),
            "max_tool_calling_iterations": most_calls(config.grounding) + 1,
            "num_iterations": settings.reuse,
            "beta": settings.beta,
            "epsilon": settings.epsilon,
            "epsilon_high": settings.epsilon_high,
            "entropy_coef": settings.entropy,
            "loss_type": "dr_grpo",
            "scale_rewards": "none",
            "mask_truncated_completions": True,
            "gradient_checkpointing": config.training.gradient_checkpointing,
            "generation_kwargs": {"suppress_tokens": self._shut()},
            "use_cpu": on_cpu,
            "bf16": False,
            "save_strategy": "no",
            "logging_steps": 1,
            "report_to": [],
            "disable_tqdm": True,
            "remove_unused_columns": False,
        }

    def _given(self) -> int:
        """Tokens that tools may add to an episode: TRL counts them as written."""
        cell = (self.dialogue.patch * self.dialogue.merge) ** 2
        zoom = self.config.grounding.zoom
        return (2 * zoom.pixels // cell + 64) * max(1, zoom.calls)

    def _shut(self) -> list[int]:
        """What no policy writes, as TRL is told: the same tokens as in our own sampling."""
        return (self.dialogue.shut != 0).nonzero()[:, 0].tolist()

    # rewards -------------------------------------------------------------------------------------

    def _reward(
        self,
        *,
        completion_ids: Sequence[Sequence[int]],
        environments: Sequence[ScreenEnvironment],
        log_metric: Callable[[str, float], None],
        **_: Any,
    ) -> list[float | None]:
        """Total rewards of a batch, group by group; the parts are logged apart."""
        settings, size = self.config.grounding, self.config.grounding.grpo.group
        self.made = [
            self._episode(torch.tensor(ids), environment, index=number % size)
            for number, (ids, environment) in enumerate(
                zip(completion_ids, environments, strict=True)
            )
        ]
        outcomes = [outcome_of(one, config=settings) for one in self.made]
        self.paid = [
            paid
            for first in range(0, len(outcomes), size)
            for paid in group_rewards(outcomes[first : first + size], config=settings)
        ]
        for name in self.paid[0].parts if self.paid else ():
            log_metric(name, sum(one.parts[name] for one in self.paid) / len(self.paid))
        log_metric("hit", sum(one.hit for one in self.paid) / max(1, len(self.paid)))
        return [one.total for one in self.paid]

    # episodes ------------------------------------------------------------------------------------

    def episodes(self, tasks: Sequence[Task], *, seed: int) -> list[list[Episode]]:
        """A group of episodes of each task, sampled by TRL; the same for the same seed.

        TRL keeps no log-probabilities; they are measured afterwards.
        """
        size = self.config.grounding.grpo.group
        self.tasks[:] = tasks
        rows = [self.row(number) for number in range(len(tasks)) for _ in range(size)]
        with untouched_randomness(), torch.no_grad():
            torch.manual_seed(seed)
            self.trainer._generate_and_score_completions(rows)
            groups = [self.made[first : first + size] for first in range(0, len(rows), size)]
            return measured_groups(groups, dialogue=self.dialogue)

    def _episode(self, ids: Tensor, environment: ScreenEnvironment, *, index: int) -> Episode:
        task, screen = environment._now()
        written, spans = written_of(ids, dialogue=self.dialogue)
        turns = [self.dialogue.words(ids[start:stop]) for start, stop in spans]
        answer, finish = self._end(turns, screen, ended=int(ids[-1]) == self.dialogue.end)
        none = torch.zeros(len(ids))
        return Episode(
            task=task, index=index, seed=0, turns=turns, ids=ids, written=written,
            log_probs=none, entropies=none.clone(), screen=screen, answer=answer, finish=finish,
        )  # fmt: skip

    def _end(
        self, turns: Sequence[str], screen: Screen, *, ended: bool
    ) -> tuple[Answer | None, Finish]:
        """How an episode of TRL's ended; a broken call, which TRL never saw, has its price, too."""
        if not ended:
            return None, "truncated"
        turn = read_turn(turns[-1])
        if turn.kind == "call":
            if turn.problem:
                screen.take(turn)
                return None, "unreadable"
            return None, "too many turns" if screen.over else "truncated"
        try:
            return self.dialogue.place(turn, screen), "answered"
        except CoordinateError:
            return None, "unreadable"


def written_of(ids: Tensor, *, dialogue: Dialogue) -> tuple[Tensor, list[tuple[int, int]]]:
    """Which tokens after a prompt the policy wrote, and the turns' places [start, stop).

    A turn ends with its mark; what follows was given and ends with the policy's next header. No
    policy can write a header's first token.
    """
    header = dialogue.tokenizer("<|im_start|>assistant\n", add_special_tokens=False)["input_ids"]
    numbers = ids.tolist()
    written = torch.zeros(len(numbers), dtype=torch.bool)
    spans: list[tuple[int, int]] = []
    start = 0
    while start < len(numbers):
        try:
            stop = numbers.index(dialogue.end, start) + 1
        except ValueError:
            stop = len(numbers)
        written[start:stop] = True
        spans.append((start, stop))
        start = stop
        while start < len(numbers) and numbers[start : start + len(header)] != header:
            start += 1
        start += len(header)
    return written, spans


@torch.no_grad()
def measured_groups(
    groups: Sequence[Sequence[Episode]], *, dialogue: Dialogue
) -> list[list[Episode]]:
    """The same episodes with the log-probabilities and entropies of what was written."""
    batch = dialogue.rows(groups)
    told_RL, number = batch["labels"] != IGNORE_INDEX, 0
    log_probs_RL, entropies_RL = (one.cpu() for one in dialogue.log_probs(batch))
    made: list[list[Episode]] = []
    for group in groups:
        made.append([])
        for episode in group:
            here_RL = (batch["episode_RL"] == number) & told_RL
            log_probs, entropies = torch.zeros(len(episode.ids)), torch.zeros(len(episode.ids))
            log_probs[episode.written] = log_probs_RL[here_RL]
            entropies[episode.written] = entropies_RL[here_RL]
            made[-1].append(replace(episode, log_probs=log_probs, entropies=entropies))
            number += 1
    return made


def processor_for_trl(processor: Any, *, dialogue: Dialogue) -> Any:
    """A copy that shows pictures at the size they have, and reads tool calls out of text.

    TRL knows one limit of size for screenshots and crops; ours have their sizes before they come.
    """
    from trl.chat_template_utils import qwen3_template

    own = copy.deepcopy(processor)
    smallest = (dialogue.patch * dialogue.merge) ** 2
    own.image_processor.size = {"shortest_edge": smallest, "longest_edge": 2**40}
    if getattr(own.tokenizer, "response_template", None) is None:
        own.tokenizer.response_template = qwen3_template
    return own


def train_with_trl(
    config: Config, *, base: Any, processor: Any, tasks: Sequence[Task], folder: Path, **more: Any
) -> list[dict[str, float]]:
    """Train `base` in place with TRL's own loop on our task; returns what TRL logged per step.

    Raises InputError for a reward that TRL cannot pay.
    """
    paid = config.grounding.reward
    if config.grounding.grpo.budget is not None:
        raise InputError(
            "grounding.grpo.budget finds a price after a step's episodes are known, and TRL pays"
            " them before\n  fix: grounding.grpo.budget=null"
        )
    if config.grounding.grpo.choice:
        raise InputError(
            "grounding.grpo.choice is a term that TRL's loss does not have"
            "\n  fix: grounding.grpo.choice=0"
        )
    if paid.confidence and not paid.stated:
        raise InputError(
            "grounding.reward.confidence is measured by the answer's probability, and TRL keeps"
            " none\n  fix: grounding.reward.stated=true, or grounding.grpo.rollouts=shared"
        )
    made = TrlGrounding(config, base=base, processor=processor, tasks=tasks, folder=folder, **more)
    made.trainer.train()
    return [dict(one) for one in made.trainer.state.log_history]

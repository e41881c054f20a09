"""Phases `places` and `warm` of the recipe `grounding`: learn from boxes that are known.

In go pages with boxes; out comes a whole model that the next phase starts from. `places` asks for
many things behind one picture, a screen or a crop as a zoom shows it. `warm` writes whole episodes
with real crops of the environment; whether one zooms is drawn, and the draw leans to zooming at
small targets (`grounding.warm.lean`), so that both ways are learned of every size and when to take
which is hinted at. The loss is that of `sft` on what a policy would write, beside two aids
(`grounding_aids.py`). Left out: rewards (`grounding_grpo.py`).

Shapes: R rows, L tokens, D written tokens, N cells and I pictures in all.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import groupby
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from saccade.config.errors import InputError
from saccade.config.schema import Config
from saccade.data.boxes import WHOLE, Box, union
from saccade.data.chat import IGNORE_INDEX
from saccade.data.samples import Sample
from saccade.data.sources import SampleSource, leave_out_broken
from saccade.grounding.dialogue import Dialogue
from saccade.grounding.environment import View
from saccade.grounding.episodes import Episode, Look, Task, target_side, tasks_of, verdict_of
from saccade.grounding.packed import NOBODY
from saccade.grounding.rollouts import roll
from saccade.models.attention_rows import Watched, watch_layer
from saccade.models.losses import supervised_loss
from saccade.training.recipes.grounding_aids import (
    THING_TARGETS,
    Thing,
    cell_labels,
    cells_under,
    things_of,
)
from saccade.training.recipes.grounding_learner import ToolLearner
from saccade.training.recipes.grounding_order import Checked, held_out, open_for_training
from saccade.training.recipes.tiny_base import CellReader, groups_of_whole
from saccade.training.rundir import RunDir

LARGEST_CUT = 0.25
"""Most that another view of a page leaves out of each side."""


class DemoModel(nn.Module):
    """The base and the reader of its cells: everything these phases train."""

    def __init__(self, base: nn.Module, reader: CellReader) -> None:
        super().__init__()
        self.base = base
        self.reader = reader


def chance(*words: object) -> float:
    """A number in [0, 1) drawn by the words alone: no batch, rank or resumed run changes it."""
    # a checksum would not do: those of words that differ in one place differ by a constant
    digest = hashlib.sha256(" ".join(map(str, words)).encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


def _page(sample: Sample) -> tuple[str, int]:
    """What shows one page in one view."""
    return sample.image_key or sample.id, sample.facts.get("view", 0)


class InParts:
    """A source whose groups have at most `most` samples, and that comes `views` times over.

    The rest of a page comes in another step; the fact `view` says which time it is.
    """

    def __init__(self, source: SampleSource, *, most: int, views: int = 1) -> None:
        self.source, self.most, self.views = source, most, views

    def leave_out_broken(self) -> list[str]:
        """What the source itself knows to be broken."""
        return leave_out_broken(self.source)

    def __len__(self) -> int:
        return len(self.source) * self.views

    def __getitem__(self, position: int) -> Sample:
        view, own = divmod(position, len(self.source))
        sample = self.source[own]
        return replace(sample, facts={**sample.facts, "view": view}) if view else sample

    def groups(self) -> list[list[int]]:
        """The source's groups, cut."""
        return [
            [view * len(self.source) + position for position in group[first : first + self.most]]
            for view in range(self.views)
            for group in self.source.groups()
            for first in range(0, len(group), self.most)
        ]

    def fingerprint(self) -> str:
        """That of the source, and how often it comes."""
        return self.source.fingerprint() + (f" x {self.views}" if self.views > 1 else "")


class DemoPhase:
    """What the training loop needs to know, but for which demonstrations are made."""

    look: Look = "free"
    questions = 4
    views = 1

    def __init__(self, config: Config, *, vision: bool, lora: bool = False) -> None:
        self.config, self.settings = config, config.grounding
        vision = vision and not lora
        self.learner = ToolLearner(config, lora=lora, vision=vision)
        self.base, self.processor = self.learner.base, self.learner.processor
        # places are learned from whole looks; a selector stands in front of what follows
        whole = config.grounding.model_copy(update={"selector": None})
        whole_looks = config.model_copy(update={"grounding": whole})
        self.dialogue = Dialogue(self.base, self.processor, config=whole_looks)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.run.seed)
            reader = CellReader(self.base.config.text_config.hidden_size, targets=THING_TARGETS)
        self.reads_cells = vision and self.settings.cell_loss > 0
        self.reader = reader.requires_grad_(self.reads_cells)
        self.model: nn.Module = DemoModel(self.base, reader).to(self.base.device)

    def train_source(self) -> SampleSource:
        whole = Checked(open_for_training(self.config), boxed=True)
        return InParts(whole, most=self.questions, views=self.views)

    def tasks(self, tasks: list[Task]) -> list[Task]:
        """What this phase asks, made of what a source asks."""
        return tasks

    def demonstrations(self, samples: list[Sample]) -> list[list[Episode]]:
        """Episodes about one screenshot, in groups that share their first picture."""
        raise NotImplementedError

    def collate(self, samples: list[Sample]) -> dict[str, Any]:
        groups: list[list[Episode]] = []
        for _, same in groupby(samples, key=_page):
            groups += self.demonstrations(list(same))
        batch = self.dialogue.rows(groups)
        episodes = [one for group in groups for one in group]
        batch |= self._look_targets(batch, episodes)
        if self.reads_cells:
            batch["cell_targets"] = _cell_targets(batch, episodes)
            batch["picture_tokens"] = _picture_tokens(batch)
        return batch | {"sample_ids": [one.task.sample.id for one in episodes]}

    def _look_targets(self, batch: dict[str, Any], episodes: Sequence[Episode]) -> dict[str, Any]:
        """Per written token: row, the position that predicts it, the cells of the target.

        Tokens between the digits look, too: a digit then finds the place a position earlier, which
        few layers need. A page that is still loading shows no target yet.
        """
        labels_RL, episode_RL = batch["labels"], batch["episode_RL"]
        row_D, at_D = (labels_RL != IGNORE_INDEX).nonzero(as_tuple=True)
        cells_DL = torch.zeros(len(row_D), labels_RL.shape[1], dtype=torch.bool)
        there_D = torch.ones_like(row_D, dtype=torch.bool)
        looks = batch["looks"].tolist()
        shown = {row: [one for one in looks if one[0] == row] for row in {one[0] for one in looks}}
        for number, (row, at) in enumerate(zip(row_D.tolist(), at_D.tolist(), strict=True)):
            episode = int(episode_RL[row, at])
            seen = [one for one in shown[row] if one[2] <= at and one[3] in (NOBODY, episode)]
            _, start, stop, _, down, across = seen[-1]
            known = episodes[episode]
            assert known.task.box is not None
            view = known.screen.views[len(seen) - 1]
            there_D[number] = not view.loading
            box = known.task.box.seen_in(view.box)
            cells_DL[number, start:stop] = cells_under(box, grid=(down, across))
        return {
            "look_row": row_D[there_D], "look_from": at_D[there_D] - 1, "look_at": cells_DL[there_D]
        }  # fmt: skip

    def loss(self, batch: dict[str, Any], *, step: int, denominator: Tensor) -> dict[str, Tensor]:
        settings, base = self.settings, self.base
        layers = len(base.model.language_model.layers)
        looks = settings.look_loss > 0 and len(batch["look_row"]) > 0
        with watch_layer(base, layer=layers // 2) if looks else nullcontext() as watched:
            pictures = self.dialogue.encoded(batch)
            states_RLD = self.dialogue.states(batch, pictures=pictures)
        answer = supervised_loss(base.lm_head, states_RLD, batch["labels"], denominator=denominator)
        metrics = {"loss": answer.total, "token_accuracy": answer.token_accuracy}
        share = answer.tokens / denominator
        if watched is not None:
            look_loss = _look_losses(watched, batch).sum() / denominator
            metrics["loss"] = metrics["loss"] + settings.look_loss * look_loss
            metrics["look_loss"] = look_loss.detach() / share
        if "cell_targets" in batch:
            counts = [len(one) for one in pictures.pooled]
            cells_ND = torch.cat(pictures.pooled)
            each_I = self.reader(cells_ND, batch["cell_targets"], counts=counts)
            # a picture counts by what is asked of it, so that a step may be cut anywhere
            cell_loss = (each_I * batch["picture_tokens"]).sum() / denominator
            metrics["loss"] = metrics["loss"] + settings.cell_loss * cell_loss
            metrics["cell_loss"] = cell_loss.detach() / share
        return metrics

    @torch.no_grad()
    def evaluate(self, source: SampleSource, *, limit: int) -> dict[str, float]:
        """Share of held-out targets that the greedy policy hits, and how often it zooms."""
        self.base.eval()
        size, skip = self.config.eval.batch_size, self.config.data.on_error == "skip"
        hits: list[bool] = []
        zooms = 0
        for tasks in held_out(source, limit=limit, size=size, skip=skip):
            for (episode,) in self.rolled(self.tasks(tasks)):
                verdict = verdict_of(episode)
                hits.append(verdict is not None and verdict.hit)
                zooms += episode.screen.zooms > 0
        return {"accuracy": sum(hits) / len(hits), "zoom_rate": zooms / len(hits)}

    def rolled(self, tasks: list[Task]) -> list[list[Episode]]:
        return roll(
            self.dialogue, tasks, group=1, seeds=[[0]] * len(tasks), temperature=1.0,
            look=self.look, greedy=True,
        )  # fmt: skip

    def groups(self) -> dict[str, list[nn.Parameter]]:
        return groups_of_whole(self.model)

    def finish(self, run: RunDir) -> None:
        """Write the base with its processor for the next phase, adapters merged into it."""
        self.learner.save(run)


class PlacesPhase(DemoPhase):
    """Name places behind one picture at a time."""

    look: Look = "never"

    def __init__(self, config: Config) -> None:
        super().__init__(config, vision=config.grounding.places.vision)
        self.questions, self.views = (
            config.grounding.places.questions,
            config.grounding.places.views,
        )

    def tasks(self, tasks: list[Task]) -> list[Task]:
        """Pages as they are once they have loaded: nothing can be named on them before."""
        return [replace(one, loading=None, loading_tree=()) for one in tasks]

    def demonstrations(self, samples: list[Sample]) -> list[list[Episode]]:
        rest, view = self.tasks(tasks_of(samples)), samples[0].facts.get("view", 0)
        page = f"{samples[0].image_key or samples[0].id} {view}"
        groups = []
        if chance("crop", page) < self.settings.places.crop_share:
            crop, rest = self._cropped(rest, page=page)
            groups.append(crop)
        # each by itself: what else is asked in a batch must change nothing
        groups += self._cut(rest, page=page) if view and rest else [rest]
        return [
            [self.dialogue.demonstration(one, looks=(), index=i) for i, one in enumerate(group)]
            for group in groups
            if group
        ]

    def _cropped(self, tasks: list[Task], *, page: str) -> tuple[list[Task], list[Task]]:
        """What one crop of the page shows, asked of the crop; and the rest."""
        screen = self.dialogue.screen(tasks[0])
        view = screen.zoom(screen.numbers(self._window(tasks[0], page=page))).view
        return (tasks, []) if view is None else shown_in(view.box, view.image, tasks)

    def _cut(self, tasks: list[Task], *, page: str) -> tuple[list[Task], list[Task]]:
        """What the page shows without a little of its sides, another view of it; and the rest."""
        side = 1 - LARGEST_CUT * chance("side", page)
        left, top = ((1 - side) * chance(axis, page) for axis in "xy")
        window, whole = Box(left, top, left + side, top + side).clamped(), tasks[0].image
        image = whole.resize(
            self.dialogue.fit(whole.size), Image.Resampling.BICUBIC, box=window.pixels(whole.size)
        )
        return shown_in(window, image, tasks)

    def _window(self, task: Task, *, page: str) -> Box:
        """Where the task's page is cropped: about one thing and all that has its colour, or
        anywhere if nothing is known of the page.

        Drawn by the page alone, whatever is asked of it in a batch.
        """
        side = self.settings.zoom.window
        things = things_of(task.tree) or [Thing(Box(*one["box"]), 0, 0) for one in task.tree]
        if not things:
            left, top = ((1 - side) * chance("window", axis, page) for axis in "xy")
            return Box(left, top, left + side, top + side)
        chosen = things[int(chance("thing", page) * len(things))]
        mates = union([one.box for one in things if one.color == chosen.color])
        shown = mates if max(mates.width, mates.height) < side else chosen.box
        return drawn_window(shown, side=side, jitter=0.9, key=page)


class WarmPhase(DemoPhase):
    """Whole episodes, with a crop or without; a page that still loads is waited for first."""

    def __init__(self, config: Config) -> None:
        settings = config.grounding.warm
        super().__init__(config, vision=settings.vision, lora=settings.adapter == "lora")

    def demonstrations(self, samples: list[Sample]) -> list[list[Episode]]:
        return [[self._demonstration(one, index=i) for i, one in enumerate(tasks_of(samples))]]

    def _demonstration(self, task: Task, *, index: int) -> Episode:
        settings, looks = self.settings, []
        if task.loading is not None and "wait" not in settings.tools:
            raise InputError(
                f"{task.sample.id}: the page is still loading, and no tool waits for it"
                "\n  fix: grounding.tools=[zoom,wait], or data.train.loading_share=0"
            )
        zooms = "zoom" in settings.tools and settings.zoom.calls
        if zooms and chance("zoom", task.sample.id) < self._zoom_share(task):
            assert task.box is not None
            window = drawn_window(
                task.box, side=settings.zoom.window, jitter=settings.warm.jitter,
                key=task.sample.id,
            )  # fmt: skip
            looks = [window] if shows_whole(self.dialogue, task, window) else []
        return self.dialogue.demonstration(task, looks=looks, index=index)

    def _zoom_share(self, task: Task) -> float:
        """How likely the task is demonstrated with a zoom."""
        warm = self.settings.warm
        side = target_side(task.box, size=self.dialogue.fit(task.image.size))
        hard = side is not None and side < warm.hard_side
        most = min(warm.zoom_share, 1 - warm.zoom_share)
        return warm.zoom_share + (1 if hard else -1) * warm.lean * most


def shown_in(
    window: Box, image: Image.Image, tasks: Sequence[Task]
) -> tuple[list[Task], list[Task]]:
    """What a part of the page shows whole, asked of that part's picture; and the rest."""
    inside: list[Task] = []
    outside: list[Task] = []
    for task in tasks:
        assert task.box is not None
        if _within(task.box, window):
            seen = task.box.seen_in(window)
            inside.append(replace(task, image=image, box=seen, kept=window))
        else:
            outside.append(task)
    return inside, outside


def shows_whole(dialogue: Dialogue, task: Task, window: Box) -> View | None:
    """The crop at `window` where it can be had and shows the whole target, else None."""
    screen = dialogue.screen(replace(task, loading=None))
    view = screen.zoom(screen.numbers(window)).view
    return view if view and task.box and _within(task.box, view.box) else None


def drawn_window(box: Box, *, side: float, jitter: float, key: str) -> Box:
    """A window of `side` of each side that shows the whole box, drawn by `key`.

    `jitter` 0 puts the box in the middle, 1 lets it lie anywhere inside; the window stays on the
    screen. A box larger than the window lies about its middle.
    """
    edges = []
    for axis, (low, high) in enumerate(((box.left, box.right), (box.top, box.bottom))):
        room = max(0.0, side - (high - low)) / 2
        center = (low + high) / 2 + jitter * room * (2 * chance("window", axis, key) - 1)
        start = min(1.0 - side, max(0.0, center - side / 2))
        edges.append((start, start + side))
    (left, right), (top, bottom) = edges
    return Box(left, top, right, bottom)


def _within(box: Box, view: Box) -> bool:
    inside = box.seen_in(view)
    return min(inside) >= 0 and max(inside) <= 1


def _cell_targets(batch: dict[str, Any], episodes: Sequence[Episode]) -> dict[str, Tensor]:
    """{name: [N]} over the batch's distinct pictures, in their order."""
    found: dict[int, dict[str, list[int]]] = {}
    first_of = {int(row): int(own[own >= 0].min()) for row, own in enumerate(batch["episode_RL"])}
    views: dict[int, int] = defaultdict(int)
    for look, picture in zip(batch["looks"].tolist(), batch["picture_of"].tolist(), strict=True):
        row, _, _, episode, down, across = look
        views[episode] += episode != NOBODY
        if picture in found:
            continue
        known = episodes[first_of[row] if episode == NOBODY else episode]
        shown = known.screen.views[0 if episode == NOBODY else views[episode]]
        tree = known.task.loading_tree if shown.loading else known.task.tree
        view = shown.box.inside(known.task.kept or WHOLE)
        found[picture] = cell_labels(things_of(tree), view=view, grid=(down, across))
    ordered = [found[picture] for picture in range(len(found))]
    return {
        name: torch.tensor([value for one in ordered for value in one[name]])
        for name in THING_TARGETS
    }


def _picture_tokens(batch: dict[str, Any]) -> Tensor:
    """[I]: the written tokens that each distinct picture is behind."""
    told_RL, episode_RL = batch["labels"] != IGNORE_INDEX, batch["episode_RL"]
    tokens_I = torch.zeros(len(batch["image_grid_thw"]))
    for look, picture in zip(batch["looks"].tolist(), batch["picture_of"].tolist(), strict=True):
        row, _, _, episode, _, _ = look
        own_L = told_RL[row] if episode == NOBODY else told_RL[row] & (episode_RL[row] == episode)
        tokens_I[picture] += own_L.sum()
    return tokens_I


def _look_losses(watched: Watched, batch: dict[str, Any]) -> Tensor:
    """[D]: -log of the attention half the heads pay to what is written about."""
    row_D, from_D = batch["look_row"], batch["look_from"]
    visible_DL = batch["attention_mask"][row_D, 0, from_D]
    paid_DHL = watched.paid(row_W=row_D, position_W=from_D, visible_WL=visible_DL)
    heads = max(1, paid_DHL.shape[1] // 2)
    mass_DH = (paid_DHL[:, :heads] * batch["look_at"][:, None]).sum(-1)
    return -mass_DH.clamp_min(1e-6).log().mean(1)

"""What policy and screen say to each other, as tokens: the only place that renders dialogues.

Tasks, tool results and whole episodes flow in; token ids, pictures, packed learning batches, and
from those states and log-probabilities flow out. Everything is rendered by the processor's own
chat template, piece by piece: prompt, then what the policy writes, then what a tool gives back,
such that the pieces joined are the template's rendering of the whole conversation. What the policy
wrote is kept as the ids it wrote, never rendered again. The picture comes before the instruction,
so that all questions about a screenshot share their beginning. Behind a selector
(`grounding.selector`) a picture has placeholders for the cells that are kept alone, at the
positions they have in the whole picture.

A policy cannot write placeholders of pictures and marks that begin a turn: these are shut out of
its distribution (`shut`), when it is sampled and when its log-probabilities are computed alike.
Left out: sampling (`rollouts.py`) and what is learned from it.

Shapes: R rows, L tokens of a row, D width, V vocabulary, T learned tokens of a batch, N patches,
P tokens of a piece.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from saccade.config.errors import InputError
from saccade.config.schema import Config
from saccade.data.boxes import Box, Size
from saccade.data.chat import IGNORE_INDEX, ChatRenderer
from saccade.grounding.coordinates import CoordinateError, convention_of, seen_size
from saccade.grounding.environment import Answer, Screen, ToolResult, View
from saccade.grounding.episodes import Episode, Task, screen_of
from saccade.grounding.messages import (
    Turn,
    harmless,
    instruction_text,
    read_turn,
    system_text,
    tool_schemas,
    write_call,
)
from saccade.grounding.packed import Picture, Piece, Row, batch_of, filled_up
from saccade.grounding.pruning import open_pruner
from saccade.models.packed import additive
from saccade.models.recompute import recomputed_layers
from saccade.models.relevance.prune import ImageTokens
from saccade.models.relevance.vision import encode_cells, encode_images
from saccade.models.tools import CALL, FEW_TOKENS

NOT_WRITTEN = (
    "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|im_start|>", "<|endoftext|>",
)  # fmt: skip
"""Tokens that no policy writes: a picture that is not there, a turn of somebody else."""
CACHED_VALUES = 64_000_000
"""Patch values kept at hand (4 bytes each)."""


@dataclass(frozen=True)
class Prompt:
    """Everything before the policy's first token; `start` ends with the first picture."""

    start: Piece
    rest: Piece

    @property
    def ids(self) -> Tensor:
        return torch.cat([self.start.ids, self.rest.ids])

    @property
    def whole(self) -> Piece:
        """Both parts as one."""
        start, rest = self.start, self.rest
        positions = torch.cat([start.positions_3P, rest.positions_3P + start.length], dim=1)
        return Piece(self.ids, positions, start.pictures)

    @property
    def pixels_ND(self) -> Tensor:
        return self.start.pictures[0].pixels_ND

    @property
    def grid(self) -> tuple[int, int, int]:
        """The picture's patches: 1, height, width."""
        return self.start.pictures[0].grid


class Dialogue:
    """Renders, encodes and reads dialogues for one base and its processor."""

    def __init__(self, base: Any, processor: Any, *, config: Config) -> None:
        """Raises InputError where the base cannot call tools (see `models/tools.py`)."""
        self.base, self.processor, self.config = base, processor, config
        self.settings = config.grounding
        self.renderer = ChatRenderer(
            processor, min_pixels=config.model.min_pixels, max_pixels=config.model.max_pixels
        )
        self.tokenizer, self.markers = self.renderer.tokenizer, self.renderer.markers
        self.convention = convention_of(
            self.settings.coordinates, model_type=base.config.model_type
        )
        ids = self.tokenizer.convert_tokens_to_ids
        self.call, self.end = ids(CALL), self.markers.turn_end
        if self.call is None or self.call == self.tokenizer.unk_token_id:
            raise InputError(
                f"{base.config.model_type}: the tokenizer has no {CALL}"
                "\n  fix: saccade.models.tools.tool_ready(backbone) adds what calls need"
            )
        images = processor.image_processor
        self.merge, self.patch = images.merge_size, images.patch_size
        self.shut = self._shut()
        self.pruner = open_pruner(config, base=base, processor=processor)
        self._pictures: OrderedDict[Hashable, tuple[Image.Image, Picture]] = OrderedDict()
        self._values = 0
        self._texts: dict[tuple[str, tuple[Any, ...]], Piece] = {}

    # pieces --------------------------------------------------------------------------------------

    def prompt(self, task: Task) -> Prompt:
        """System words, the screenshot as first seen, the instruction, the policy's header.

        A base that spells its words is told nothing: it could not read it.
        """
        seen = task.image if task.loading is None else task.loading
        picture = self._picture(seen, kept=task.kept is not None)
        return self._asked(task, self._pruned(picture, seen, task))

    def _asked(self, task: Task, picture: Picture) -> Prompt:
        said = harmless(instruction_text(task.instruction, self.settings))
        messages = [_shown("user", said, pictures=1)]
        if len(self.tokenizer) >= FEW_TOKENS:
            told = system_text(self.settings, convention=self.convention)
            messages.insert(0, {"role": "system", "content": told})
        tools = [name for name in self.settings.tools if name != "zoom" or self.settings.zoom.calls]
        text = self._render(messages, tools=tool_schemas(tools) if tools else None)
        mark = self.tokenizer.convert_ids_to_tokens(self.markers.vision_end)
        before, _, after = text.partition(mark)
        return Prompt(self._piece(before + mark, (picture,)), self._piece(after, ()))

    def given(self, result: ToolResult, *, task: Task | None = None) -> Piece:
        """A tool's turn and the policy's next header: all that follows the mark of its turn.

        `task`: as for `look`.
        """
        pictures = () if result.view is None else (self.look(result.view, task=task),)
        asked = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        before = self._render(asked, generation=False)
        answered = [*asked, _shown("tool", harmless(result.text), pictures=len(pictures))]
        after = self._render(answered)
        end = self.tokenizer.convert_ids_to_tokens(self.end)
        if not after.startswith(before):
            raise InputError("the chat template rewrites a turn when a tool answers it")
        return self._piece(after[before.rindex(end) + len(end) :], pictures)

    def look(self, view: View, *, task: Task | None = None) -> Picture:
        """A view as the model is shown it; `task` is what a selector chooses its cells for."""
        picture = self._picture(view.image, kept=view.image.size == view.size)
        seen = picture.grid[2] * self.patch, picture.grid[1] * self.patch
        if seen != view.size:
            raise ValueError(f"a view of {view.size} pixels is seen at {seen}")
        if self.pruner is not None and task is None:
            raise ValueError("a selector cannot choose without a question")
        return self._pruned(picture, view.image, task, name=f"{view.box}")

    def pictures(self, episode: Episode) -> list[Picture]:
        """All pictures of an episode as the model was shown them."""
        later = [self.look(view, task=episode.task) for view in episode.screen.views[1:]]
        return [self.prompt(episode.task).start.pictures[0], *later]

    def choosing(self, picture: Picture, *, task: Task) -> float:
        """Floating-point operations of choosing what is kept of a picture, beside the tower's."""
        if self.pruner is None:
            return 0.0
        whole = replace(picture, kept_C=None, tokens=None)
        ids = self._asked(task, whole).ids
        return self.pruner.cost(ids, pixels_ND=whole.pixels_ND, grid=whole.grid)

    def screen(self, task: Task) -> Screen:
        """The environment of one episode."""
        fit = self.fit_zoom if task.kept is not None else self.fit
        return screen_of(
            task, config=self.settings, convention=self.convention, fit=fit, fit_zoom=self.fit_zoom
        )

    def fit(self, size: Size) -> Size:
        """The size at which the model sees a screenshot of `size` (width, height)."""
        limits = self.renderer.size
        edges = limits["shortest_edge"], limits["longest_edge"]
        return seen_size(size, cell=self.patch * self.merge, limits=edges)

    def fit_zoom(self, size: Size) -> Size:
        """The size nearest to `size` that the model sees as it is: no limits, only whole cells."""
        cell = self.patch * self.merge
        return seen_size(size, cell=cell, limits=(cell**2, 2**62))

    def place(self, turn: Turn, screen: Screen) -> Answer:
        """The place on the screenshot that an answering turn names.

        Raises CoordinateError for a turn that names none.
        """
        if turn.kind != "answer" or turn.numbers is None:
            raise CoordinateError(turn.problem or "the turn is no answer")
        return screen.answer(turn.numbers, stated=turn.stated_confidence)

    def words(self, ids: Tensor | list[int]) -> str:
        """The text of a turn as it was written, without its end mark."""
        if isinstance(ids, Tensor):
            ids = ids.tolist()
        return self.tokenizer.decode([one for one in ids if one != self.end])

    # episodes ------------------------------------------------------------------------------------

    def demonstration(self, task: Task, *, looks: Sequence[Box], index: int = 0) -> Episode:
        """An episode that zooms to `looks` (boxes of the screenshot) and then answers rightly.

        A page that still loads is waited for first. Written with the tokens that the text has.
        Raises InputError when a call is refused or the task has no box or the last look does not
        show it.
        """
        screen, turns = self.screen(task), []
        ids: list[Tensor] = []
        written: list[Tensor] = []
        for box in looks if task.loading is None else (None, *looks):
            name = "wait" if box is None else "zoom"
            arguments = {} if box is None else {"box": screen.numbers(box)}
            turns.append(write_call(name, json.dumps(arguments)))
            result = screen.call(name, arguments)
            if not result.ok:
                raise InputError(f"{task.sample.id}: a demonstrated {name} fails: {result.text}")
            answer = self.given(result, task=task).ids
            said = self._written(turns[-1])
            ids += [said, answer]
            written += [torch.ones_like(said), torch.zeros_like(answer)]
        turns.append(self._answer_text(task, screen))
        said = self._written(turns[-1])
        ids.append(said)
        written.append(torch.ones_like(said))
        whole = torch.cat(ids)
        none = torch.zeros(len(whole))
        return Episode(
            task=task, index=index, seed=0, turns=turns, ids=whole,
            written=torch.cat(written).bool(), log_probs=none, entropies=none.clone(),
            screen=screen, answer=self.place(read_turn(turns[-1]), screen), finish="answered",
            forced="free",
        )  # fmt: skip

    def rows(self, groups: Sequence[Sequence[Episode]]) -> dict[str, Any]:
        """The packed learning batch: rows `[beginning | episode 1's rest | episode 2's ...]`.

        One row per group; a group's tasks show one screenshot, whatever is asked about it, or
        ValueError. The batch holds `input_ids`, `labels` (written tokens, else
        -100), `attention_mask` (boolean [R, 1, L, L]), `position_ids` [3, R, L] of each episode
        alone, `pixel_values` and `image_grid_thw` (each picture once), `picture_of` (which of them
        is at each occurrence), `looks` (per occurrence: row, start, stop, episode or -1, cells
        down, cells across), `episode_RL` (number in the batch, counted through the groups; -1
        for none) and `closed_RL` (where a call could not be sampled).
        """
        rows: list[Row] = []
        count = 0
        for group in groups:
            rows.append(self._row(group, first=count))
            count += len(group)
        return batch_of(rows, pad=self.markers.pad, image=self.markers.image, merge=self.merge)

    # reading -------------------------------------------------------------------------------------

    def states(self, batch: Mapping[str, Any], *, pictures: ImageTokens | None = None) -> Tensor:
        """Hidden states [R, L, D] in front of the output layer; the tower learns if it may.

        `pictures` are the batch's, where they are encoded already.
        """
        pictures = self.encoded(batch) if pictures is None else pictures
        again = self.config.training.gradient_checkpointing and torch.is_grad_enabled()
        device = self.base.device
        mask = batch["attention_mask"].to(device)
        with recomputed_layers(self.base, on=again):
            out = self.base.model(
                input_ids=batch["input_ids"].to(device),
                attention_mask=additive(mask, dtype=self.base.dtype),
                position_ids=batch["position_ids"].to(device),
                mm_encoder_outputs={
                    "image": pictures.pick(batch["picture_of"].tolist()).encoder_output()
                },
                use_cache=False,
                return_dict=True,
            )
        return out.last_hidden_state

    def encoded(self, batch: Mapping[str, Any]) -> ImageTokens:
        """The batch's pictures, each once; with a gradient where the tower learns."""
        device = self.base.device
        pixels_ND = batch["pixel_values"].to(device)
        grid_I3 = batch["image_grid_thw"].to(device)
        if "kept_C" in batch:
            kept_C = batch["kept_C"].to(device)
            if self.pruner is not None and self.pruner.early:
                return encode_cells(self.base, pixels_ND, grid_I3, kept_C)
            return encode_images(self.base, pixels_ND, grid_I3, reuse=False).tokens.kept(kept_C)
        learns = any(one.requires_grad for one in self.base.model.visual.parameters())
        if not (learns and torch.is_grad_enabled()):
            return encode_images(self.base, pixels_ND, grid_I3, reuse=False).tokens
        out = self.base.model.get_image_features(pixels_ND, grid_I3, return_dict=True)
        levels = getattr(out, "deepstack_features", None) or []
        return ImageTokens(tuple(out.pooler_output), tuple(tuple(one) for one in levels))

    def log_probs(
        self,
        batch: Mapping[str, Any],
        *,
        states: Tensor | None = None,
        temperature: float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        """Log-probability of each written token and the entropy it was chosen at, both [R, L].

        Of the distribution without what is `shut`, at `temperature`; 0 where nothing was written.
        """
        return self.chances(batch, states=states, temperature=temperature)[:2]

    def chances(
        self,
        batch: Mapping[str, Any],
        *,
        states: Tensor | None = None,
        temperature: float = 1.0,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As `log_probs`, and the log-probability of the mark that opens a call, all [R, L]."""
        states_RLD = self.states(batch) if states is None else states
        labels_RL = batch["labels"].to(states_RLD.device)
        closed_RL = batch["closed_RL"].to(states_RLD.device)
        told_RL = labels_RL[:, 1:] != IGNORE_INDEX
        logits_TV = self.logits(states_RLD[:, :-1][told_RL], closed=closed_RL[:, 1:][told_RL])
        log_probs_TV = (logits_TV / temperature).log_softmax(-1)
        chosen_T, entropy_T = measured(log_probs_TV, labels_RL[:, 1:][told_RL])
        place = torch.nn.functional.pad(told_RL, (1, 0))
        empty = torch.zeros(labels_RL.shape, device=states_RLD.device)
        chosen_RL, entropy_RL, call_RL = (
            empty.masked_scatter(place, one)
            for one in (chosen_T, entropy_T, log_probs_TV[:, self.call])
        )
        return chosen_RL, entropy_RL, call_RL

    def logits(self, states_TD: Tensor, *, closed: Tensor | None = None) -> Tensor:
        """Logits [T, V] in float32 with what cannot be written shut out.

        `closed` [T]: where a tool call cannot be written either.
        """
        logits_TV = self.base.lm_head(states_TD).float() + self.shut.to(states_TD.device)
        if closed is not None and bool(closed.any()):
            never = torch.zeros_like(self.shut, device=states_TD.device)
            never[self.call] = NEVER
            logits_TV = torch.where(closed[:, None], logits_TV + never, logits_TV)
        return logits_TV

    # inside --------------------------------------------------------------------------------------

    def _row(self, group: Sequence[Episode], *, first: int) -> Row:
        prompts = [self.prompt(one.task) for one in group]
        start = prompts[0].start
        for prompt, episode in zip(prompts, group, strict=True):
            own, first_picture = prompt.start.pictures[0], start.pictures[0]
            same = own is first_picture or (
                own.form == first_picture.form
                and torch.equal(own.pixels_ND, first_picture.pixels_ND)
            )
            if not (same and torch.equal(prompt.start.ids, start.ids)):
                raise ValueError(f"{episode.task.sample.id} does not show its group's screenshot")
        rests = [self._rest(one, prompt) for one, prompt in zip(group, prompts, strict=True)]
        return Row(start, rests, range(first, first + len(group)))

    def _rest(self, episode: Episode, prompt: Prompt) -> Piece:
        """All of an episode that follows the first picture."""
        asked, ids = prompt.rest.ids, episode.ids
        # a tool's answer that was taken back, because it came after the last token, shows nothing
        shown = int((ids == self.markers.vision_start).sum())
        views = episode.screen.views[1 : 1 + shown]
        pictures = tuple(self.look(one, task=episode.task) for one in views)
        whole = torch.cat([asked, ids])
        silent = torch.full_like(asked, IGNORE_INDEX)
        labels = torch.cat([silent, torch.where(episode.written, ids, IGNORE_INDEX)])
        closed = torch.full_like(whole, episode.forced != "free", dtype=torch.bool)
        return Piece(whole, self._positions(whole, pictures), pictures, labels, closed)

    def _answer_text(self, task: Task, screen: Screen) -> str:
        if task.box is None:
            raise InputError(f"{task.sample.id}: a demonstration needs the target's box")
        if not task.box.seen_in(screen.view.box).clamped().area:
            raise InputError(f"{task.sample.id}: the last look does not show the target")
        return screen.write(task.box if self.settings.answer == "box" else task.box.center)

    def _written(self, text: str) -> Tensor:
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return torch.tensor([*ids, self.end], dtype=torch.long)

    def _render(
        self, messages: list[dict[str, Any]], *, generation: bool = True, tools: Any = None
    ) -> str:
        return self.tokenizer.apply_chat_template(
            messages,
            chat_template=self.processor.chat_template or self.tokenizer.chat_template,
            tools=tools,
            tokenize=False,
            add_generation_prompt=generation,
        )

    def _piece(self, text: str, pictures: tuple[Picture, ...]) -> Piece:
        """Tokens of a text, its placeholders repeated once per visual token; kept by its words."""
        key = text, tuple(one.form for one in pictures)
        if key not in self._texts:
            if len(self._texts) > 4096:
                self._texts.clear()
            image = self.processor.image_token
            first, *others = text.split(image)
            counts = [one.count(self.merge) for one in pictures]
            filled = [image * n + rest for n, rest in zip(counts, others, strict=True)]
            ids = self.tokenizer(first + "".join(filled), add_special_tokens=False)["input_ids"]
            whole = torch.tensor(ids, dtype=torch.long)
            self._texts[key] = Piece(whole, self._positions(whole, pictures))
        return replace(self._texts[key], pictures=pictures)

    def _positions(self, ids: Tensor, pictures: Sequence[Picture]) -> Tensor:
        """M-RoPE positions [3, P], counted from 0: those of the whole pictures, of what is kept."""
        if not pictures:
            return torch.arange(len(ids)).expand(3, -1)
        ids, stays_P = filled_up(ids, pictures, image=self.markers.image, merge=self.merge)
        grids = torch.tensor([one.grid for one in pictures])
        types = (ids == self.markers.image).to(torch.int)
        positions, _ = self.base.model.get_rope_index(
            ids[None], mm_token_type_ids=types[None], image_grid_thw=grids
        )
        return positions[:, 0, stays_P]

    def _pruned(
        self, picture: Picture, image: Image.Image, task: Task | None, *, name: str = ""
    ) -> Picture:
        """The picture with the cells that the selector keeps for the task's question."""
        if self.pruner is None or task is None:
            return picture
        key = id(image), picture.grid, task.sample.id
        if key not in self._pictures:
            kept = self.pruner.choose(
                self._asked(task, picture).ids, pixels_ND=picture.pixels_ND, grid=picture.grid,
                name=f"{task.sample.id} {name}",
            )  # fmt: skip
            self._keep(key, image, replace(picture, kept_C=kept.cells_C, tokens=kept.tokens))
        self._pictures.move_to_end(key)
        return self._pictures[key][1]

    def _picture(self, image: Image.Image, *, kept: bool) -> Picture:
        """Patches of a picture, resized within the configured limits unless its size is `kept`."""
        key = id(image), kept
        if key in self._pictures:
            self._pictures.move_to_end(key)
            return self._pictures[key][1]
        limits = self.renderer.size
        if kept:
            area = image.width * image.height
            limits = {"shortest_edge": area, "longest_edge": area}
        out = self.processor.image_processor(images=[image], size=limits, return_tensors="pt")
        _, down, across = out["image_grid_thw"][0].tolist()
        picture = Picture(out["pixel_values"], (1, down, across))
        self._keep(key, image, picture)
        return picture

    def _keep(self, key: Hashable, image: Image.Image, picture: Picture) -> None:
        # the image is kept with its patches: its number stays taken as long as the entry lives
        self._pictures[key] = image, picture
        self._values += picture.values
        while self._values > CACHED_VALUES and len(self._pictures) > 1:
            self._values -= self._pictures.popitem(last=False)[1][1].values

    def _shut(self) -> Tensor:
        """Added to logits [V]: 0, or so little that nothing is left."""
        rows = self.base.get_output_embeddings().weight.shape[0]
        shut = torch.zeros(rows)
        shut[len(self.tokenizer) :] = NEVER
        vocabulary = self.tokenizer.get_vocab()
        shut[[vocabulary[one] for one in NOT_WRITTEN if one in vocabulary]] = NEVER
        return shut


NEVER = -1e30
"""A logit far below any other, yet finite: its product with a probability of 0 is 0."""


def measured(log_probs_TV: Tensor, chosen_T: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability of the chosen tokens and the entropy of the distributions, both [T]."""
    entropy_T = -(log_probs_TV.exp() * log_probs_TV).sum(-1)
    return log_probs_TV.gather(1, chosen_T[:, None])[:, 0], entropy_T


def _shown(role: str, text: str, *, pictures: int) -> dict[str, Any]:
    words = [{"type": "text", "text": text}] if text else []
    return {"role": role, "content": [*[{"type": "image"}] * pictures, *words]}

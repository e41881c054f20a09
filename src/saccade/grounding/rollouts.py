"""Let a policy act: many episodes at once, every screenshot and question read a single time.

Tasks and seeds flow in; finished episodes flow out, with the tokens the policy wrote, their
log-probabilities and entropies, and the screen as it was left. All episodes take their turns
together: everybody writes until everybody has ended the turn, then the tools answer, and what they
give back (text and crops) is read by the rows that called, in one batch. Rows whose episode is over
are not computed any further.

`shared` reads a task's prompt once and repeats the cache for its group; without it each episode
reads its own prompt and encodes its own picture. Both sample the same: a token is chosen by the
inverse of the cumulated probabilities at one uniform number per place, drawn from the episode's own
seed, so that an episode does not depend on who else is in the batch (up to rounding).

Log-probabilities and entropies are those at temperature 1 of the distribution without what a policy
cannot write (`Dialogue.shut`, and a tool call where looking is forbidden), whatever temperature
was sampled at: what `Dialogue.log_probs` says of the same episode. Left out: what an episode is
worth (`rewards.py`) and what is learned from it. The base is used in the mode it is in.

Shapes: N rows, V vocabulary, T most tokens of an episode, P tokens of a piece.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from saccade.grounding.coordinates import CoordinateError
from saccade.grounding.dialogue import NEVER, Dialogue, measured
from saccade.grounding.environment import Answer, Screen
from saccade.grounding.episodes import Episode, Finish, Look, Task
from saccade.grounding.memory import Memory, gathered
from saccade.grounding.messages import read_turn
from saccade.grounding.packed import Picture, Piece
from saccade.models.relevance.prune import joined
from saccade.models.relevance.vision import encode_images


@torch.no_grad()
def roll(
    dialogue: Dialogue,
    tasks: Sequence[Task],
    *,
    group: int,
    seeds: Sequence[Sequence[int]],
    temperature: float = 1.0,
    look: Look = "free",
    shared: bool = True,
    greedy: bool = False,
) -> list[list[Episode]]:
    """`group` episodes of each task; `seeds` holds, per task, one seed per episode.

    Raises ValueError for another number of seeds.
    """
    if [len(one) for one in seeds] != [group] * len(tasks):
        raise ValueError(f"seeds are not {len(tasks)} times {group}: one per episode of each task")
    if not tasks:
        return []
    parts = [
        _Part(task, index, seed, dialogue.screen(task))
        for task, own in zip(tasks, seeds, strict=True)
        for index, seed in enumerate(own)
    ]
    stage = _Stage(dialogue, parts, temperature=0.0 if greedy else temperature, look=look)
    rows: _Rows | None = stage.open(tasks, group=group, shared=shared)
    if look == "always":
        stage.force(rows)
    while rows is not None:
        rows = stage.listen(stage.speak(rows))
    episodes = [part.episode(look) for part in parts]
    return [episodes[at : at + group] for at in range(0, len(episodes), group)]


def first_answers(dialogue: Dialogue, tasks: Sequence[Task]) -> list[Episode]:
    """What the policy would say without a look, greedily: what a look is measured against."""
    seeds = [[0]] * len(tasks)
    return [
        one for (one,) in roll(dialogue, tasks, group=1, seeds=seeds, look="never", greedy=True)
    ]


@dataclass
class _Part:
    """One episode while it is played; `next` is what the policy is given before it goes on."""

    task: Task
    index: int
    seed: int
    screen: Screen
    turns: list[str] = field(default_factory=list)
    pieces: list[tuple[Tensor, ...]] = field(default_factory=list)
    written: int = 0
    answer: Answer | None = None
    finish: Finish | None = None
    next: Piece | None = None

    def given(self, piece: Piece) -> None:
        nothing = torch.zeros(len(piece.ids))
        self.pieces.append((piece.ids, nothing.bool(), nothing, nothing))
        self.next = piece

    def episode(self, look: Look) -> Episode:
        columns = zip(*self.pieces, strict=True)
        ids, written, log_probs, entropies = (torch.cat(one) for one in columns)
        assert self.finish is not None
        return Episode(
            task=self.task, index=self.index, seed=self.seed, turns=self.turns, ids=ids,
            written=written, log_probs=log_probs, entropies=entropies, screen=self.screen,
            answer=self.answer, finish=self.finish, forced=look,
        )  # fmt: skip


@dataclass
class _Rows:
    """The rows being computed: whose they are, what they remember, what comes next."""

    who_N: Tensor
    memory: Memory
    position_N: Tensor
    logits_NV: Tensor

    def chosen(self, rows: Tensor, *, room: int) -> _Rows:
        memory = gathered([(self.memory, rows)], room=room)
        return _Rows(self.who_N[rows], memory, self.position_N[rows], self.logits_NV[rows])


class _Stage:
    """All episodes of one call of `roll`: what they wrote, and who is still there."""

    def __init__(
        self, dialogue: Dialogue, parts: Sequence[_Part], *, temperature: float, look: Look
    ) -> None:
        self.dialogue, self.parts, self.temperature = dialogue, parts, temperature
        self.base, self.device = dialogue.base, dialogue.base.device
        self.most = dialogue.settings.grpo.max_tokens
        self.chance_NT = torch.stack([_chances(one.seed, self.most) for one in parts])
        self.chance_NT = self.chance_NT.to(self.device)
        shape = self.chance_NT.shape
        self.ids_NT = torch.zeros(shape, dtype=torch.long, device=self.device)
        self.log_probs_NT = torch.zeros(shape, device=self.device)
        self.entropies_NT = torch.zeros(shape, device=self.device)
        self.sampled_NT = torch.ones(shape, dtype=torch.bool, device=self.device)
        self.count_N = torch.zeros(shape[0], dtype=torch.long, device=self.device)
        self.shut_V = dialogue.shut.to(self.device, copy=True)
        self.last = int((self.shut_V == 0).nonzero()[-1])
        if look != "free":
            self.shut_V[dialogue.call] = NEVER

    # reading -------------------------------------------------------------------------------------

    def open(self, tasks: Sequence[Task], *, group: int, shared: bool) -> _Rows:
        """Read the prompts: once per task, or once per episode."""
        pieces = [self.dialogue.prompt(task).whole for task in tasks]
        copies_N = torch.arange(len(tasks), device=self.device).repeat_interleave(group)
        if not shared:
            pieces = [pieces[number] for number in copies_N.tolist()]
        memory = Memory(
            layers=self.base.config.get_text_config().num_hidden_layers,
            rows=len(pieces),
            room=0 if shared else self.most,
            like=torch.zeros((), dtype=self.base.dtype, device=self.device),
        )
        logits_NV = self._read(memory, pieces, reuse=shared)
        position_N = torch.tensor([one.length for one in pieces], device=self.device)
        who_N = torch.arange(len(self.parts), device=self.device)
        if shared:
            memory = gathered([(memory, copies_N)], room=self.most)
            logits_NV, position_N = logits_NV[copies_N], position_N[copies_N]
        return _Rows(who_N, memory, position_N, logits_NV)

    def _read(self, memory: Memory, pieces: Sequence[Piece], *, reuse: bool = True) -> Tensor:
        """Read a piece per row, left-padded; logits [N, V] of what follows."""
        longest = max(len(piece.ids) for piece in pieces)

        def padded(values: Tensor, fill: int) -> Tensor:
            return torch.nn.functional.pad(values, (longest - values.shape[-1], 0), value=fill)

        pad = self.dialogue.markers.pad
        ids_NP = torch.stack([padded(one.ids, pad) for one in pieces])
        place_3NP = torch.stack([padded(one.positions_3P, 0) for one in pieces], dim=1)
        present_NP = torch.stack([padded(torch.ones_like(one.ids), 0) for one in pieces]).bool()
        pictures = [picture for piece in pieces for picture in piece.pictures]
        out = self.base.model(
            input_ids=ids_NP.to(self.device),
            position_ids=place_3NP.to(self.device),
            attention_mask=memory.opened(present_NP.to(self.device)),
            past_key_values=memory,
            use_cache=True,
            **({"mm_encoder_outputs": self._encoded(pictures, reuse=reuse)} if pictures else {}),
        )
        return self._logits(out.last_hidden_state[:, -1])

    def _encoded(self, pictures: Sequence[Picture], *, reuse: bool) -> dict[str, Any]:
        chosen = [one.tokens for one in pictures if one.tokens is not None]
        if len(chosen) == len(pictures):  # a selector has encoded them already
            return {"image": joined(chosen).encoder_output()}
        pixels_ND = torch.cat([one.pixels_ND for one in pictures]).to(self.device)
        grid_I3 = torch.tensor([one.grid for one in pictures], device=self.device)
        tokens = encode_images(self.base, pixels_ND, grid_I3, reuse=reuse).tokens
        return {"image": tokens.encoder_output()}

    def _logits(self, states_ND: Tensor) -> Tensor:
        return self.base.lm_head(states_ND).float() + self.shut_V

    # writing -------------------------------------------------------------------------------------

    def force(self, rows: _Rows) -> None:
        """Everybody begins with a call; a token that nobody chose is not learned from."""
        token_N = torch.full_like(rows.who_N, self.dialogue.call)
        self.ids_NT[:, 0], self.sampled_NT[:, 0] = token_N, False
        self.count_N += 1
        self._step(rows, token_N, torch.ones_like(token_N, dtype=torch.bool))

    def speak(self, rows: _Rows) -> list[_Rows]:
        """Everybody writes a turn; returns the rows whose episode goes on after it."""
        waiting: list[_Rows] = []
        active_N = torch.ones_like(rows.who_N, dtype=torch.bool)
        while True:
            token_N = self._write(rows, active_N)
            ended_N = (token_N == self.dialogue.end) | (self.count_N[rows.who_N] >= self.most)
            active_N &= ~ended_N
            left = int(active_N.sum())
            # a row that leaves saves its share of every later step, at the price of one copy
            if left <= len(active_N) // 2:
                waiting.append(self._gone(rows, ~active_N))
                if not left:
                    return [one for one in waiting if len(one.who_N)]
                stay = active_N.nonzero()[:, 0]
                rows, token_N, active_N = (
                    rows.chosen(stay, room=self.most), token_N[stay], active_N[stay],
                )  # fmt: skip
            self._step(rows, token_N, active_N)

    def _write(self, rows: _Rows, active_N: Tensor) -> Tensor:
        """Choose everybody's next token [N]; those who have ended choose for nothing."""
        count_N = self.count_N[rows.who_N].clamp_max(self.most - 1)
        token_N = self._choose(rows.logits_NV, who_N=rows.who_N, count_N=count_N)
        log_prob_N, entropy_N = measured(rows.logits_NV.log_softmax(-1), token_N)
        here = rows.who_N[active_N], count_N[active_N]
        self.ids_NT[here] = token_N[active_N]
        self.log_probs_NT[here] = log_prob_N[active_N]
        self.entropies_NT[here] = entropy_N[active_N]
        self.count_N[rows.who_N] += active_N
        return token_N

    def _choose(self, logits_NV: Tensor, *, who_N: Tensor, count_N: Tensor) -> Tensor:
        """By the number that is drawn for this place of this episode; greedily at temperature 0."""
        if not self.temperature:
            return logits_NV.argmax(-1)
        chance_N = self.chance_NT[who_N, count_N]
        # summed in double precision: over a large vocabulary rounding outweighs a rare token
        total_NV = (logits_NV / self.temperature).softmax(-1).double().cumsum(-1)
        aim_N1 = chance_N[:, None] * total_NV[:, -1:]
        return torch.searchsorted(total_NV, aim_N1, right=True)[:, 0].clamp_max(self.last)

    def _step(self, rows: _Rows, token_N: Tensor, active_N: Tensor) -> None:
        """Read everybody's last token; those who have ended leave a hole."""
        out = self.base.model.language_model(
            inputs_embeds=self.base.get_input_embeddings()(token_N[:, None]),
            position_ids=rows.position_N[None, :, None].expand(3, -1, 1),
            attention_mask=rows.memory.opened(active_N[:, None]),
            past_key_values=rows.memory,
            use_cache=True,
        )
        rows.position_N = rows.position_N + active_N
        rows.logits_NV = self._logits(out.last_hidden_state[:, -1])

    # between turns -------------------------------------------------------------------------------

    def _gone(self, rows: _Rows, ended_N: Tensor) -> _Rows:
        """Of the rows that ended their turn, those that are given something and go on."""
        ended = ended_N.nonzero()[:, 0].tolist()
        who = [int(rows.who_N[at]) for at in ended]
        self._hear(who)
        on = [at for at, one in zip(ended, who, strict=True) if self.parts[one].next is not None]
        return rows.chosen(torch.tensor(on, dtype=torch.long, device=self.device), room=0)

    def _hear(self, numbers: Sequence[int]) -> None:
        """Take down these rows' turns, and let the screen answer those that call."""
        wanted = torch.tensor(numbers, dtype=torch.long, device=self.device)
        ids_NT, log_probs_NT, entropies_NT, sampled_NT, count_N = (
            one[wanted].cpu() for one in (
                self.ids_NT, self.log_probs_NT, self.entropies_NT, self.sampled_NT, self.count_N,
            )
        )  # fmt: skip
        for row, number in enumerate(numbers):
            part, stop = self.parts[number], int(count_N[row])
            new = slice(part.written, stop)
            ids = ids_NT[row, new]
            part.pieces.append(
                (ids, sampled_NT[row, new], log_probs_NT[row, new], entropies_NT[row, new])
            )
            part.written = stop
            ended = int(ids[-1]) == self.dialogue.end
            part.turns.append(self.dialogue.words(ids[:-1] if ended else ids))
            part.finish = self._answered(part) if ended else "truncated"

    def _answered(self, part: _Part) -> Finish | None:
        """How the episode ends with this turn; None where it goes on.

        A call that is spelled letter by letter is none: its mark is what can be forbidden.
        """
        turn = read_turn(part.turns[-1])
        if turn.kind == "call":
            if self.dialogue.call not in part.pieces[-1][0]:
                return "unreadable"
            if part.written >= self.most:  # nobody would see what the tool shows
                return "truncated"
            result = part.screen.take(turn)
            if part.screen.over:
                return "too many turns"
            part.given(self.dialogue.given(result, task=part.task))
            return None
        try:
            part.answer = self.dialogue.place(turn, part.screen)
        except CoordinateError:
            return "unreadable"
        return "answered"

    def listen(self, waiting: Sequence[_Rows]) -> _Rows | None:
        """The rows that go on, after they have read what they were given."""
        if not waiting:
            return None
        who_N = torch.cat([one.who_N for one in waiting])
        position_N = torch.cat([one.position_N for one in waiting])
        pieces = []
        for number, position in zip(who_N.tolist(), position_N.tolist(), strict=True):
            part = self.parts[number]
            assert part.next is not None
            # the mark that ended the turn was written, but not read yet
            end = torch.tensor([self.dialogue.end])
            first = torch.zeros(3, 1, dtype=torch.long)
            positions = torch.cat([first, part.next.positions_3P + 1], dim=1) + position
            pieces.append(Piece(torch.cat([end, part.next.ids]), positions, part.next.pictures))
            part.next = None
        longest = max(len(one.ids) for one in pieces)
        everyone = [(one.memory, torch.arange(len(one.who_N))) for one in waiting]
        memory = gathered(everyone, room=longest + self.most)
        logits_NV = self._read(memory, pieces)
        position_N = torch.tensor([one.length for one in pieces], device=self.device)
        return _Rows(who_N, memory, position_N, logits_NV)


def _chances(seed: int, length: int) -> Tensor:
    """One uniform number in [0, 1) per place of an episode."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(length, generator=generator, dtype=torch.float64)

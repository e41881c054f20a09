"""Episodes about one screenshot as packed rows, and what a row's tokens are asked.

Pieces of episodes flow in (a shared beginning through the first picture, and what follows it in
each episode, pictures in between included); ids, labels, positions and a block mask flow out, all
named as a model takes them. Every episode sees the beginning and itself, at the positions it would
have alone, so a packed row gives the numbers of separate sequences. Left out: rendering
(`dialogue.py`) and losses.

Shapes: R rows, L tokens of a row, P tokens of one piece, N patches, D patch values, I pictures,
C merged cells of pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from saccade.data.chat import IGNORE_INDEX
from saccade.data.packing import PADDING, PREFIX, PackedRows
from saccade.models.relevance.prune import ImageTokens

NOBODY = -1
"""The episode of what belongs to none: the shared beginning and padding."""


@dataclass(frozen=True)
class Picture:
    """One picture as the processor cut it up: patches and their grid (1, height, width).

    `kept_C` marks the merged cells that are read, of which `tokens` are the tower's; None: all.
    """

    pixels_ND: Tensor
    grid: tuple[int, int, int]
    kept_C: Tensor | None = None
    tokens: ImageTokens | None = None

    def cells(self, merge: int) -> int:
        """Cells of the whole picture."""
        return self.grid[1] * self.grid[2] // merge**2

    def count(self, merge: int) -> int:
        """Visual tokens that the language model reads of it."""
        return self.cells(merge) if self.kept_C is None else int(self.kept_C.sum())

    @property
    def form(self) -> tuple[tuple[int, int, int], bytes]:
        """What its tokens look like: equal for pictures with the same grid and the same cells."""
        return self.grid, b"" if self.kept_C is None else self.kept_C.numpy().tobytes()

    @property
    def values(self) -> int:
        """Numbers that it holds."""
        tokens = self.tokens
        levels = () if tokens is None else (tokens.pooled, *tokens.deepstack)
        return self.pixels_ND.numel() + sum(rows.numel() for one in levels for rows in one)


@dataclass(frozen=True)
class Piece:
    """Tokens that follow each other; positions count from 0; `labels` as `closed` are per token.

    `closed` marks where a tool call could not be sampled.
    """

    ids: Tensor
    positions_3P: Tensor
    pictures: tuple[Picture, ...] = ()
    labels: Tensor | None = None
    closed: Tensor | None = None

    @property
    def length(self) -> int:
        """The position that follows."""
        return int(self.positions_3P.max()) + 1 if len(self.ids) else 0


@dataclass(frozen=True)
class Row:
    """A beginning and what follows it in each episode, numbered as in the batch."""

    start: Piece
    rests: Sequence[Piece]
    episodes: Sequence[int]


def batch_of(rows: Sequence[Row], *, pad: int, image: int, merge: int) -> dict[str, Any]:
    """The learning batch of some rows; see `Dialogue.rows` for what it holds."""
    columns: dict[str, list[Tensor]] = {
        name: []
        for name in ("input_ids", "labels", "segment", "episode_RL", "closed_RL", "positions")
    }
    pictures: list[Picture] = []
    index: dict[int, int] = {}
    occurrences: list[int] = []
    looks: list[tuple[int, ...]] = []
    for number, row in enumerate(rows):
        for name, values in _columns(row).items():
            columns[name].append(values)
        shown = [(one, NOBODY) for one in row.start.pictures]
        for rest, episode in zip(row.rests, row.episodes, strict=True):
            shown += [(one, episode) for one in rest.pictures]
        place = (columns["input_ids"][-1] == image).nonzero()[:, 0].tolist()
        seen = 0
        for picture, episode in shown:
            down, across = picture.grid[1] // merge, picture.grid[2] // merge
            start, length = place[seen], picture.count(merge)
            looks.append((number, start, start + length, episode, down, across))
            seen += length
            if id(picture) not in index:
                index[id(picture)] = len(pictures)
                pictures.append(picture)
            occurrences.append(index[id(picture)])
    fill = {
        "input_ids": pad, "labels": IGNORE_INDEX, "segment": PADDING, "episode_RL": NOBODY,
        "closed_RL": False, "positions": 0,
    }  # fmt: skip
    made = {
        name: pad_sequence(values, batch_first=True, padding_value=fill[name])
        for name, values in columns.items()
    }
    batch: dict[str, Any] = {
        **{name: made[name] for name in ("input_ids", "labels", "episode_RL", "closed_RL")},
        "attention_mask": block_mask(made["segment"]),
        "position_ids": made["positions"].permute(2, 0, 1).contiguous(),
        "mm_token_type_ids": (made["input_ids"] == image).to(torch.int),
        "looks": torch.tensor(looks, dtype=torch.long).reshape(-1, 6),
        "picture_of": torch.tensor(occurrences, dtype=torch.long),
    }
    if pictures:
        batch["pixel_values"] = torch.cat([one.pixels_ND for one in pictures])
        batch["image_grid_thw"] = torch.tensor([one.grid for one in pictures])
    if any(one.kept_C is not None for one in pictures):
        every = [_or(one.kept_C, torch.ones(one.cells(merge)).bool(), True) for one in pictures]
        batch["kept_C"] = torch.cat(every)
    return batch


def filled_up(
    ids_P: Tensor, pictures: Sequence[Picture], *, image: int, merge: int
) -> tuple[Tensor, Tensor]:
    """The tokens with all placeholders of every picture, and which of those were there [P']."""
    places = (ids_P == image).nonzero()[:, 0].tolist()
    pieces, stays = [], []
    at = seen = 0
    for picture in pictures:
        start, cells = places[seen], torch.ones(picture.cells(merge)).bool()
        pieces += [ids_P[at:start], ids_P.new_full((len(cells),), image)]
        stays += [torch.ones(start - at).bool(), _or(picture.kept_C, cells, True)]
        seen += picture.count(merge)
        at = start + picture.count(merge)
    rest = ids_P[at:]
    return torch.cat([*pieces, rest]), torch.cat([*stays, torch.ones(len(rest)).bool()])


def block_mask(segment_RL: Tensor) -> Tensor:
    """Boolean [R, 1, L, L]: who sees whom, as in `data/packing.py`."""
    nothing = segment_RL  # the mask follows from the segments alone
    return PackedRows(nothing, nothing, segment_RL, None, None).block_mask()


def _columns(row: Row) -> dict[str, Tensor]:
    """What each token of a row is: its id, label, segment, episode and position."""
    pieces = [(row.start, PREFIX, NOBODY, 0)]
    for segment, (rest, episode) in enumerate(zip(row.rests, row.episodes, strict=True), start=1):
        pieces.append((rest, segment, episode, row.start.length))
    ids = [piece.ids for piece, *_ in pieces]
    return {
        "input_ids": torch.cat(ids),
        "labels": torch.cat([_or(piece.labels, piece.ids, IGNORE_INDEX) for piece, *_ in pieces]),
        "segment": torch.cat([torch.full_like(p.ids, segment) for p, segment, _, _ in pieces]),
        "episode_RL": torch.cat([torch.full_like(p.ids, one) for p, _, one, _ in pieces]),
        "closed_RL": torch.cat([_or(p.closed, p.ids.bool(), False) for p, *_ in pieces]),
        "positions": torch.cat([(p.positions_3P + offset).T for p, _, _, offset in pieces]),
    }


def _or(values: Tensor | None, like: Tensor, fill: int) -> Tensor:
    return torch.full_like(like, fill) if values is None else values

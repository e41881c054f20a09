"""Pictures with holes: hide part of an image's cells from the questions behind it.

In go packed rows, the cells each question needs, the cells that show a thing, and a share; out
comes their attention mask in which some images show every question only its own answer's cells,
some of the other things and a random part of the rest. A base that has only ever read whole
pictures misreads pruned ones, and what a selector then loses says little about what it kept. A
hidden cell is masked, which equals dropping it. For a tower that trains by itself the hidden cells
are never encoded instead: it must name an object that it sees in part. Left out: dropping for real
(`models/relevance`), which knows nothing of answers.

Shapes: R rows (images), L tokens, N image tokens of a row, Q questions of a row.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from saccade.data.packing import PREFIX, PackedRows

BLOCK = 4
"""Side in cells of the blocks in which a question sees all other things, or none."""


@dataclass(frozen=True)
class Needs:
    """One row: its image's key, grid and cells with a thing; each question's id and cells."""

    key: str
    grid: tuple[int, int]
    things: Sequence[int]
    questions: Sequence[tuple[str, Sequence[int]]]


def punch_holes(
    visible_R1LL: Tensor,
    *,
    rows: PackedRows,
    image_RL: Tensor,
    needs: Sequence[Needs],
    share: float,
) -> Tensor:
    """The mask with cells hidden in about `share` of the rows; [R, 1, L, L], True is visible.

    What a question needs stays. Draws depend on the image's key and the question's id alone, so
    neither the batch, nor how it is cut into micro-batches, nor a resumed run changes them.
    """
    out = visible_R1LL.clone()
    for row, need in enumerate(needs):
        tokens_N = image_RL[row].nonzero()[:, 0]
        if len(tokens_N) != need.grid[0] * need.grid[1]:
            continue
        common_N = _common(need, share=share)
        if common_N is None:
            continue
        thing_N = _marked(need.things, cells=len(tokens_N))
        segment_L = rows.segment_RL[row]
        # the picture itself is read before any question: it hides what none of them could see
        _hide(out[row, 0], asking_L=segment_L == PREFIX, hidden=tokens_N[~(common_N | thing_N)])
        for number, (name, cells) in enumerate(need.questions, start=1):
            answer_N = _marked(cells, cells=len(tokens_N))
            shown_N = common_N | answer_N | (thing_N & _blocks(need.grid, key=name))
            _hide(out[row, 0], asking_L=segment_L == number, hidden=tokens_N[~shown_N])
        # a hidden cell still sees itself: without a key its softmax would be undefined
        out[row, 0].fill_diagonal_(True)
    return out


def cells_to_encode(needs: Sequence[Needs], *, share: float) -> Tensor:
    """[N of all images]: True for the cells a tower gets to see; all of them without holes."""
    shown = []
    for need in needs:
        common_N = _common(need, share=share)
        cells = need.grid[0] * need.grid[1]
        if common_N is None:
            common_N = torch.ones(cells, dtype=torch.bool)
        else:
            common_N |= _marked(need.things, cells=cells) & _blocks(need.grid, key=need.key)
            common_N[0] |= not common_N.any()
        shown.append(common_N)
    return torch.cat(shown)


def _common(need: Needs, *, share: float) -> Tensor | None:
    """[N]: the cells everyone sees of a picture with holes; None for one without."""
    draw = _generator(need.key)
    if torch.rand((), generator=draw) >= share:
        return None
    cells = need.grid[0] * need.grid[1]
    # squared: most pictures with holes are nearly empty, as pruned ones are
    return torch.rand(cells, generator=draw) < torch.rand((), generator=draw) ** 2


def _generator(key: str) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(f"holes {key}".encode()))


def _marked(chosen: Sequence[int], *, cells: int) -> Tensor:
    marked_N = torch.zeros(cells, dtype=torch.bool)
    marked_N[list(chosen)] = True
    return marked_N


def _blocks(grid: tuple[int, int], *, key: str) -> Tensor:
    """[N]: half of the blocks of the grid, drawn by the key."""
    rows, columns = (-(-side // BLOCK) for side in grid)
    chosen = torch.rand(rows, columns, generator=_generator(key)) < 0.5
    full = chosen.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
    return full[: grid[0], : grid[1]].flatten()


def _hide(visible_LL: Tensor, *, asking_L: Tensor, hidden: Tensor) -> None:
    visible_LL[asking_L.nonzero(), hidden[None]] = False

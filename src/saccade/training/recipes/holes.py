"""Pictures with holes: hide part of an image's cells from the questions behind it.

In go packed rows, the cells each question needs and a share; out comes their attention mask in
which some images show every question only its own answer's cells, those of some of its neighbours
and a random part of the rest. A base that has only ever read whole pictures misreads pruned ones,
and what a selector then loses says little about what it kept. A hidden cell is masked, which
equals dropping it. Left out: dropping for real (`models/relevance`), which knows nothing of
answers.

Shapes: R rows (images), L tokens, N image tokens of a row.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

from saccade.data.packing import PREFIX, PackedRows


def punch_holes(
    visible_R1LL: Tensor,
    *,
    rows: PackedRows,
    image_RL: Tensor,
    needed: Sequence[Sequence[Sequence[int]]],
    keys: Sequence[str],
    share: float,
) -> Tensor:
    """The mask with cells hidden in about `share` of the rows; [R, 1, L, L], True is visible.

    `needed[row][question]` are the cells (of the row's image) that carry the question's answer;
    they stay. The draw depends on the row's entry in `keys` alone, so that neither the order of
    the batch nor a resumed run changes it.
    """
    out = visible_R1LL.clone()
    for row, (questions, key) in enumerate(zip(needed, keys, strict=True)):
        draw = torch.Generator().manual_seed(zlib.crc32(f"holes {key}".encode()))
        tokens_N = image_RL[row].nonzero()[:, 0]
        if not len(tokens_N) or torch.rand((), generator=draw) >= share:
            continue
        # squared: most pictures with holes are nearly empty, as pruned ones are
        common_N = torch.rand(len(tokens_N), generator=draw) < torch.rand((), generator=draw) ** 2
        answer_QN = torch.zeros(len(questions), len(tokens_N), dtype=torch.bool)
        for number, cells in enumerate(questions):
            answer_QN[number, list(cells)] = True
        shown_QQ = torch.rand(len(questions), len(questions), generator=draw) < 0.5
        shown_QQ.fill_diagonal_(True)
        shown_QN = (shown_QQ.float() @ answer_QN.float() > 0) | common_N
        segment_L = rows.segment_RL[row]
        everyone_N = shown_QN.any(0)
        _hide(out[row, 0], asking_L=segment_L == PREFIX, hidden=tokens_N[~everyone_N])
        for number, shown_N in enumerate(shown_QN, start=1):
            _hide(out[row, 0], asking_L=segment_L == number, hidden=tokens_N[~shown_N])
        # a hidden cell still sees itself: without a key its softmax would be undefined
        out[row, 0].fill_diagonal_(True)
    return out


def _hide(visible_LL: Tensor, *, asking_L: Tensor, hidden: Tensor) -> None:
    visible_LL[asking_L.nonzero(), hidden[None]] = False

"""Pairs of a preferred and a rejected answer to one question, and how they become a batch.

In go samples whose `facts` hold a `rejected` answer beside the preferred one (from a table with the
columns `chosen` and `rejected`, or generated); out comes one batch with two rows per pair, the
preferred answer first. Both rows show the same images side by side, so they are encoded once.
Nothing is cut: a length limit would tear images out of their prompts. Left out: the loss.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from saccade.data.chat import ChatRenderer
from saccade.data.samples import DataError, Sample

REJECTED = "rejected"
"""Where a sample keeps the answer that is not preferred."""


def rejected_answer(sample: Sample) -> str:
    """The answer that is not preferred; raises `DataError` when there is none, or it is equal."""
    where = str(sample.facts.get("where") or f"sample {sample.id}")
    rejected = sample.facts.get(REJECTED)
    if not isinstance(rejected, str) or not rejected.strip():
        raise DataError(
            "there is no rejected answer",
            where=where,
            fix="data.train.type=preferences, or name the column with columns.rejected=NAME",
        )
    if rejected.strip() == sample.answer.strip():
        raise DataError(
            "the rejected answer is the preferred one", where=where, fix="correct or drop the row"
        )
    return rejected


def both_answers(sample: Sample) -> tuple[Sample, Sample]:
    """The sample with its preferred and with its rejected answer."""
    return sample, replace(sample, answers=(rejected_answer(sample),))


def pair_batch(renderer: ChatRenderer, samples: list[Sample]) -> dict[str, Any]:
    """Rows 2i and 2i + 1 are the preferred and the rejected answer of pair i.

    `answer_labels` marks the answers' tokens; `labels` has one entry per pair, because a pair is
    what the loss is a mean over.
    """
    rows = [one for sample in samples for one in both_answers(sample)]
    batch = renderer.batch(rows, with_answer=True)
    batch["answer_labels"] = batch["labels"]
    batch["labels"] = torch.ones(len(samples), 1, dtype=torch.long)
    batch["sample_ids"] = [sample.id for sample in samples]
    return batch

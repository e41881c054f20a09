"""Exact-match accuracy of whatever answers questions, in all and per kind.

In go samples and a function from a batch of them to texts; out come shares of right answers. Used
while training; `evaluation/` keeps predictions and intervals.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

from saccade.data.samples import Sample
from saccade.data.sources import SampleSource
from saccade.scoring.answers import is_correct


def accuracy_by_kind(
    source: SampleSource,
    *,
    limit: int,
    batch_size: int,
    answer: Callable[[list[Sample]], list[str]],
) -> dict[str, float]:
    """`accuracy` and `accuracy_KIND` over the first `limit` samples."""
    hits: dict[str, list[bool]] = defaultdict(list)
    end = min(limit, len(source))
    for start in range(0, end, batch_size):
        samples = [source[i] for i in range(start, min(start + batch_size, end))]
        for sample, text in zip(samples, answer(samples), strict=True):
            verdict = is_correct(text, sample.answers, kind=sample.kind)
            hits["accuracy"].append(verdict)
            hits[f"accuracy_{sample.kind}"].append(verdict)
    return {name: sum(values) / len(values) for name, values in sorted(hits.items())}

"""Accuracy of what is being trained, beside that of the model it started from.

Held-out samples flow in; exact-match accuracy in all and per kind flows out, with the input model's
on the same samples and the difference. The input model is measured once, along with the first
evaluation: with its adapter switched off, or loaded anew when everything was trained.
"""

from __future__ import annotations

from collections.abc import Callable

from saccade.data.samples import Sample
from saccade.data.sources import SampleSource
from saccade.scoring.accuracy import accuracy_by_kind
from saccade.scoring.answers import is_correct
from saccade.training.recipes.learner import Learner

BEFORE, GAIN = "accuracy_before", "accuracy_gain"


class BesideBefore:
    """Measures a learner and, once per number of samples, what it was."""

    def __init__(self, learner: Learner) -> None:
        self.learner = learner
        self._before: dict[int, float] = {}
        self._input: Learner | None = None

    def accuracy(
        self,
        source: SampleSource,
        *,
        limit: int,
        also: Callable[[list[Sample]], None] = lambda samples: None,
    ) -> dict[str, float]:
        """`accuracy`, `accuracy_KIND`, `accuracy_before` and `accuracy_gain`.

        `also` is called with every batch of samples, which are read a single time.
        """
        self.learner.model.eval()
        verdicts: list[bool] = []

        def answer(samples: list[Sample]) -> list[str]:
            also(samples)
            if limit not in self._before:
                texts = zip(self._answer_before(samples), samples, strict=True)
                verdicts.extend(is_correct(t, one.answers, kind=one.kind) for t, one in texts)
            return self.learner.answer(samples)

        batch_size = self.learner.config.eval.batch_size
        found = accuracy_by_kind(source, limit=limit, batch_size=batch_size, answer=answer)
        self._input = None
        if verdicts:
            self._before[limit] = sum(verdicts) / len(verdicts)
        before = self._before[limit]
        return {**found, BEFORE: before, GAIN: found["accuracy"] - before}

    def _answer_before(self, samples: list[Sample]) -> list[str]:
        if self.learner.adapter is not None:
            with self.learner.as_it_was():
                return self.learner.answer(samples)
        if self._input is None:
            self._input = self.learner.input_model()
            self._input.model.eval()
        return self._input.answer(samples)

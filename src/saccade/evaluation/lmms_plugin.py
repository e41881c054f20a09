"""How lmms-eval loads a saccade run: the model `saccade` of its plugin registry.

lmms-eval finds `manifest` through the entry point group `lmms_eval.models` of the installed
package, and calls `generate_until` with its tasks' questions and pictures; out go texts, and one
line of token counts per answer into a file, so that what a score was bought with is known.
This module is imported by lmms-eval in its own environment and by nothing else. Left out: tasks
that score likelihoods or speak several rounds, and several processes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmms_eval.api.model import lmms  # pyright: ignore[reportMissingImports]
from lmms_eval.models.registry_v2 import ModelManifest  # pyright: ignore[reportMissingImports]

from saccade.config.schema import Config
from saccade.data.samples import Sample
from saccade.data.turns import IMAGE_MARK
from saccade.evaluation.load import load_run
from saccade.training.rundir import RunDir

manifest = ModelManifest(
    model_id="saccade", simple_class_path="saccade.evaluation.lmms_plugin.SaccadeModel"
)


class SaccadeModel(lmms):
    """A run as lmms-eval sees a model. Arguments are those `official.lmms_command` writes."""

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        config: str | None = None,
        arm: str = "trained",
        counts: str | None = None,
        batch_size: int | str = 1,
        **_: Any,
    ) -> None:
        super().__init__()
        self.loaded = load_run(_Configured(Path(pretrained), config=config))
        self.arm = self.loaded.pick_arm(arm)
        self.keep = 1.0 if self.arm == "full" else self.loaded.config.selector.keep
        self.counts = Path(counts) if counts else None
        self.batch_size = int(batch_size)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answer every request, in order."""
        answers: list[str] = []
        for start in range(0, len(requests), self.batch_size):
            answers += self._answer([one.args for one in requests[start : start + self.batch_size]])
        return answers

    def _answer(self, requests: Sequence[tuple[Any, ...]]) -> list[str]:
        samples, words = [], []
        for context, wanted, pictures, doc, task, split in requests:
            shown = pictures(self.task_dict[task][split][doc]) or ()
            question = context.replace(IMAGE_MARK, "").strip()
            sample = Sample(f"{task}/{doc}", question, answers=(), images=tuple(shown), kind=task)
            samples.append(sample)
            words.append(wanted)
        limit = max(int(wanted.get("max_new_tokens", 16)) for wanted in words)
        evaluation = self.loaded.config.eval.model_copy(update={"max_new_tokens": limit})
        self.loaded.config = self.loaded.config.model_copy(update={"eval": evaluation})
        batch, _ = self.loaded.batch(samples)
        features = self.loaded.features(batch)
        answers = self.loaded.answer(
            batch, arm=self.arm, keep=self.keep, seed=0, features=features
        )  # fmt: skip
        self._count(answers)
        return [_cut(a.prediction, wanted) for a, wanted in zip(answers, words, strict=True)]

    def _count(self, answers: Sequence[Any]) -> None:
        if self.counts is None:
            return
        rows = [
            {"id": one.id, "full": one.full, "kept": one.kept, "tokens": one.tokens}
            for one in answers
        ]
        with self.counts.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        raise NotImplementedError("saccade answers questions; choose a task of generate_until")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        raise NotImplementedError("saccade answers single questions; choose another task")


class _Configured(RunDir):
    """A run with the configuration that `saccade eval` resolved for this call."""

    def __init__(self, path: Path, *, config: str | None) -> None:
        super().__init__(path)
        if config is not None:
            self.config_file = Path(config)

    def config(self) -> Config:
        return super().config()


def _cut(text: str, wanted: dict[str, Any]) -> str:
    """End the answer at the task's stop words (a blank line is no answer's end)."""
    until = wanted.get("until") or []
    for stop in [until] if isinstance(until, str) else until:
        if stop and stop != "\n\n":
            text = text.split(stop)[0]
    return text.strip()

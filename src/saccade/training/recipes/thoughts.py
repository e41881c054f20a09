"""Recipe `thoughts`: a small causal model learns to reason in states instead of written steps.

Questions of logic flow in; out comes `model/` with weights and card. The stage of the curriculum is
a function of the step, so a run that continues is at the same stage. The loss is the mean over the
written symbols that are left (steps, "=", answer); question and thoughts cost nothing. Left out:
what is true of any training (`trainers.py`), and a new optimizer per stage.

Shapes: B samples, L symbols of the question, M symbols after it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional

from saccade.config.errors import InputError
from saccade.config.schema import Config
from saccade.data.generate.logic import (
    BEGIN,
    EQUALS,
    FIRST,
    QUESTION,
    STEPS,
    LogicQuestions,
)
from saccade.data.samples import Sample
from saccade.data.sources import SampleSource, open_source
from saccade.models.backbone import pick_device
from saccade.models.recursion.extras.thoughts import (
    Layout,
    ThoughtModel,
    layout_of,
    stage_at,
)
from saccade.training.guards import unwrapped
from saccade.training.rundir import RunDir
from saccade.training.state import load_weights

WEIGHTS, CARD = "model.safetensors", "thoughts.json"
BATCH = 200


class ThoughtsRecipe:
    """What the training loop needs to know about `thoughts`."""

    def __init__(self, config: Config) -> None:
        if config.training.gradient_checkpointing:
            raise InputError(
                "training.gradient_checkpointing=true: nothing is computed again in this recipe"
                "\n  fix: leave it out"
            )
        self.config, self.settings = config, config.thoughts
        self.source = logic_source(open_source(config.data.train), key="data.train")
        self.steps = self.source.source.steps
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.run.seed)
            self.model = ThoughtModel(self.settings, vocabulary=self.source.vocabulary)
        self.model.to(pick_device(config.model))

    def train_source(self) -> SampleSource:
        return self.source

    def collate(self, samples: list[Sample]) -> dict[str, Any]:
        steps = torch.from_numpy(np.stack([sample.facts[STEPS] for sample in samples]))
        # all steps count as supervised, whatever the stage leaves of them
        return {"input_ids": before(samples), "labels": steps}

    def layout(self, step: int) -> Layout:
        """What is written and what is thought at a step of training."""
        total = self.config.training.steps
        stage = stage_at(step, steps=self.steps, total=total, config=self.settings)
        return layout_of(stage, config=self.settings, steps=self.steps)

    def loss(self, batch: dict[str, Any], *, step: int, denominator: Tensor) -> dict[str, Tensor]:
        layout = self.layout(step)
        after_BM = written(batch["labels"], layout)
        logits_BMV = self.model(batch["input_ids"], after_BM, places=layout.places)
        losses_BM = functional.cross_entropy(
            logits_BMV.flatten(0, 1).float(), after_BM.flatten(), reduction="none"
        ).view_as(after_BM)
        share = self.steps / denominator  # a mean over samples, since each has so many labels
        right_B = (logits_BMV[:, -1].argmax(-1) == after_BM[:, -1]).float()
        samples = (batch["labels"].numel()) / self.steps
        return {
            "loss": losses_BM.mean(1).sum() * share,
            "answers": right_B.sum() / samples,
            "replaced": torch.tensor(float(layout.replaced)),
        }

    def evaluate(self, source: SampleSource, *, limit: int) -> dict[str, float]:
        """Accuracy of the answers in the layout of the last stage, nothing being told."""
        self.model.eval()
        count = min(limit, len(source))
        right = [one["right"] for one in answers(self.model, source, count=count)]
        self.model.train()
        return {"accuracy": sum(right) / count}

    def groups(self) -> dict[str, list[nn.Parameter]]:
        model = self.model
        named = {f"block{n}": list(block.parameters()) for n, block in enumerate(model.blocks)}
        named |= {"tokens": list(model.tokens.parameters()), "head": list(model.head.parameters())}
        return named | ({"pause": [model.pause]} if model.pause is not None else {})

    def resting(self, step: int) -> tuple[str, ...]:
        """A pause is not read while every step is written."""
        return ("pause",) if self.layout(step).places == 0 else ()

    def finish(self, run: RunDir) -> None:
        folder = run.path / "model"
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {k: v.detach().cpu().contiguous() for k, v in self.model.state_dict().items()}
        safetensors.torch.save_file(tensors, folder / WEIGHTS)
        card = {"thoughts": self.settings.model_dump(mode="json"),
                "vocabulary": self.model.vocabulary, "steps": self.steps}  # fmt: skip
        (folder / CARD).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


def logic_source(source: Any, *, key: str) -> LogicQuestions:
    """The source, if it asks questions of logic; raises InputError else."""
    if not isinstance(source, LogicQuestions):
        raise InputError(
            f"{key}: the recipe thoughts learns from questions of logic\n  fix: {key}.type=logic"
        )
    return source


def before(samples: list[Sample]) -> Tensor:
    """[B, L]: question and the sign that steps begin."""
    rows = np.stack([sample.facts[QUESTION] for sample in samples])
    begins = np.full((len(rows), 1), BEGIN)
    return torch.from_numpy(np.concatenate((rows, begins), 1))


def written(steps_BN: Tensor, layout: Layout) -> Tensor:
    """[B, M]: the steps that are left, "=", and the answer."""
    equals = torch.full_like(steps_BN[:, :1], EQUALS)
    return torch.cat((steps_BN[:, layout.replaced :], equals, steps_BN[:, -1:]), 1)


def answers(model: ThoughtModel, source: SampleSource, *, count: int) -> list[dict[str, Any]]:
    """What the model says about the first `count` questions, in the layout of the last stage.

    Raises InputError where they are about more things than the model knows.
    """
    asked = logic_source(unwrapped(source), key="data.eval").source.things
    if FIRST + asked > model.vocabulary:
        raise InputError(
            f"data.eval.things={asked}: the model knows {model.vocabulary - FIRST} things"
            f"\n  fix: data.eval.things={model.vocabulary - FIRST}"
        )
    device, found = next(model.parameters()).device, list[dict[str, Any]]()
    for start in range(0, count, BATCH):
        samples = [source[i] for i in range(start, min(start + BATCH, count))]
        steps = len(samples[0].facts[STEPS])
        layout = layout_of(steps, config=model.config, steps=steps)
        with torch.no_grad():
            said_BM = model.continued(
                before(samples).to(device), places=layout.places,
                count=steps - layout.replaced + 2,
            )  # fmt: skip
        for sample, said in zip(samples, said_BM.tolist(), strict=True):
            wanted = int(sample.facts[STEPS][-1])
            found.append({"id": sample.id, "said": said, "wanted": wanted,
                          "right": said[-1] == wanted})  # fmt: skip
    return found


def load_thinker(config: Config, folder: Path) -> ThoughtModel:
    """The exported model of a run, or the weights of one of its checkpoints."""
    recipe = ThoughtsRecipe(config)
    if (folder / CARD).is_file():
        recipe.model.load_state_dict(safetensors.torch.load_file(folder / WEIGHTS))
    else:
        load_weights(recipe.model, checkpoint=folder)
    return recipe.model.eval()

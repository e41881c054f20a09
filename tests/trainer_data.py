"""Scenes as the datasets TRL's trainers take, and a record of what training did to a model.

Rows are built from the project's own generated scenes. `Watch` keeps a copy of every tensor and
which of them got a gradient, so that a test can say what learned and that nothing else moved.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import datasets
import torch
from transformers import TrainerCallback

from saccade.data.images import load_image
from saccade.data.samples import Sample
from saccade.models.backbone import Backbone
from saccade.models.relevance.model import RelevanceModel
from tests.tiny_models import random_backbone, relevance_model, scene_samples

LANGUAGE_LAYERS = r".*language_model.*\.(q_proj|v_proj|down_proj)"


def own_backbone() -> Backbone:
    """A copy of the random base that a test may change."""
    shared = random_backbone()
    return replace(shared, model=copy.deepcopy(shared.model))


def own_model(**settings: object) -> RelevanceModel:
    return relevance_model(own_backbone(), keep=0.3, **settings)


def pictures(sample: Sample) -> list[Any]:
    return [load_image(image, where=sample.id) for image in sample.images]


def turns(role: str, text: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


def answered_scenes(count: int = 4) -> datasets.Dataset:
    """Prompt and completion with images (supervised fine-tuning)."""
    return datasets.Dataset.from_list(
        [
            {"images": pictures(sample), "prompt": turns("user", sample.question),
             "completion": turns("assistant", sample.answer)}
            for sample in scene_samples(count)
        ]
    )  # fmt: skip


def preferred_scenes(count: int = 4) -> datasets.Dataset:
    """Two answers of different lengths to each question, one of them preferred."""
    return datasets.Dataset.from_list(
        [
            {"images": pictures(sample), "prompt": turns("user", sample.question),
             "chosen": turns("assistant", sample.answer),
             "rejected": turns("assistant", "none of them is there")}
            for sample in scene_samples(count)
        ]
    )  # fmt: skip


def asked_scenes(count: int = 4) -> datasets.Dataset:
    """Prompts with images; the answer rides along for a reward function."""
    return datasets.Dataset.from_list(
        [
            {"images": pictures(sample), "prompt": turns("user", sample.question),
             "answer": sample.answer}
            for sample in scene_samples(count)
        ]
    )  # fmt: skip


def trainer_settings(folder: Any, **more: Any) -> dict[str, Any]:
    """Few, small, exact steps without any service."""
    return {
        "output_dir": str(folder), "max_steps": 2, "per_device_train_batch_size": 2,
        "learning_rate": 1e-2, "lr_scheduler_type": "constant", "weight_decay": 0.0,
        "logging_steps": 1, "save_strategy": "no", "report_to": [], "use_cpu": True,
        "bf16": False, "disable_tqdm": True, "activation_checkpointing": False, **more,
    }  # fmt: skip


class Watch(TrainerCallback):
    """What a model's tensors were, which ones got a gradient, and which have changed since."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self.before = {name: one.detach().clone() for name, one in model.state_dict().items()}
        self.trainable = {name for name, one in model.named_parameters() if one.requires_grad}
        self.graded: set[str] = set()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        for name, parameter in self.model.named_parameters():
            if parameter.grad is not None and bool(parameter.grad.abs().sum() > 0):
                assert bool(parameter.grad.isfinite().all()), name
                self.graded.add(name)

    def changed(self) -> set[str]:
        now = self.model.state_dict()
        return {name for name, old in self.before.items() if not torch.equal(old, now[name])}

"""Dialogues for exactness tests: random bases that can call tools, drawn tasks, and the reference
every faster path is held against: one episode alone through the base's own forward pass."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from saccade.config.schema import Config
from saccade.data.boxes import Box
from saccade.data.chat import IGNORE_INDEX
from saccade.data.samples import Sample
from saccade.grounding.dialogue import Dialogue
from saccade.grounding.episodes import Episode, Task
from saccade.models.backbone import Backbone
from saccade.models.tools import tool_ready
from tests.tiny_models import picture, random_backbone

AREA = 64 * 96


def ready(backbone: Callable[[], Backbone] = random_backbone) -> Backbone:
    """A copy that can call tools; the cached one stays as it is."""
    return tool_ready(copy.deepcopy(backbone()))


def settings(**grounding: Any) -> Config:
    """Pictures of at most `AREA` pixels, crops of half of that."""
    return Config.model_validate({
        "recipe": "grounding",
        "model": {"name": "tiny", "min_pixels": 32 * 32, "max_pixels": AREA},
        "grounding": {"zoom": {"calls": 2, "window": 0.4, "pixels": AREA // 2}, **grounding},
    })  # fmt: skip


def dialogue(backbone: Callable[[], Backbone] = random_backbone, **grounding: Any) -> Dialogue:
    made = ready(backbone)
    return Dialogue(made.model, made.processor, config=settings(**grounding))


def task(
    number: int = 0, *, width: int = 160, height: int = 120, words: str = "the star", **more: Any
) -> Task:
    """A drawn page with a target somewhere on it; equal numbers and sizes show the same page."""
    image = picture(seed=number, height=height, width=width)
    generator = torch.Generator().manual_seed(number)
    left, top = (0.05 + 0.7 * torch.rand(2, generator=generator)).tolist()
    box = Box(left, top, left + 0.15, top + 0.2)
    key = f"page{number}-{width}x{height}"
    sample = Sample(
        id=f"{key}-{words}", question=f"Click {words}.", answers=(), images=(image,),
        kind="point", image_key=key, facts={"box": tuple(box)},
    )  # fmt: skip
    made = {"sample": sample, "image": image, "instruction": sample.question, "box": box}
    return Task(**{**made, **more})


def shown(talk: Dialogue, one: Task, *, looks: int, index: int = 0) -> Episode:
    """A demonstration with so many looks, each the half about the target of what is seen."""
    assert one.box is not None
    windows, side = [], 1.0
    for _ in range(looks):
        side /= 2
        x, y = one.box.center
        left, top = min(1 - side, max(0, x - side / 2)), min(1 - side, max(0, y - side / 2))
        windows.append(Box(left, top, left + side, top + side))
    return talk.demonstration(one, looks=windows, index=index)


def mixed(talk: Dialogue) -> list[list[Episode]]:
    """Groups of different sizes and picture shapes, with no, one and two looks; two questions."""
    wide, tall = task(1), task(2, width=96, height=176, words="the big green triangle there")
    other = task(1, words="something else that is red")
    return [
        [shown(talk, wide, looks=n, index=n) for n in (0, 1, 2)]
        + [shown(talk, other, looks=1, index=3)],
        [shown(talk, tall, looks=n, index=n) for n in (2, 0)],
    ]


def alone(talk: Dialogue, episode: Episode) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies of an episode's written tokens: the base's own forward."""
    prompt = talk.prompt(episode.task)
    ids = torch.cat([prompt.ids, episode.ids])
    pictures = talk.pictures(episode)
    with torch.no_grad():
        out = talk.base(
            input_ids=ids[None],
            attention_mask=torch.ones_like(ids)[None],
            mm_token_type_ids=(ids == talk.markers.image).int()[None],
            pixel_values=torch.cat([one.pixels_ND for one in pictures]),
            image_grid_thw=torch.tensor([one.grid for one in pictures]),
        )
    logits_LV = out.logits[0].float() + talk.shut
    if episode.forced != "free":
        logits_LV[:, talk.call] = -1e30
    said_LV = logits_LV.log_softmax(-1)
    at = torch.arange(len(prompt.ids), len(ids))[episode.written]
    entropy_L = -(said_LV.exp() * said_LV).sum(-1)
    return said_LV[at - 1, ids[at]], entropy_L[at - 1]


def packed(talk: Dialogue, groups: list[list[Episode]]) -> list[tuple[Tensor, Tensor]]:
    """The same of each episode, read from the packed rows of all of them."""
    batch = talk.rows(groups)
    with torch.no_grad():
        log_probs_RL, entropies_RL = talk.log_probs(batch)
    found = []
    for number in range(sum(map(len, groups))):
        own_RL = (batch["episode_RL"] == number) & (batch["labels"] != IGNORE_INDEX)
        found.append((log_probs_RL[own_RL], entropies_RL[own_RL]))
    return found

"""`sft.train`: the named parts learn and everything else leaves the run bit for bit as it came."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console
from safetensors.torch import load_file

from saccade.config.errors import InputError
from saccade.config.resolve import resolve
from saccade.models.projector import parts_of
from saccade.training.recipes.sft import SftRecipe
from saccade.training.run import train
from tests.tiny_models import random_backbone

SMALL = ("model.device=cpu", "training.steps=2", "training.save_every=2", "sft.adapter=none")


@pytest.mark.parametrize("part", ["projector", "vision.last1", "language.first1"])
def test_only_the_named_part_of_the_written_model_differs(
    part: str, base: Path, tmp_path: Path
) -> None:
    words = [*SMALL, f"model.name={base}", f"run.root={tmp_path}", f"sft.train=[{part}]"]
    metrics = train(resolve("smoke/sft", overrides=words), console=Console(quiet=True))
    assert {"accuracy", "accuracy_before", "accuracy_gain"} <= set(metrics)
    before = load_file(base / "model.safetensors")
    after = load_file(tmp_path / "smoke-sft" / "model" / "model.safetensors")
    moved = {name for name in before if not before[name].equal(after[name])}
    wanted = set(parts_of(random_backbone().model, [part]))
    assert moved <= wanted
    assert len(moved) > 0.9 * len(wanted)  # a bias whose gradient is zero may stay
    assert not (tmp_path / "smoke-sft" / "adapter").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("sft.adapter=none", "sft.train=[projectr]"), "no part is called projectr"),
        (("sft.train=[projector]",), "needs adapter=none"),
        (("sft.adapter=none", "sft.vision=true", "sft.train=[language]"), "vision=false"),
        (("sft.adapter=none", "sft.selector=x", "sft.train=[projector]"), "behind a selector"),
    ],
)
def test_parts_that_cannot_learn_are_refused(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolve("smoke/sft", overrides=words)


def test_more_blocks_than_there_are_is_a_mistake_with_a_fix(base: Path) -> None:
    words = (f"model.name={base}", "sft.adapter=none", "sft.train=[language.last9]")
    with pytest.raises(InputError, match=r"only 3 blocks\n  fix: at most language.last3"):
        SftRecipe(resolve("smoke/sft", overrides=words).config)

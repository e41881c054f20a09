"""Shards as a source of puzzles: capsules and targets as stored, held out by position."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from saccade.config.resolve import resolve
from saccade.config.shards import EncodedSource
from saccade.data.generate.puzzles import CAPSULES, IGNORED, INPUT, TARGET
from saccade.data.shards.puzzles import EncodedPuzzles
from saccade.data.shards.reader import ShardReader
from saccade.training.recipes.recursion import RecursionRecipe
from tests.toy_shards import builder, config


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shards") / "built"
    builder(config(path)).build()
    return path


def test_samples_are_what_the_shards_hold(folder: Path) -> None:
    source = EncodedPuzzles(EncodedSource(type="shards", path=folder))
    reader = ShardReader(folder)
    by_id = {reader[i]["id"]: reader[i] for i in range(len(reader))}
    for position in (0, 5, len(source) - 1):
        sample = source[position]
        stored = by_id[sample.id]
        assert np.allclose(sample.facts[CAPSULES], stored["sketches"].float().numpy())
        wanted = stored["targets"].numpy()
        asked = sample.facts[TARGET]
        assert asked[wanted > 0].tolist() == wanted[wanted > 0].tolist()
        assert set(asked[wanted == 0].tolist()) <= {IGNORED}
        assert not sample.facts[INPUT].any()
    assert source.capsules == tuple(reader[0]["sketches"].shape)


def test_splits_share_nothing_and_miss_nothing(folder: Path) -> None:
    train, test = (
        EncodedPuzzles(EncodedSource(type="shards", path=folder, split=split))  # type: ignore[arg-type]
        for split in ("train", "test")
    )
    ids = [[source[i].id for i in range(len(source))] for source in (train, test)]
    assert not set(ids[0]) & set(ids[1])
    assert len(set(ids[0])) + len(set(ids[1])) == 70
    assert train.fingerprint() != test.fingerprint()


def test_training_comes_in_the_order_of_building(folder: Path) -> None:
    source = EncodedPuzzles(EncodedSource(type="shards", path=folder))
    shards = (source.rows // source.reader.manifest.shard_size).tolist()
    assert source.ordered
    assert shards == sorted(shards)


def test_symbols_of_the_question_stand_in_the_cells_when_asked_for(folder: Path) -> None:
    source = EncodedPuzzles(EncodedSource(type="shards", path=folder, symbols=True))
    assert source[0].facts[INPUT].any()
    assert source.length == len(source[0].facts[TARGET]) == len(source[0].facts[INPUT])


def test_a_model_reads_capsules_by_configuration_alone(folder: Path) -> None:
    overrides = [
        "arch=multimodal", f"data.train.path={folder}", f"data.eval.path={folder}",
        "recursion.width=16", "recursion.heads=2", "training.batch_size=4", "model.device=cpu",
    ]  # fmt: skip
    recipe = RecursionRecipe(resolve("recursion", overrides=overrides).config)
    batch = recipe.enter(recipe.collate([recipe.source[i] for i in range(4)]), micro=0)
    found = recipe.loss(batch, step=0, denominator=torch.tensor(64.0))
    found["loss"].backward()
    assert "capsules" in recipe.groups()
    for parameter in recipe.groups()["capsules"]:
        assert parameter.grad is not None
        assert float(parameter.grad.abs().sum()) > 0
    assert recipe.slots.carries[0].capsules.shape[1:] == recipe.source.capsules  # type: ignore[attr-defined]

"""Shards as a source of puzzles: capsules and targets as stored, orders, splits and damage."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from saccade.config.errors import InputError, Preempted
from saccade.config.resolve import resolve
from saccade.config.shards import EncodedSource, ShardSource
from saccade.data.generate.puzzles import CAPSULES, IGNORED, INPUT, TARGET
from saccade.data.samples import DataError
from saccade.data.shards import reader as reading
from saccade.data.shards.manifest import Entry, fault
from saccade.data.shards.puzzles import LETTERS, EncodedPuzzles
from saccade.data.shards.reader import ShardReader
from saccade.data.shards.samples import FIRST_BYTE, VOCABULARY
from saccade.evaluation.thinking import evaluate_thinking
from saccade.training.batches import order_of
from saccade.training.events import read_events, step_series
from saccade.training.recipes.recursion import RecursionRecipe
from saccade.training.run import train
from saccade.training.rundir import RunDir
from tests.toy_shards import builder, config, encoded


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


def test_the_first_epoch_follows_the_build_and_later_ones_shuffle_shards(folder: Path) -> None:
    source = encoded(folder)
    shards = source.rows // source.reader.manifest.shard_size
    orders = [source.epoch_order(epoch) for epoch in range(4)]
    assert all(sorted(order) == list(range(len(source))) for order in orders)
    assert shards[orders[0]].tolist() == sorted(shards)
    assert any(shards[order].tolist() != sorted(shards) for order in orders[1:])
    assert orders[0].tolist() != list(range(len(source)))
    assert orders[0].tolist() == encoded(folder).epoch_order(0).tolist()
    other = encoded(folder, seed=1).epoch_order(0).tolist()
    assert orders[0].tolist() != other


def test_a_training_takes_the_orders_of_the_source_from_any_place(folder: Path) -> None:
    source = encoded(folder)
    size = len(source)
    whole = [p for epoch in range(3) for p in source.epoch_order(epoch).tolist()]
    for start in (0, size - 3, size + 5, 2 * size - 1):
        assert order_of(source, seed=7).take(start, 20) == whole[start : start + 20]


def test_the_order_is_known_before_the_shards_are(tmp_path: Path, folder: Path) -> None:
    left = iter([False] * 6 + [True])
    with pytest.raises(Preempted):
        builder(config(tmp_path)).build(stop=lambda: next(left))
    early, late = encoded(tmp_path), encoded(folder)
    assert [early.epoch_order(e).tolist() for e in (0, 1)] == [
        late.epoch_order(e).tolist() for e in (0, 1)
    ]
    assert early.fingerprint() == late.fingerprint()
    assert early[0].id == late[0].id


def test_every_symbol_has_a_letter_of_its_own() -> None:
    assert len(LETTERS) == len(set(LETTERS)) == VOCABULARY
    assert not set(LETTERS) & {"?", "\n", "\r"}
    assert "".join(LETTERS[FIRST_BYTE + byte] for byte in b"a dog, 7.") == "a dog, 7."


def test_text_of_a_sample_tells_its_symbols_exactly(tmp_path: Path) -> None:
    (tmp_path / "tales.txt").write_text("<|endoftext|>".join(
        f"Was it {n}?\nNo~ said the \u00e9l\u00e9phant.\t" * 30 for n in range(9)
    ))  # fmt: skip
    sources = [ShardSource(type="stories", path=tmp_path / "tales.txt")]
    builder(config(tmp_path / "s", sources=sources)).build()
    source = encoded(tmp_path / "s", symbols=True)
    for position in range(len(source)):
        sample = source[position]
        assert [LETTERS.index(one) for one in sample.question] == sample.facts[INPUT].tolist()
        target = [IGNORED if one == "?" else LETTERS.index(one) for one in sample.answer]
        assert target == sample.facts[TARGET].tolist()


def test_one_document_cannot_be_held_out_from_itself(tmp_path: Path) -> None:
    (tmp_path / "tale.txt").write_text("Once upon a time there was a goat who ran. " * 60)
    sources = [ShardSource(type="stories", path=tmp_path / "tale.txt")]
    summary = builder(config(tmp_path / "s", sources=sources)).build()
    assert summary.held_out == 0
    assert len(encoded(tmp_path / "s")) == summary.samples
    with pytest.raises(InputError, match=r"nothing is held out, as all \d+ samples show one"):
        encoded(tmp_path / "s", split="test")


@pytest.fixture
def damaged(tmp_path: Path, folder: Path) -> Path:
    shutil.copytree(folder, tmp_path / "s")
    file = tmp_path / "s" / "consolidated_001.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    return tmp_path / "s"


def ids_of(folder: Path, shard: int) -> set[str]:
    reader = ShardReader(folder)
    return {reader[i]["id"] for i in reader.manifest.shard_range(shard)}


def test_a_damaged_shard_is_left_out_whole_and_told_once(damaged: Path, folder: Path) -> None:
    source, before = encoded(damaged), encoded(damaged).fingerprint()
    with pytest.raises(DataError, match=r"consolidated_001\.safetensors: the shard is damaged"):
        _ = [source[i] for i in range(len(source))]
    whole = len(source)
    (told,) = source.leave_out_broken()
    assert "consolidated_001.safetensors: content differs from its checksum" in told
    assert "its 20 samples are left out" in told
    seen = [source[i].id for i in source.epoch_order(1)]
    assert len(seen) == len(set(seen)) == len(source) < whole
    assert not set(seen) & ids_of(folder, 1)
    assert source.fingerprint() == before


def test_the_checksum_of_a_shard_is_compared_once(
    damaged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def counted(folder: Path, entry: Entry) -> str | None:
        read.append(entry.file)
        return fault(folder, entry)

    monkeypatch.setattr(reading, "fault", counted)
    source = encoded(damaged)
    for position in [*range(len(source)), *range(len(source))]:
        with suppress(DataError):
            source[position]
    source.leave_out_broken()
    assert sorted(read) == [f"consolidated_00{n}.safetensors" for n in range(4)]


def test_a_shard_that_is_built_again_while_it_is_read_is_compared_again(
    tmp_path: Path, folder: Path
) -> None:
    shutil.copytree(folder, tmp_path / "s")
    source = encoded(tmp_path / "s")
    expected = [source[i].id for i in range(len(source))]
    builder(config(tmp_path / "s")).build(rebuild=True)
    assert [source[i].id for i in range(len(source))] == expected
    (tmp_path / "s" / "consolidated_000.safetensors").write_bytes(b"cut")
    with pytest.raises(DataError, match="consolidated_000"):
        _ = source[0]
    builder(config(tmp_path / "s", capsules=9)).build(rebuild=True)
    with pytest.raises(InputError, match="other shards were built here"):
        _ = source[len(source) - 1]


def test_a_training_that_skips_goes_on_without_a_damaged_shard(damaged: Path, folder: Path) -> None:
    overrides = [
        "arch=multimodal", f"data.train.path={damaged}", f"data.eval.path={damaged}",
        "recursion.width=16", "recursion.heads=2", "recursion.ffn_multiple=16",
        "recursion.max_steps=2", "recursion.eval_steps=2", "training.batch_size=16",
        "training.steps=12", "training.threads=1", "training.log_every=1",
        "training.save_every=6", "training.eval_every=6", "training.eval_samples=4",
        "model.device=cpu", "tracking.wandb=off", f"run.root={damaged.parent}",
    ]  # fmt: skip
    with pytest.raises(DataError, match=r"consolidated_001.*\n  fix: .*data\.on_error=skip"):
        train(resolve("recursion", overrides=overrides))
    train(resolve("recursion", overrides=[*overrides, "data.on_error=skip"]))
    events = read_events(damaged.parent / "recursion" / "events.jsonl")
    warned = [event["message"] for event in events if event["type"] == "warning"]
    assert [one for one in warned if "20 samples are left out" in one] == warned
    assert len(warned) == 1
    seen = {one for event in step_series(events) for one in event["sample_ids"]}
    assert len(seen) > 30 and not seen & ids_of(folder, 1)
    measured = evaluate_thinking(RunDir(damaged.parent / "recursion"))
    assert len(measured["left_out"]) == 1 and "consolidated_001" in measured["left_out"][0]


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

"""The recipe `dpo`: TRL's loss, a reference that stays, pairs from scenes and from tables."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from saccade.config.errors import InputError
from saccade.config.resolve import resolve
from saccade.config.schema import JsonlSource, PreferenceSource, ScenesSource
from saccade.data.generate.preferences import OPPOSITES, PreferenceScenes
from saccade.data.generate.scenes import COLORS, SHAPES, WORDS, SceneSource
from saccade.data.preferences import pair_batch, rejected_answer
from saccade.data.samples import DataError, Sample
from saccade.data.sources import open_source
from tests.tiny_models import picture, relevance_model, renderer
from tests.unit.test_sources_real import SHARED

trl = pytest.importorskip("trl", reason="the extra `rl` is not installed")
peft = pytest.importorskip("peft", reason="the extra `rl` is not installed")
from saccade.training.recipes.dpo import DpoRecipe  # noqa: E402
from tests.trainer_data import preferred_scenes, trainer_settings  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
TOLERANCE = 1e-5
PAIRS = 4


WAYS = {"plain": (), "behind a selector": ("dpo.selector={selector}", "selector.keep=0.3")}


def recipe(base: Path, *overrides: str, selector: Path | None = None) -> DpoRecipe:
    words = [one.format(selector=selector) for one in overrides]
    place = (f"model.name={base}", "model.device=cpu")
    return DpoRecipe(resolve("smoke/dpo", overrides=[*place, *words]).config)


def stirred(made: DpoRecipe, *, size: float = 0.1) -> None:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, one in made.model.named_parameters():
            if "lora_B.default" in name:
                one.add_(torch.randn(one.shape, generator=generator) * size)


def scenes(made: DpoRecipe, count: int = PAIRS) -> list[Sample]:
    source = made.train_source()
    return [source[i] for i in range(count)]


def one_loss(made: DpoRecipe, batch: dict[str, Any], pairs: int = PAIRS) -> dict[str, torch.Tensor]:
    return made.loss(batch, step=0, denominator=torch.tensor(float(pairs)))


@pytest.mark.parametrize("way", WAYS)
def test_every_adapter_gets_a_gradient_and_the_reference_stays(
    way: str, base: Path, selector: Path
) -> None:
    made = recipe(base, *WAYS[way], selector=selector)
    batch = made.collate(scenes(made))
    made.model.train()
    start = one_loss(made, batch)
    assert float(start["loss"]) == pytest.approx(math.log(2)), "the model is its own reference"
    assert float(start["preference_margin"]) == 0
    _, before = made.log_probs(batch)
    stirred(made)
    parts = one_loss(made, batch)
    parts["loss"].backward()
    learned = {n: p for n, p in made.model.named_parameters() if p.requires_grad}
    assert len(learned) == 24 and all("lora_" in name for name in learned)
    for name, one in learned.items():
        assert one.grad is not None and float(one.grad.abs().sum()) > 0, name
    policy, reference = made.log_probs(batch)
    assert torch.equal(reference, before) and not torch.equal(policy, reference)


@pytest.mark.parametrize("way", WAYS)
def test_the_loss_and_margin_are_those_of_trls_trainer_on_the_same_batch(
    way: str, base: Path, selector: Path, tmp_path: Path
) -> None:
    made = recipe(base, *WAYS[way], selector=selector)
    learner = made.learner
    model, reference = learner.adapter, None
    if way != "plain":  # TRL switches off adapters of the whole model; these stand on its base
        model, reference = learner.model, relevance_model(keep=0.3).requires_grad_(False)
    trainer = trl.DPOTrainer(
        model=model,
        ref_model=reference,
        args=trl.DPOConfig(
            **trainer_settings(tmp_path, max_length=None, beta=0.1),
        ),
        train_dataset=preferred_scenes(),
        processing_class=learner.processor,
    )
    stirred(made)  # now: TRL takes an adapter as it is found for the reference
    batch = dict(next(iter(trainer.get_train_dataloader())))
    trainer.model.eval()
    pairs = len(batch["input_ids"]) // 2
    with torch.no_grad():
        theirs = trainer.compute_loss(trainer.model, dict(batch))
        made.model.eval()
        ours = one_loss(made, by_pairs(batch), pairs)
    assert abs(float(theirs) - math.log(2)) > 1e-3, "the adapter does something"
    assert abs(float(theirs) - float(ours["loss"])) < TOLERANCE
    margins = trainer._metrics["eval"]["rewards/margins"]
    assert margins[-1] == pytest.approx(float(ours["preference_margin"]), abs=TOLERANCE)


def by_pairs(batch: dict[str, Any]) -> dict[str, Any]:
    """TRL's batch (all preferred rows, then all rejected ones) in this project's order."""
    rows = len(batch["input_ids"])
    order = torch.arange(rows).view(2, -1).T.flatten()
    mine = {
        name: batch[name][order] for name in ("input_ids", "attention_mask", "mm_token_type_ids")
    }
    grid = batch["image_grid_thw"]
    parts = batch["pixel_values"].split(grid.prod(-1).tolist())
    mine["image_grid_thw"] = grid[order]
    mine["pixel_values"] = torch.cat([parts[i] for i in order.tolist()])
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    return {**mine, "answer_labels": labels[order], "labels": torch.ones(rows // 2, 1)}


def test_a_step_is_a_mean_over_pairs_however_it_is_cut(base: Path) -> None:
    made = recipe(base)
    stirred(made)
    samples = scenes(made)
    with torch.no_grad():
        whole = one_loss(made, made.collate(samples))["loss"]
        parts = [one_loss(made, made.collate([sample]))["loss"] for sample in samples]
    assert float(sum(parts)) == pytest.approx(float(whole), abs=TOLERANCE)


def test_a_batch_holds_both_answers_of_each_pair_side_by_side(base: Path) -> None:
    made = recipe(base)
    samples = scenes(made)
    batch = made.collate(samples)
    tokenizer = made.processor.tokenizer
    texts = [tokenizer.decode(row[row != -100]) for row in batch["answer_labels"]]
    said = [answer for one in samples for answer in (one.answer, rejected_answer(one))]
    assert texts == [f"{answer}<|im_end|>" for answer in said]
    assert batch["labels"].shape == (PAIRS, 1) and len(batch["image_grid_thw"]) == 2 * PAIRS


def test_training_prefers_what_is_preferred(base: Path) -> None:
    made = recipe(base)
    batch = made.collate(scenes(made, 8))
    learned = [one for one in made.model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=3e-3)
    made.model.train()
    for _ in range(12):
        optimizer.zero_grad()
        one_loss(made, batch, 8)["loss"].backward()
        optimizer.step()
    found = made.evaluate(made.train_source(), limit=8)
    assert found["preference_margin"] > 0.01 and found["preference_accuracy"] > 0.7
    assert {"accuracy", "accuracy_before", "accuracy_gain", "preference_likelier"} <= set(found)


@pytest.mark.parametrize("kind", ["color", "shape", "digit", "word", "count", "relation", "odd"])
def test_the_wrong_answer_is_of_the_same_kind_and_wrong(kind: str) -> None:
    shape: dict[str, Any] = {"scenes": 40, "questions": 3, "kinds": [kind], "odd_share": 1.0}
    source = PreferenceScenes(PreferenceSource.model_validate(shape))
    plain = SceneSource(ScenesSource.model_validate(shape))
    samples = [source[i] for i in range(len(source)) if source[i].kind == kind]
    assert samples
    for sample in samples:
        right, wrong = sample.answer, rejected_answer(sample)
        assert wrong != right
        assert wrong.isdigit() == right.isdigit()
        pools = (WORDS,) if kind == "word" else (COLORS, SHAPES, tuple(OPPOSITES))
        assert [right in pool for pool in pools] == [wrong in pool for pool in pools]
        if kind == "count":
            assert abs(int(right) - int(wrong)) == 1
        if kind == "word" and len(sample.facts["scene"].signs) > 1:
            assert wrong in {sign.word for sign in sample.facts["scene"].signs}
    assert [source[i].question for i in range(9)] == [plain[i].question for i in range(9)]
    assert source[4].facts["rejected"] == PreferenceScenes(source.source)[4].facts["rejected"]
    assert source.fingerprint() != plain.fingerprint()


def write_pairs(folder: Path, rows: list[dict[str, Any]]) -> Path:
    picture(seed=1, height=48, width=64).save(folder / "a.png")
    picture(seed=2, height=64, width=48).save(folder / "b.png")
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


ROW = {"prompt": "which one?", "chosen": "the left", "rejected": "the right", "image": "a.png"}


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        (ROW, {}),
        ({**{k: v for k, v in ROW.items() if k != "image"}, "images": ["a.png", "b.png"]}, {}),
        ({"question": "which one?", "chosen": "the left", "rejected": "the right"}, {}),
        (
            {"q": "which one?", "good": "the left", "bad": "the right", "prompt": "x"},
            {"question": "q", "answer": "good", "rejected": "bad"},
        ),
    ],
)
def test_rows_of_preferences_are_read_by_their_usual_names_or_by_a_mapping(
    row: dict[str, Any], columns: dict[str, str], tmp_path: Path
) -> None:
    path = write_pairs(tmp_path, [row])
    sample = open_source(JsonlSource(type="jsonl", path=path, columns=columns))[0]  # type: ignore[arg-type]
    assert (sample.question, sample.answer) == ("which one?", "the left")
    assert rejected_answer(sample) == "the right"
    assert len(sample.images) == ("image" in row) + 2 * ("images" in row)


def test_a_column_named_rejected_alone_is_no_preference(tmp_path: Path) -> None:
    path = write_pairs(tmp_path, [{"question": "q?", "answer": "a", "rejected": "2024-01-01"}])
    sample = open_source(JsonlSource(type="jsonl", path=path))[0]
    assert "rejected" not in sample.facts
    with pytest.raises(DataError, match="there is no rejected answer"):
        pair_batch(renderer(), [sample])


def test_equal_answers_and_missing_ones_are_named_with_their_row(tmp_path: Path) -> None:
    path = write_pairs(tmp_path, [{**ROW, "rejected": "the left"}, {**ROW, "rejected": ""}])
    source = open_source(JsonlSource(type="jsonl", path=path))
    with pytest.raises(DataError, match="the rejected answer is the preferred one"):
        pair_batch(renderer(), [source[0]])
    with pytest.raises(InputError, match=r"pairs.jsonl.*the answer is empty"):
        source[1]


SETS = {
    "pref/gsm8k_pairs.jsonl": ({}, 400, 0),
    "gui/screenagent/pairs.jsonl": ({"question": "instruction"}, 81, 1),
}


@pytest.mark.parametrize("name", SETS)
def test_shared_preference_sets_train_by_configuration_alone(name: str, base: Path) -> None:
    columns, count, images = SETS[name]
    path = SHARED / name
    if not path.is_file():
        pytest.skip(f"no {name} in {SHARED}; set SACCADE_SHARED_DATA to the shared data's folder")
    overrides = ["data.train.type=jsonl", f"data.train.path={path}", "model.max_pixels=40000"]
    overrides += [f"data.train.columns.{field}={column}" for field, column in columns.items()]
    made = recipe(base, *overrides)
    source = made.train_source()
    assert len(source) == count
    samples = [source[i] for i in range(count)]
    assert Counter(len(one.images) for one in samples) == {images: count}
    assert all(rejected_answer(one) for one in samples)
    stirred(made)
    loss = one_loss(made, made.collate(samples[:2]), 2)["loss"]
    loss.backward()
    assert float(loss) != pytest.approx(math.log(2))

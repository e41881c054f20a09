"""The recipe `sft`: its loss is TRL's, every adapter learns, packing and merging change nothing."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from saccade.cli_merge import _merge_run
from saccade.config.errors import InputError
from saccade.config.resolve import resolve
from saccade.config.schema import ModelConfig
from saccade.data.samples import Sample
from saccade.evaluation.load import load_run
from saccade.evaluation.run import evaluate_run
from saccade.microscope.look import look
from saccade.models.backbone import load_backbone
from saccade.models.relevance.model import RelevanceModel
from saccade.training.rundir import RunDir
from tests.tiny_models import picture, random_backbone

trl = pytest.importorskip("trl", reason="the extra `rl` is not installed")
peft = pytest.importorskip("peft", reason="the extra `rl` is not installed")
from saccade.training.recipes.learner import Learner  # noqa: E402
from saccade.training.recipes.sft import SftRecipe  # noqa: E402
from tests.trainer_data import answered_scenes, trainer_settings  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
TOLERANCE = 1e-5


WAYS = {
    "lora": ("lora.dropout=0",),
    "whole": ("sft.adapter=none",),
    "with the tower": ("sft.adapter=none", "sft.vision=true"),
    "the projector": ("sft.adapter=none", "sft.train=[projector]"),
    "the tower's end": ("sft.adapter=none", "sft.train=[vision.last1, language.last1]"),
    "behind a selector": ("lora.dropout=0", "sft.selector={selector}", "selector.keep=0.3"),
    "whole, behind a selector": (
        "sft.adapter=none", "sft.selector={selector}", "selector.keep=0.3",
    ),
}  # fmt: skip


def recipe(base: Path, *overrides: str, selector: Path | None = None) -> SftRecipe:
    words = [one.format(selector=selector) for one in overrides]
    place = (f"model.name={base}", "model.device=cpu")
    return SftRecipe(resolve("smoke/sft", overrides=[*place, *words]).config)


def stirred(learner: Learner) -> None:
    """Adapters that do something: they start as the identity."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, one in learner.model.named_parameters():
            if "lora_B" in name:
                one.add_(torch.randn(one.shape, generator=generator) * 0.1)


def scenes(made: SftRecipe, count: int = 6) -> list[Sample]:
    source = made.train_source()
    return [source[i] for i in range(count)]


def one_loss(made: SftRecipe, batch: dict[str, Any]) -> torch.Tensor:
    made.model.train()
    tokens = (batch["labels"][:, 1:] != -100).sum()
    return made.loss(batch, step=0, denominator=tokens)["loss"]


def gradients(made: SftRecipe) -> dict[str, torch.Tensor]:
    found = {n: p.grad for n, p in made.model.named_parameters() if p.requires_grad}
    assert found and all(grad is not None for grad in found.values())
    return {name: grad.clone() for name, grad in found.items() if grad is not None}


@pytest.mark.parametrize("way", WAYS)
def test_every_trainable_tensor_and_nothing_else_gets_a_gradient(
    way: str, base: Path, selector: Path
) -> None:
    made = recipe(base, *WAYS[way], selector=selector)
    stirred(made.learner)
    one_loss(made, made.collate(scenes(made))).backward()
    for name, grad in gradients(made).items():
        assert grad.isfinite().all() and float(grad.abs().sum()) > 0, name
    frozen = [one for one in made.model.parameters() if not one.requires_grad]
    assert all(one.grad is None for one in frozen)
    learned = {name for name, one in made.model.named_parameters() if one.requires_grad}
    sees = ("with the tower", "the projector", "the tower's end")
    assert any("visual" in name for name in learned) == (way in sees)
    assert not any("selector" in name for name in learned)
    grouped = [one for group in made.groups().values() for one in group]
    assert len(grouped) == len(learned)


def test_adapters_have_the_asked_shape_and_stand_in_the_language_model_alone(base: Path) -> None:
    config = resolve("sft", overrides=[f"model.name={base}"]).config
    assert (config.lora.rank, config.lora.alpha, config.lora.dropout) == (16, 32, 0.1)
    assert config.lora.target_modules == ["q_proj", "k_proj", "v_proj", "o_proj"]
    named = dict(recipe(base, "lora.rank=3").model.named_parameters())
    adapters = {name: one for name, one in named.items() if one.requires_grad}
    assert len(adapters) == 3 * 4 * 2, "three layers, four projections, two matrices"
    assert all("language_model" in name and 3 in one.shape for name, one in adapters.items())


@pytest.mark.parametrize("way", ["lora", "behind a selector"])
def test_the_loss_is_that_of_trls_trainer_on_the_same_batch(
    way: str, base: Path, selector: Path, tmp_path: Path
) -> None:
    made = recipe(base, *WAYS[way], selector=selector)
    stirred(made.learner)
    learner = made.learner
    trainer = trl.SFTTrainer(
        model=learner.model if way != "lora" else learner.base,
        args=trl.SFTConfig(
            **trainer_settings(tmp_path, max_length=None, per_device_train_batch_size=4)
        ),
        train_dataset=answered_scenes(),
        processing_class=learner.processor,
    )
    batch = dict(next(iter(trainer.get_train_dataloader())))
    trainer.model.eval()
    tokens = (batch["labels"][:, 1:] != -100).sum()
    with torch.no_grad():
        theirs = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=tokens)
        made.model.eval()
        ours = made.loss(batch, step=0, denominator=tokens)["loss"]
    assert abs(float(theirs) - float(ours)) < TOLERANCE
    # and half a batch each, over the tokens of both, as in accumulation
    halves = [0.0, 0.0]
    samples = scenes(made, 4)
    whole = made.collate(samples)
    tokens = (whole["labels"][:, 1:] != -100).sum()
    with torch.no_grad():
        for i in range(2):
            half = made.collate(samples[2 * i : 2 * i + 2])
            halves[i] = float(made.loss(half, step=0, denominator=tokens)["loss"])
        together = float(made.loss(whole, step=0, denominator=tokens)["loss"])
    assert abs(sum(halves) - together) < TOLERANCE


def test_only_the_answer_and_its_end_are_supervised(base: Path) -> None:
    made = recipe(base)
    samples = scenes(made)
    batch = made.collate(samples)
    tokenizer = made.processor.tokenizer
    for row, sample in zip(batch["labels"], samples, strict=True):
        assert tokenizer.decode(row[row != -100]) == f"{sample.answer}<|im_end|>"


@pytest.mark.parametrize("way", ["lora", "whole"])
def test_packed_questions_have_the_loss_and_gradients_of_separate_ones(
    way: str, base: Path
) -> None:
    apart, packed = recipe(base, *WAYS[way]), recipe(base, *WAYS[way], "sft.packing=true")
    samples = scenes(apart, 5)
    text = Sample(id="t", question="what color is the sky?", answers=("blue",))
    two = (picture(seed=1, height=64, width=48), picture(seed=2, height=48, width=64))
    samples += [text, Sample(id="u", question="how many?", answers=("2",), images=two)]
    found = []
    for made in (apart, packed):
        stirred(made.learner)
        batch = made.collate(samples)
        loss = one_loss(made, batch)
        loss.backward()
        found.append((len(batch["labels"]), float(loss), gradients(made)))
    (rows, loss, grads), (fewer, packed_loss, packed_grads) = found
    assert fewer < rows
    assert abs(loss - packed_loss) < TOLERANCE
    for name, grad in grads.items():
        torch.testing.assert_close(packed_grads[name], grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("way", ["lora", "whole", "behind a selector"])
def test_the_finished_model_is_merged_and_answers_as_the_trained_one(
    way: str, base: Path, selector: Path, tmp_path: Path
) -> None:
    made = recipe(base, *WAYS[way], selector=selector)
    stirred(made.learner)
    if way == "whole":
        with torch.no_grad():
            made.learner.base.model.language_model.norm.weight.mul_(1.5)
    made.finish(RunDir(tmp_path))
    made.model.eval()
    again = load_backbone(ModelConfig(name=str(tmp_path / "model"), device="cpu"))
    assert not any("lora" in name for name, _ in again.model.named_parameters())
    behind = way == "behind a selector"
    model: Any = RelevanceModel.from_pretrained(tmp_path / "model") if behind else again.model
    batch = made.collate(scenes(made))
    batch.pop("sample_ids")
    with torch.no_grad():
        reading = made.learner.read(batch, labels=batch["labels"])
        live = made.learner.base.lm_head(made.learner.states(reading))
        merged = model(**{name: one for name, one in batch.items() if name != "labels"}).logits
        plain = random_backbone().model(**{n: batch[n] for n in batch if n != "labels"}).logits
    present = reading.arguments["attention_mask"].bool()
    assert merged.shape == live.shape
    assert float((merged - live)[present].abs().max()) < 1e-4
    assert plain.shape != live.shape or float((plain - live)[present].abs().max()) > 0.1
    if way == "whole":
        assert not (tmp_path / "adapter").exists()
    else:
        apart = peft.PeftModel.from_pretrained(
            load_backbone(ModelConfig(name=str(base), device="cpu")).model, tmp_path / "adapter"
        )
        stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
        assert len(stored) == 24 and apart.peft_config["default"].r == 4


def test_the_input_models_accuracy_stands_beside_the_trained_ones(base: Path) -> None:
    made = recipe(base, "lora.dropout=0", "eval.batch_size=2")
    found = made.evaluate(made.train_source(), limit=4)
    assert found["accuracy_before"] == found["accuracy"] and found["accuracy_gain"] == 0
    # now answers change: teach it to say what the first answer begins with, by force
    asked: list[str] = []
    learner = made.learner
    right = functools.partial(_answers_right, asked)
    learner.answer = right  # type: ignore[method-assign]
    found = made.evaluate(made.train_source(), limit=4)
    assert found["accuracy"] == 1.0 and len(asked) == 4, "the input model is measured once"
    assert found["accuracy_gain"] == 1.0 - found["accuracy_before"]


def _answers_right(asked: list[str], samples: list[Sample]) -> list[str]:
    asked += [sample.id for sample in samples]
    return [sample.answer for sample in samples]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("sft.selector=nowhere",), "sft.selector=nowhere: no such run"),
        (("lora.target_modules=[q_porj]",), "no linear layer 'q_porj'.*\n  fix: .*q_proj"),
        (("sft.vision=true",), "vision=true needs adapter=none"),
        (("sft.packing=true", "sft.selector=x"), "does not go with a selector"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_a_fix(
    overrides: tuple[str, ...], message: str, base: Path
) -> None:
    with pytest.raises(InputError, match=message):
        recipe(base, *overrides)


def test_a_finished_run_is_scored_as_a_model_of_its_own(
    base: Path, selector: Path, tmp_path: Path
) -> None:
    from saccade.training.run import train

    for name, way in (("plain", "lora"), ("pruned", "behind a selector")):
        words = [one.format(selector=selector) for one in WAYS[way]]
        place = (f"run.root={tmp_path}", f"run.name={name}", f"model.name={base}")
        few = ("training.steps=2", "training.save_every=1", "training.threads=1",
               "training.eval_samples=2")  # fmt: skip
        train(resolve("smoke/sft", overrides=[*place, *few, *words]))
        run = RunDir(tmp_path / name)
        loaded = load_run(run)
        assert ("trained" in loaded.arms) == (name == "pruned")
        finished = json.loads((run.path / "DONE").read_text())["metrics"]
        assert {"loss", "accuracy", "accuracy_before", "accuracy_gain"} <= set(finished)
        unfinished = load_run(run, checkpoint=run.checkpoints / "step-2")
        source = loaded.config.data.train
        assert source is not None and unfinished.arms == loaded.arms
        assert_verbs_apply(run, picture=tmp_path / "picture.png", has_selector=name == "pruned")


def assert_verbs_apply(run: RunDir, *, picture: Path, has_selector: bool) -> None:
    """The verbs made for runs with a selector answer without one, or say what to use instead."""
    Image.new("RGB", (96, 80), (200, 50, 40)).save(picture)
    seen = look(picture, "what is it?", run=run, out=picture.with_name("look.png"))
    assert seen["arm"] == ("trained" if has_selector else "full")
    assert (seen["kept"] < seen["full"]) == has_selector
    assert any("has no selector" in one for one in seen["warnings"]) != has_selector
    assert evaluate_run(run, limit=2)["arm"] == seen["arm"]
    with pytest.raises(InputError, match="leaves its model in one piece"):
        _merge_run(run, picture.with_name("merged"), adapter=None, limit=1, tolerance=None)

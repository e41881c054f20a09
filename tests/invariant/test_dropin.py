"""`RelevanceModel` inside TRL's trainers and under PEFT adapters, on CPU, at a random base.

Each trainer takes a few steps on generated scenes: what should learn changes, nothing else moves by
a bit, and the log-probabilities a trainer sees are those of a dense run with the dropped tokens
masked by hand. Misaligned states must raise, never train.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from saccade.config.errors import InputError
from saccade.models.relevance import dropin
from saccade.models.relevance.dropin import token_log_probs
from saccade.models.relevance.model import RelevanceModel
from tests.invariant.test_pruning_exact import masked_reference
from tests.tiny_models import mixed_samples, model_inputs, older_backbone, relevance_model, renderer

trl = pytest.importorskip("trl", reason="the extra `rl` is not installed")
peft = pytest.importorskip("peft", reason="the extra `rl` is not installed")

from tests.trainer_data import (  # noqa: E402
    LANGUAGE_LAYERS,
    Watch,
    answered_scenes,
    asked_scenes,
    own_backbone,
    own_model,
    preferred_scenes,
    trainer_settings,
)

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
TOLERANCE = 1e-4
ONLY_IMITATED = "balance.log_scale"
"""A scale that the answers' loss cannot reach; imitating the base's attention teaches it."""


def lora(*, selector: bool) -> Any:
    return peft.LoraConfig(
        r=4,
        target_modules=LANGUAGE_LAYERS,
        modules_to_save=["selector"] if selector else None,
        task_type="CAUSAL_LM",
    )


ADAPTERS = {
    "selector": lambda: None,
    "adapter": lambda: lora(selector=False),
    "both": lambda: lora(selector=True),
}


def inner(trainer: Any) -> RelevanceModel:
    model = trainer.model
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def by_hand(model: RelevanceModel, batch: dict[str, Any]) -> torch.Tensor:
    """Log-probabilities [B, L-1] of a dense run in which the dropped keys are masked."""
    inputs = {name: batch[name] for name in batch if name != "labels"}
    return token_log_probs(masked_reference(model, inputs, 0.3), batch["input_ids"])


def assert_seen_as_by_hand(trainer: Any, batch: dict[str, Any], labels: torch.Tensor) -> None:
    """The trainer's own call, while learning and while not, against the dense run."""
    learned = labels[:, 1:] != -100
    expected = by_hand(inner(trainer), batch)
    for training in (True, False):
        trainer.model.train(training)
        with torch.set_grad_enabled(training):
            seen = trainer.model(**batch, labels=labels, fused_lm_head=True).log_probs
        assert seen.shape == learned.shape
        assert float((seen - expected)[learned].abs().max()) < TOLERANCE


def train_and_watch(trainer: Any) -> list[dict[str, float]]:
    """Train; all that can learn has a gradient and changed, all else is what it was."""
    trainer.model.train()
    watch = Watch(trainer.model)
    trainer.add_callback(watch)
    trainer.train()
    learns = {name for name in watch.trainable if not name.endswith(ONLY_IMITATED)}
    assert learns and watch.graded == learns
    assert watch.changed() == learns
    steps = [row for row in trainer.state.log_history if "loss" in row]
    assert len(steps) == trainer.args.max_steps
    assert all(math.isfinite(row["loss"]) and math.isfinite(row["grad_norm"]) for row in steps)
    return steps


def sft_trainer(model: RelevanceModel, folder: Path, *, adapter: Any = None, **more: Any) -> Any:
    return trl.SFTTrainer(
        model=model,
        args=trl.SFTConfig(**trainer_settings(folder, max_length=None, **more)),
        train_dataset=answered_scenes(),
        processing_class=model.backbone.processor,
        peft_config=adapter,
    )


def dpo_trainer(
    model: RelevanceModel, folder: Path, *, adapter: Any = None, reference: Any = None
) -> Any:
    return trl.DPOTrainer(
        model=model,
        ref_model=reference,
        args=trl.DPOConfig(**trainer_settings(folder, max_length=None)),
        train_dataset=preferred_scenes(),
        processing_class=model.backbone.processor,
        peft_config=adapter,
    )


def every_other(completions: list[Any], **_: Any) -> list[float]:
    """A reward that differs within every group of two."""
    return [float(number % 2) for number in range(len(completions))]


def grpo_trainer(model: RelevanceModel, folder: Path, *, adapter: Any = None, **more: Any) -> Any:
    more = {"num_generations": 2, "max_completion_length": 6, **more}
    return trl.GRPOTrainer(
        model=model,
        reward_funcs=every_other,
        args=trl.GRPOConfig(**trainer_settings(folder, **more)),
        train_dataset=asked_scenes(),
        processing_class=model.backbone.processor,
        peft_config=adapter,
    )


@pytest.mark.parametrize("learner", ADAPTERS)
def test_supervised_fine_tuning_trains_what_it_should(learner: str, tmp_path: Path) -> None:
    trainer = sft_trainer(own_model(), tmp_path, adapter=ADAPTERS[learner]())
    batch = next(iter(trainer.get_train_dataloader()))
    labels = batch.pop("labels")
    image = batch["input_ids"] == inner(trainer).markers.image
    assert (labels[image] == -100).all(), "only answers should be supervised"
    assert_seen_as_by_hand(trainer, batch, labels)
    train_and_watch(trainer)


@pytest.mark.parametrize("learner", ADAPTERS)
def test_trls_defaults_of_low_precision_and_recomputed_layers_train_too(
    learner: str, tmp_path: Path
) -> None:
    trainer = sft_trainer(
        own_model(), tmp_path, adapter=ADAPTERS[learner](), bf16=True, activation_checkpointing=True
    )
    passes = []
    layer = inner(trainer).base.model.language_model.layers[-1]
    layer.self_attn.register_forward_pre_hook(lambda *_: passes.append(1))
    train_and_watch(trainer)
    assert len(passes) == 2 * trainer.args.max_steps, "one pass and one recomputation per step"


@pytest.mark.parametrize("learner", ADAPTERS)
def test_preference_pairs_train_against_the_pruned_model_as_it_was(
    learner: str, tmp_path: Path
) -> None:
    model = own_model()
    reference = model.reference() if learner == "selector" else None
    trainer = dpo_trainer(model, tmp_path, adapter=ADAPTERS[learner](), reference=reference)
    batch = next(iter(trainer.get_train_dataloader()))
    chosen = batch.pop("completion_mask")
    assert_seen_as_by_hand(trainer, batch, batch["input_ids"].masked_fill(chosen == 0, -100))
    steps = train_and_watch(trainer)
    # both sides are the same model at the start: no pair is preferred yet
    assert abs(steps[0]["loss"] - math.log(2)) < TOLERANCE
    assert abs(steps[1]["loss"] - math.log(2)) > TOLERANCE


def test_a_reference_is_never_the_base_without_its_selector(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give_ref_model_and_processing_class"):
        dpo_trainer(own_model(), tmp_path)


def test_a_reference_shares_a_frozen_base_and_copies_one_that_learns() -> None:
    model = own_model()
    assert model.reference().base is model.base
    model.base.model.language_model.requires_grad_(True)
    twin = model.reference()
    assert twin.base is not model.base and twin.backbone.model is twin.base
    assert not any(parameter.requires_grad for parameter in twin.parameters())
    assert model.trains_selector and not twin.trains_selector


@pytest.mark.parametrize("learner", ADAPTERS)
def test_groups_of_answers_are_generated_scored_and_learned_from(
    learner: str, tmp_path: Path
) -> None:
    adapter = ADAPTERS[learner]()
    trainer = grpo_trainer(
        own_model(), tmp_path, adapter=adapter, beta=0.1 if adapter is not None else 0.0
    )
    batch = renderer().batch(mixed_samples(), with_answer=True)
    # completions stand on the right and end in padding, as a group of them does
    filler = torch.full_like(batch["input_ids"][:, :2], inner(trainer).markers.pad)
    ids = torch.cat([batch["input_ids"], filler], 1)
    mask = torch.cat([batch["attention_mask"], torch.zeros_like(filler)], 1)
    inputs = {
        "input_ids": ids,
        "attention_mask": mask,
        "pixel_values": batch["pixel_values"],
        "image_grid_thw": batch["image_grid_thw"],
        "mm_token_type_ids": (ids == inner(trainer).markers.image).int(),
    }
    expected = by_hand(inner(trainer), inputs)[:, -6:]
    images = [len(sample.images) for sample in mixed_samples()]
    for training in (True, False):
        trainer.model.train(training)
        with torch.set_grad_enabled(training):
            seen = trainer._get_per_token_logps_and_entropies(
                trainer.model, logits_to_keep=6, batch_size=2, num_images=images, **inputs
            )[0]
        spoken = mask[:, -6:] == 1
        assert float((seen - expected)[spoken].abs().max()) < TOLERANCE
    train_and_watch(trainer)


def test_states_that_are_too_short_stop_a_trainer_instead_of_training_on_wrong_positions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dropin, "full_length", lambda values, source, length: values)
    trainer = sft_trainer(own_model(), tmp_path, adapter=lora(selector=False))
    with pytest.raises(RuntimeError, match="wrong positions"):
        trainer.train()


def test_log_probabilities_are_not_read_from_logits_of_the_kept_tokens_only() -> None:
    batch = renderer().batch(mixed_samples(), with_answer=True)
    with torch.no_grad():
        logits = relevance_model(keep=0.3)(**model_inputs(batch)).logits
    assert logits.shape[1] < batch["input_ids"].shape[1]
    with pytest.raises(InputError, match="full_length_logits"):
        token_log_probs(logits, batch["input_ids"])


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> float:
    flat = logits[:, :-1].flatten(0, 1)
    return float(torch.nn.functional.cross_entropy(flat, labels[:, 1:].flatten()))


def word_labels(batch: dict[str, Any]) -> torch.Tensor:
    """Every token with a token before it, the visual ones included (plain language modelling)."""
    present = batch["attention_mask"] == 1
    preceded = present & torch.nn.functional.pad(present, (1, 0))[:, :-1]
    return batch["input_ids"].masked_fill(~preceded, -100)


@pytest.mark.parametrize("supervised", ["answers", "everything"])
def test_full_length_logits_and_labels_give_the_loss_of_the_kept_tokens(supervised: str) -> None:
    model = relevance_model(keep=0.3)
    batch = renderer().batch(mixed_samples(), with_answer=True)
    inputs, image = model_inputs(batch), batch["input_ids"] == model.markers.image
    labels = batch["labels"] if supervised == "answers" else word_labels(batch)
    with torch.no_grad():
        reduced = model(**inputs, labels=labels)
        argument = model(**inputs, labels=labels, full_length_logits=True)
        model.full_length_logits = True
        attribute = model(**inputs, labels=labels)
    assert reduced.logits.shape[1] < argument.logits.shape[1] == labels.shape[1]
    assert torch.equal(argument.logits, attribute.logits)
    # what stands at, or right behind, a visual token depends on what was kept: not supervised
    behind = torch.nn.functional.pad(image, (1, 0))[:, :-1]
    by_position = cross_entropy(argument.logits, labels.masked_fill(image | behind, -100))
    assert abs(float(reduced.loss) - by_position) < 1e-5
    assert abs(float(argument.loss) - by_position) < 1e-5


@pytest.mark.parametrize("last", [3, torch.tensor([-3, -2, -1])])
def test_the_last_logits_are_the_last_of_the_full_sequence(last: Any) -> None:
    model = relevance_model(keep=0.3)
    inputs = model_inputs(renderer().batch(mixed_samples(), with_answer=True))
    with torch.no_grad():
        full = model(**inputs, full_length_logits=True).logits
        some = model(**inputs, full_length_logits=True, logits_to_keep=last).logits
    assert torch.equal(some, full[:, -3:])


@pytest.mark.parametrize("placement", ["features", "pixels", "glance"])
def test_a_frozen_selector_drops_while_the_base_learns_and_the_loss_is_the_same(
    placement: str,
) -> None:
    model = relevance_model(own_backbone(), keep=0.3, placement=placement)
    peft.inject_adapter_in_model(lora(selector=False), model.base)
    batch = renderer().batch(mixed_samples(), with_answer=True)
    read = []
    model.base.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(kwargs["inputs_embeds"].shape[1]),
        with_kwargs=True,
    )
    losses = []
    for learns in (True, False):
        model.selector.requires_grad_(learns)
        assert model.trains_selector is learns
        model.train()
        out = model(**model_inputs(batch), labels=batch["labels"])
        assert out.logits.shape[1] == batch["input_ids"].shape[1]
        out.loss.backward()
        losses.append(float(out.loss))
    assert read[1] < batch["input_ids"].shape[1] <= read[0]
    # before the tower, kept cells no longer attend to dropped ones, which the gate cannot copy
    assert abs(losses[0] - losses[1]) < (TOLERANCE if placement == "features" else 0.5)


def test_the_loss_is_normalised_by_what_the_trainer_counts() -> None:
    model = relevance_model(keep=0.3)
    batch = renderer().batch(mixed_samples(), with_answer=True)
    inputs = model_inputs(batch)
    tokens = int((batch["labels"][:, 1:] != -100).sum())
    with torch.no_grad():
        mean = model(**inputs, labels=batch["labels"]).loss
        of_ten = model(**inputs, labels=batch["labels"], num_items_in_batch=10 * tokens).loss
    assert abs(float(mean) - 10 * float(of_ten)) < 1e-5


def stirred(adapted: Any) -> Any:
    """An adapter that does something: LoRA starts as the identity."""
    with torch.no_grad():
        generator = torch.Generator().manual_seed(5)
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return adapted.eval()


@pytest.mark.parametrize("around", ["the whole model", "the base inside"])
def test_an_adapter_can_be_switched_off_saved_and_loaded(around: str, tmp_path: Path) -> None:
    batch = renderer().batch(mixed_samples(), with_answer=True)
    whole = around == "the whole model"

    def logits(model: RelevanceModel) -> torch.Tensor:
        with torch.no_grad():
            return model(**model_inputs(batch), full_length_logits=True).logits

    model = own_model()
    plain = logits(model)
    adapted = stirred(peft.get_peft_model(model if whole else model.base, lora(selector=whole)))
    changed = logits(model)
    assert float((changed - plain).abs().max()) > 0.1
    with adapted.disable_adapter():
        assert torch.equal(logits(model), plain)
    assert torch.equal(logits(model), changed)
    adapted.save_pretrained(tmp_path)
    again = own_model()
    peft.PeftModel.from_pretrained(again if whole else again.base, tmp_path).eval()
    assert torch.equal(logits(again), changed)


def test_generation_under_an_adapter_returns_the_given_prompt_and_new_tokens() -> None:
    adapted = stirred(peft.get_peft_model(own_model(), lora(selector=True)))
    batch = renderer().batch(mixed_samples(), with_answer=False)
    asked = {"max_new_tokens": 3, "do_sample": True, "eos_token_id": None}
    out = adapted.generate(**model_inputs(batch), **asked, num_return_sequences=2)
    rows, length = batch["input_ids"].shape
    assert out.shape == (2 * rows, length + 3)
    assert torch.equal(out[:, :length], batch["input_ids"].repeat_interleave(2, 0))
    named = adapted.generate(**model_inputs(batch), **asked, return_dict_in_generate=True)
    assert torch.equal(named.sequences[:, :length], batch["input_ids"])


@pytest.mark.parametrize("backbone", [own_backbone, older_backbone])
def test_layers_of_the_vision_tower_cannot_be_trained_by_mistake(backbone: Any) -> None:
    model = relevance_model(backbone())
    weight = next(model.base.model.visual.parameters())
    weight.requires_grad_(True)
    with pytest.raises(InputError, match="language-model layers"):
        model.train()
    weight.requires_grad_(False)
    model.train()
    assert not model.base.training


def test_arguments_that_mean_something_else_for_fewer_tokens_are_refused() -> None:
    inputs = model_inputs(renderer().batch(mixed_samples(), with_answer=False))
    positions = torch.arange(inputs["input_ids"].shape[1])[None]
    with pytest.raises(TypeError, match="takes no position_ids"):
        relevance_model()(**inputs, position_ids=positions)


def test_a_trainers_folder_keeps_its_other_files_and_loads_again(tmp_path: Path) -> None:
    model = own_model()
    trainer = sft_trainer(model, tmp_path, save_strategy="steps", save_steps=1)
    trainer.train()
    trainer.save_model()
    trainer.save_model()
    assert (tmp_path / "checkpoint-1" / "selector.safetensors").is_file()
    assert not (tmp_path / "base").exists()
    again = RelevanceModel.from_pretrained(tmp_path, backbone=model.backbone)
    for name, tensor in model.selector.state_dict().items():
        assert torch.equal(tensor, again.selector.state_dict()[name]), name


def test_a_base_that_learned_is_saved_with_the_selector(tmp_path: Path) -> None:
    model = own_model()
    model.base.model.language_model.layers[0].requires_grad_(True)
    model.full_length_logits = True
    model.save_pretrained(tmp_path / "model")
    again = RelevanceModel.from_pretrained(tmp_path / "model")
    assert again.full_length_logits
    batch = model_inputs(renderer().batch(mixed_samples(), with_answer=False))
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, again(**batch).logits)


def test_a_model_in_pieces_is_not_saved(tmp_path: Path) -> None:
    adapted = peft.get_peft_model(own_model(), lora(selector=True))
    with pytest.raises(InputError, match="an adapter is attached"):
        adapted.get_base_model().save_pretrained(tmp_path / "model")
    assert not list(tmp_path.iterdir())

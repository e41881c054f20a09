"""The trained peer: its score by definition, its way of learning, and its place in a run."""

from __future__ import annotations

from pathlib import Path

import torch

from saccade.config.resolve import resolve
from saccade.evaluation.load import arms_of, describe_arm
from saccade.models.relevance.gated import GatedSelector
from saccade.models.relevance.model import RelevanceModel
from saccade.models.relevance.multiply import fade, hardness_at, multiplied_answer_loss
from saccade.models.relevance.prune import ImageTokens
from tests.tiny_models import mixed_samples, random_backbone, relevance_model, renderer, sample


def gated_model() -> RelevanceModel:
    return relevance_model(kind="gated", learning="multiply")


def test_the_score_is_the_mean_over_queries_within_each_image() -> None:
    model = gated_model()
    features = model.encode(renderer().batch(mixed_samples(), with_answer=False))
    found = model.score(features).logits_N
    selector = model.selector
    assert isinstance(selector, GatedSelector)
    start = 0
    for count in features.grid.counts:
        rows = features.cells_ND[start : start + count]
        rows = torch.nn.functional.layer_norm(rows, rows.shape[-1:])
        attention = selector.query(rows) @ selector.key(rows).T / selector.key.out_features**0.5
        assert torch.allclose(found[start : start + count], attention.mean(0), atol=1e-5)
        start += count


def test_the_question_changes_nothing_and_alone_equals_together() -> None:
    model, render = gated_model(), renderer()
    samples = mixed_samples()
    together = model.reduce(render.batch(samples, with_answer=False), keep=0.3).images
    alone = [
        image
        for one in samples
        for image in model.reduce(render.batch([one], with_answer=False), keep=0.3).images
    ]
    for ours, theirs in zip(together, alone, strict=True):
        assert ours.keep_HW is not None and theirs.keep_HW is not None
        assert torch.equal(ours.keep_HW, theirs.keep_HW)
    other = sample(0, (64, 96), question="which digit is on the star?")
    asked = model.reduce(render.batch([other], with_answer=False), keep=0.3).images[0]
    assert asked.keep_HW is not None and alone[0].keep_HW is not None
    assert torch.equal(asked.keep_HW, alone[0].keep_HW)


def test_every_trainable_tensor_gets_a_gradient_by_multiplication() -> None:
    for model in (gated_model(), relevance_model(learning="multiply")):
        model.train()
        features = model.encode(renderer().batch(mixed_samples(), with_answer=True))
        loss, _ = multiplied_answer_loss(model, features, keep=0.3, denominator=3.0, hardness=0.1)
        # the balance learns its scale from the warm start alone
        (loss.total + model.imitation_loss(features, denominator=3.0)).backward()
        for name, parameter in model.selector.named_parameters():
            assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), name
            assert float(parameter.grad.abs().max()) > 0, name
        assert all(p.grad is None for p in model.base.parameters())


def test_fading_multiplies_tokens_and_every_deepstack_level_by_the_soft_choice() -> None:
    model = gated_model()
    features = model.encode(renderer().batch(mixed_samples(), with_answer=True))
    with torch.no_grad():
        faded = fade(model, features, keep=0.3)
    gates, plain = faded.soft_N.split(features.grid.counts), features.whole().images
    kept = model.budgets(features.grid, 0.3)
    assert [round(float(gate.sum()), 3) for gate in gates] == kept
    assert [int(part.sum()) for part in faded.hard_N.split(features.grid.counts)] == kept
    expected = ImageTokens.map(plain, lambda i, rows: rows * gates[i][:, None])  # type: ignore
    images = faded.inputs.images
    assert images is not None and len(images.deepstack) == 2
    for ours, theirs in zip(images.deepstack[1], expected.deepstack[1], strict=True):
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(images.pooled, expected.pooled, strict=True):
        assert torch.equal(ours, theirs)


def test_the_loss_sums_over_micro_batches_to_that_of_the_whole_batch() -> None:
    model, render = gated_model(), renderer()
    samples = mixed_samples()

    def loss(part: list) -> torch.Tensor:
        features = model.encode(render.batch(part, with_answer=True))
        return multiplied_answer_loss(
            model, features, keep=0.3, denominator=5.0, hardness=2.0
        )[0].total  # fmt: skip

    assert torch.allclose(
        loss(samples), torch.stack([loss([one]) for one in samples]).sum(), atol=1e-5
    )


def test_the_pull_towards_a_hard_choice_rises_over_the_steps() -> None:
    config = resolve("gated", overrides=["training.steps=11"]).config
    assert config.selector.kind == "gated" and config.selector.distill_steps == 0
    assert hardness_at(config, step=0) == 0.1
    assert abs(hardness_at(config, step=5) - 1.55) < 1e-9
    assert hardness_at(config, step=10) == 3.0


def test_a_gated_selector_is_saved_and_loaded_like_ours(tmp_path: Path) -> None:
    model = gated_model()
    model.save_pretrained(tmp_path / "model")
    loaded = RelevanceModel.from_pretrained(tmp_path / "model", backbone=random_backbone())
    batch = renderer().batch([sample(0, (64, 96))], with_answer=False)
    ours, theirs = (one.reduce(batch, keep=0.3).images[0].keep_HW for one in (model, loaded))
    assert ours is not None and theirs is not None and torch.equal(ours, theirs)


def test_a_comparison_names_the_trained_peer_and_that_it_sees_no_question() -> None:
    ours = describe_arm("trained", resolve("relevance").config)
    peer = describe_arm("trained+mmr", resolve("gated").config)
    assert ours.query_aware and "VisionSelector" not in ours.title
    assert not peer.query_aware and peer.title.startswith("trained soft gate (VisionSelector-like)")
    assert "salience" not in arms_of(resolve("gated").config)

"""Merging an adapter: the folder answers like the model it was made of, or it is not made."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from saccade.cli import app
from saccade.config.errors import InputError
from saccade.data.chat import ChatRenderer
from saccade.models.relevance import merge
from saccade.models.relevance.merge import attach_adapter, write_merged
from saccade.models.relevance.model import RelevanceModel
from tests.scored_run import make_run
from tests.tiny_models import (
    mixed_samples,
    model_inputs,
    relevance_model,
    renderer,
    scene_samples,
)

peft = pytest.importorskip("peft", reason="the extra `rl` is not installed")

from tests.trainer_data import LANGUAGE_LAYERS, own_backbone, own_model  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


def adapted(target: Any, *, size: float = 0.05, **settings: Any) -> Any:
    """A LoRA adapter that does something, with a selector of its own where it has one around it."""
    selector = ["selector"] if isinstance(target, RelevanceModel) else None
    config = peft.LoraConfig(
        r=4, target_modules=LANGUAGE_LAYERS, modules_to_save=selector, **settings
    )
    made = peft.get_peft_model(target, config)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(5)
        for name, parameter in made.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * size)
    return made.eval()


def merged(model: RelevanceModel, adapter: Any, folder: Path, **settings: Any) -> Any:
    settings = {"samples": scene_samples(3), "renderer": renderer(), **settings}
    return write_merged(model, folder, adapter=adapter, max_new_tokens=3, **settings)


def logits(model: RelevanceModel) -> torch.Tensor:
    batch = renderer().batch(mixed_samples(), with_answer=True)
    with torch.no_grad():
        return model(**model_inputs(batch), full_length_logits=True).logits


@pytest.mark.parametrize("around", ["the whole model", "the base inside"])
def test_a_merged_folder_answers_like_the_adapted_model(around: str, tmp_path: Path) -> None:
    model = own_model()
    plain = logits(model)
    adapter = adapted(model if around == "the whole model" else model.base)
    changed = logits(model)
    assert float((changed - plain).abs().max()) > 0.1
    parity = merged(model, adapter, tmp_path / "out")
    assert parity.samples == 3 and parity.answers_changed == 0
    assert parity.largest_drift <= parity.tolerance < 1e-2
    again = RelevanceModel.from_pretrained(tmp_path / "out")
    assert not any("lora" in name for name in again.state_dict())
    assert float((logits(again) - changed).abs().max()) < 1e-3
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_run_without_an_adapter_is_written_bit_for_bit(tmp_path: Path) -> None:
    model = own_model()
    parity = merged(model, None, tmp_path / "out")
    assert parity.largest_drift == 0.0
    assert torch.equal(logits(RelevanceModel.from_pretrained(tmp_path / "out")), logits(model))


def test_drift_is_refused_with_the_sample_and_nothing_is_left(tmp_path: Path) -> None:
    backbone = own_backbone()
    backbone = replace(backbone, model=backbone.model.to(torch.bfloat16))
    model = relevance_model(backbone, keep=0.3)
    # a small change to large bfloat16 weights is mostly rounded away by merging
    adapter = adapted(model.base, size=0.02)
    with pytest.raises(InputError, match=r"on sample scenes-\S+ a logit moves by") as refusal:
        merged(model, adapter, tmp_path / "deep" / "out", tolerance=1e-4)
    assert "tolerance of 0.0001" in str(refusal.value)
    assert not list((tmp_path / "deep").iterdir())


@pytest.mark.parametrize("lost", ["the adapter", "the selector", "one weight"])
def test_a_merge_that_loses_something_is_caught(
    lost: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = own_model()
    adapter = adapted(model, size=0.5)

    def forget(model: RelevanceModel, adapter: Any, *, where: Path) -> None:
        untouched = own_model()
        if lost == "the adapter":
            adapter.unload()
        else:
            adapter.merge_and_unload()
        if lost == "the selector":
            model.selector.load_state_dict(untouched.selector.state_dict())
        elif lost == "one weight":
            layer = model.base.model.language_model.layers[1].mlp.down_proj
            layer.weight.data[0, 0] += 1.0

    monkeypatch.setattr(merge, "_merge", forget)
    with pytest.raises(InputError, match="merging changes the model"):
        merged(model, adapter, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_model_that_says_nothing_finite_is_refused(tmp_path: Path) -> None:
    model = own_model()
    adapter = adapted(model.base)
    with torch.no_grad():
        next(one for name, one in adapter.named_parameters() if "lora_A" in name).fill_(torch.nan)
    with pytest.raises(InputError, match="cannot be merged"):
        merged(model, adapter, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_used_folder_and_an_empty_comparison_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        merged(own_model(), None, tmp_path)
    with pytest.raises(InputError, match="at least one sample"):
        merged(own_model(), None, tmp_path / "out", samples=[])


def test_an_adapter_that_does_not_fit_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"adapter_config\.json is missing"):
        attach_adapter(own_model(), tmp_path)
    adapted(own_model()).save_pretrained(tmp_path)
    narrow = own_model(width=16, heads=2)
    with pytest.raises(InputError, match="does not fit random"):
        attach_adapter(narrow, tmp_path)


def test_the_verb_merges_a_run_and_its_adapter_into_a_folder_that_stands_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = make_run(tmp_path)
    trained = RelevanceModel.from_pretrained(run.path / "model")
    adapter = adapted(trained)
    adapter.save_pretrained(tmp_path / "adapter")
    words = ["merge", "toy", "out", "--adapter", "adapter", "--limit", "3", "--json"]
    outcome = CliRunner().invoke(app, words, catch_exceptions=False)
    result = json.loads(outcome.stdout)
    assert result["samples"] == 3 and result["largest_drift"] <= result["tolerance"]
    again = RelevanceModel.from_pretrained(tmp_path / "out")
    batch = ChatRenderer(again.backbone.processor).batch(mixed_samples(), with_answer=False)
    with torch.no_grad():
        difference = again(**model_inputs(batch)).logits - trained(**model_inputs(batch)).logits
    assert float(difference.abs().max()) < 1e-3
    with pytest.raises(InputError, match="exists already"):
        CliRunner().invoke(app, words, catch_exceptions=False)

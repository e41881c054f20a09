"""The recipe `pretrain`: its losses, its schedule, and the model it joins and leaves behind."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import Qwen3Config, Qwen3ForCausalLM

from saccade.config.errors import InputError
from saccade.config.resolve import resolve
from saccade.config.schema import ModelConfig
from saccade.data.samples import DataError, Sample
from saccade.models.backbone import load_backbone, tiny_folder
from saccade.models.contrastive import Pairs, micro_batch_loss, pair_losses
from saccade.models.projector import PROJECTOR, join, parts_of
from saccade.training.recipes.pretrain import PhasedSource, PretrainRecipe, recalls
from saccade.training.run import train
from tests.tiny_models import random_backbone

PHASES = (
    "pretrain.schedule=["
    "{until: 0.34, task: contrastive, train: [projector], max_pixels: 9216},"
    "{until: 0.67, task: caption, train: [projector, vision.last1], data: {min_quality: 0.5}},"
    "{until: 1.0, task: caption, train: [projector, language.first1], matching: 0.5,"
    " data: {min_quality: 1.0}}]"
)

_MATCHER = {"matcher.text.weight", "matcher.text.bias", "matcher.log_scale"}


def recipe(base: Path, *overrides: str) -> PretrainRecipe:
    settings = (f"model.name={base}", "model.device=cpu", PHASES, *overrides)
    return PretrainRecipe(resolve("smoke/pretrain", overrides=settings).config)


def batch_of(made: PretrainRecipe, *, phase: int, size: int = 4) -> dict[str, Any]:
    source = made.train_source()
    first = made.ends[phase] * 4 - 4  # the last step of the phase
    batch = made.collate([source[first + i] for i in range(size)])
    assert batch["phase"] == phase
    return batch


def supervised(batch: dict[str, Any]) -> torch.Tensor:
    return (batch["labels"] != -100).sum().float()


# losses ------------------------------------------------------------------------------------------


def random_pairs(count: int, *, equal: bool = False) -> Pairs:
    generator = torch.Generator().manual_seed(count)
    image, text = (
        torch.nn.functional.normalize(torch.randn(count, 5, generator=generator), dim=-1)
        for _ in range(2)
    )
    keys = torch.arange(2 * count).view(2, count).T.clone()
    if equal:
        keys[1, 0] = keys[0, 0]  # one picture twice
        keys[3, 1] = keys[2, 1]  # one caption twice
    return Pairs(image, text, keys, torch.arange(1.0, count + 1))


@pytest.mark.parametrize("equal", [False, True])
def test_the_contrastive_loss_equals_its_formula(equal: bool) -> None:
    pairs, temperature = random_pairs(6, equal=equal), 0.2
    got = pair_losses(pairs, torch.tensor(temperature).reciprocal().log())
    image, text, keys = pairs.image_ND.tolist(), pairs.text_ND.tolist(), pairs.keys_N2.tolist()

    def score(i: int, j: int) -> float:
        return math.exp(sum(a * b for a, b in zip(image[i], text[j], strict=True)) / temperature)

    def rivals(i: int) -> list[int]:
        same = [keys[i][0] == other[0] or keys[i][1] == other[1] for other in keys]
        return [j for j in range(6) if j == i or not same[j]]

    for i in range(6):
        to_text = -math.log(score(i, i) / sum(score(i, j) for j in rivals(i)))
        to_image = -math.log(score(i, i) / sum(score(j, i) for j in rivals(i)))
        assert float(got[i]) == pytest.approx((to_text + to_image) / 2, abs=1e-5)


def test_micro_batches_together_have_the_whole_batchs_loss_and_gradient() -> None:
    pairs = random_pairs(6)

    def leaves() -> tuple[Pairs, torch.Tensor]:
        image, text = (t.clone().requires_grad_() for t in (pairs.image_ND, pairs.text_ND))
        return replace(pairs, image_ND=image, text_ND=text), torch.tensor(1.5, requires_grad=True)

    whole, whole_scale = leaves()
    expected = (pairs.weight_N * pair_losses(whole, whole_scale)).sum()
    expected.backward()
    cut, cut_scale = leaves()
    total = torch.zeros(())
    for rows in (torch.arange(0, 2), torch.arange(2, 6)):
        own = Pairs(*(getattr(cut, f.name)[rows] for f in fields(cut)))
        part = micro_batch_loss(pairs, own, rows, cut_scale)
        part.backward()
        total += part.detach()
    torch.testing.assert_close(total, expected.detach())
    for one, other in (
        (cut.image_ND, whole.image_ND), (cut.text_ND, whole.text_ND), (cut_scale, whole_scale),
    ):  # fmt: skip
        torch.testing.assert_close(one.grad, other.grad, atol=1e-6, rtol=1e-5)


def test_the_recipes_matching_loss_is_the_closed_form_over_pooled_vectors(base: Path) -> None:
    made = recipe(base)
    batch = batch_of(made, phase=0)
    parts = made.loss(batch, step=0, denominator=supervised(batch))
    model = made.base.model
    with torch.no_grad():
        pictures, captions = [], []
        grids = batch["image_grid_thw"]
        for i, pixels in enumerate(batch["pixel_values"].split(grids.prod(-1).tolist())):
            seen = model.visual(pixels, grid_thw=grids[i : i + 1])
            pictures.append((seen.pooler_output + sum(seen.deepstack_features)).mean(0))
            ids = batch["text_ids"][i][batch["text_mask"][i] == 1]
            captions.append(model.language_model(input_ids=ids[None]).last_hidden_state[0].mean(0))
        image = torch.nn.functional.normalize(torch.stack(pictures).double(), dim=-1)
        text = torch.stack(captions).double()  # the captions' map starts as the identity
        score = image @ torch.nn.functional.normalize(text, dim=-1).T / 0.07
        right = torch.arange(4)
        both = [torch.nn.functional.cross_entropy(s, right) for s in (score, score.T)]
    assert float(parts["loss"].detach()) == pytest.approx(float(sum(both)) / 2, abs=1e-5)


def test_the_caption_loss_equals_the_models_own(base: Path) -> None:
    made = recipe(base)
    batch = batch_of(made, phase=1)
    parts = made.loss(batch, step=2, denominator=supervised(batch))
    inputs = {k: v for k, v in batch.items() if isinstance(v, torch.Tensor)}
    with torch.no_grad():
        expected = made.base(**inputs).loss
    assert float(parts["loss"].detach()) == pytest.approx(float(expected), abs=1e-5)
    both = batch_of(made, phase=2)
    parts = made.loss(both, step=4, denominator=supervised(both))
    mean = parts["caption_loss"] + 0.5 * parts["contrastive_loss"]
    assert float(parts["loss"].detach()) == pytest.approx(float(mean), abs=1e-5)
    answered = batch["labels"][0][batch["labels"][0] != -100]
    source = made.train_source()
    said = made.processor.tokenizer.decode(answered)
    assert said == source[made.ends[1] * 4 - 4].answer + "<|im_end|>"


def test_recall_counts_equal_captions_as_right() -> None:
    pairs = random_pairs(4, equal=True)
    same = replace(pairs, text_ND=pairs.image_ND)
    assert recalls(same)["recall_at_1"] == 1
    wrong = replace(pairs, text_ND=pairs.image_ND.flip(0), keys_N2=torch.arange(8).view(4, 2))
    assert recalls(wrong) == {"recall_at_1": 0, "recall_at_1_image": 0, "recall_over_chance": 0}


# what learns -------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", [0, 1, 2])
def test_what_a_phase_trains_gets_a_gradient_and_nothing_else_has_one(
    phase: int, base: Path
) -> None:
    made = recipe(base)
    batch = batch_of(made, phase=phase)
    made.loss(batch, step=0, denominator=supervised(batch))["loss"].backward()
    moved = {n for n, p in made.model.named_parameters() if p.grad is not None and p.grad.any()}
    any_gradient = {n for n, p in made.model.named_parameters() if p.grad is not None}
    wanted = {f"base.{n}" for n in parts_of(made.base, made.phases_of_run[phase].train)}
    if phase != 1:
        wanted |= _MATCHER
    assert moved == any_gradient == wanted
    # what rests is still among the trained tensors of the run
    assert all(p.requires_grad for n, p in made.model.named_parameters() if n in wanted)
    ever = {n for n, p in made.model.named_parameters() if p.requires_grad}
    assert {".".join(n.split(".")[3:5]) for n in ever if "visual.blocks" in n} == {"blocks.1"}
    assert made.resting(made.ends[phase] - 1).isdisjoint(_groups(made, wanted))


def _groups(made: PretrainRecipe, names: set[str]) -> set[str]:
    wanted = {id(p) for n, p in made.model.named_parameters() if n in names}
    return {group for group, ps in made.groups().items() if any(id(p) in wanted for p in ps)}


def test_frozen_tensors_leave_a_run_as_they_came_and_the_others_do_not(
    base: Path, tmp_path: Path
) -> None:
    overrides = [f"model.name={base}", PHASES, f"run.root={tmp_path}", "training.threads=1"]
    train(resolve("smoke/pretrain", overrides=overrides))
    made = tmp_path / "smoke-pretrain" / "model"
    before, after = (load_file(folder / "model.safetensors") for folder in (base, made))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    parts = ["projector", "vision.last1", "language.first1"]
    assert changed == set(parts_of(random_backbone().model, parts))


def test_a_phase_keeps_what_another_learned_and_decays_nothing_that_rests(base: Path) -> None:
    made = recipe(base)
    learning = [p for p in made.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=0.01, weight_decay=0.5)
    for phase in (1, 2):
        batch = batch_of(made, phase=phase)
        before = {n: p.detach().clone() for n, p in made.model.named_parameters()}
        made.loss(batch, step=0, denominator=supervised(batch))["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        after = dict(made.model.named_parameters())
        changed = {n for n in before if not torch.equal(before[n], after[n])}
        wanted = {f"base.{n}" for n in parts_of(made.base, made.phases_of_run[phase].train)}
        assert {n for n in changed if n.startswith("base")} == wanted
        assert {n for n in changed if n.startswith("matcher")} == (
            _MATCHER if phase == 2 else set()
        )


# schedule ----------------------------------------------------------------------------------------


class Rows:
    """Twelve pairs whose quality rises with their number; one may be broken."""

    def __init__(self, broken: int | None = None) -> None:
        self.broken = broken

    def __len__(self) -> int:
        return 12

    def __getitem__(self, position: int, /) -> Sample:
        if position == self.broken:
            raise DataError("broken", where=f"row {position}")
        return Sample(id=str(position), question="?", answers=("x",),
                      facts={"quality": position / 11})  # fmt: skip

    def groups(self) -> list[list[int]]:
        return [[i] for i in range(12)]

    def fingerprint(self) -> str:
        return "rows"


def test_each_phase_sees_its_steps_and_its_quality() -> None:
    source = PhasedSource(Rows(), ends=[2, 5], least=[0.0, 0.6], per_step=4, seed=0)
    assert len(source) == 20 and source.groups() == [list(range(20))]
    good = PhasedSource(Rows(), ends=[5], least=[0.6], per_step=4, seed=0)
    samples = [good[i] for i in range(20)]
    assert {int(s.id) for s in samples} == {7, 8, 9, 10, 11}
    late = [source[i] for i in range(8, 20)]
    assert {s.facts["phase"] for s in late} == {1}
    assert {int(s.id) for s in late} == {7, 8, 9, 10, 11}
    assert [s.id for s in late] == [s.id for s in samples[8:]]  # a function of the position alone
    with pytest.raises(InputError, match=r"no pair of data\.train has quality 2 or more"):
        PhasedSource(Rows(), ends=[1], least=[2.0], per_step=4, seed=0)


def test_pictures_grow_with_the_schedule(base: Path) -> None:
    made = recipe(base, "data.train.min_cells=60", "data.train.max_cells=64")
    cells = [
        made.renderers[0].cells(batch_of(made, phase=phase)["image_grid_thw"]) for phase in (0, 1)
    ]
    assert max(cells[0]) <= 36 < min(cells[1])


def test_a_broken_row_is_reported_when_its_turn_comes_not_filtered_away() -> None:
    source = PhasedSource(Rows(broken=3), ends=[4], least=[0.6], per_step=4, seed=0)
    with pytest.raises(DataError, match="row 3"):
        [source[i] for i in range(16)]


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ("{until: 0.5, task: caption}", "must rise to 1.0"),
        ("{until: 1.0, task: caption},{until: 0.5, task: caption}", "must rise to 1.0"),
        ("{until: 1.0, task: caption, train: [tower]}", "no part is called tower"),
        ("{until: 1.0, task: caption, trian: [projector]}", r"schedule\[0\]\.trian.*mean train\?"),
        ("{until: 1.0, task: paint}", r"schedule\[0\]\.task.*expected one of contrastive"),
        ("{until: 1.0}", r"schedule\[0\]\.task.*required"),
        ("{until: 1.0, task: caption, data: {quality: 1}}", r"data\.quality.*there are min_qual"),
    ],
)
def test_a_wrong_schedule_is_refused(schedule: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolve("smoke/pretrain", overrides=[f"pretrain.schedule=[{schedule}]"])


def test_more_blocks_than_there_are_and_recomputed_resting_layers_are_refused(base: Path) -> None:
    many = "pretrain.schedule=[{until: 1.0, task: caption, train: [vision.last9]}]"
    with pytest.raises(InputError, match=r"vision.last9, but there are only 2 blocks"):
        recipe(base, many)
    with pytest.raises(InputError, match="gradient_checkpointing"):
        recipe(base, "training.gradient_checkpointing=true")


def test_a_row_without_picture_or_caption_is_named(base: Path) -> None:
    made = recipe(base)
    whole = made.train_source()[0]
    for broken in (replace(whole, images=(), image_key=None), replace(whole, answers=())):
        with pytest.raises(DataError, match="needs a picture and its caption"):
            made.collate([broken])


# joining -----------------------------------------------------------------------------------------


def test_a_tower_and_a_language_model_of_other_width_become_one_model(
    base: Path, tmp_path: Path
) -> None:
    config = ModelConfig(name=str(base), device="cpu")
    joined = join(config, vision="tiny", language=str(base), seed=1)
    again = join(config, vision="tiny", language=str(base), seed=1)
    tiny, own = load_file(tiny_folder() / "model.safetensors"), joined.model.state_dict()
    assert joined.model.config.vision_config.out_hidden_size == 48
    for name, tensor in own.items():
        torch.testing.assert_close(again.model.state_dict()[name], tensor, rtol=0, atol=0)
        if PROJECTOR.match(name):
            continue
        source = tiny if name.startswith("model.visual.") else random_backbone().model.state_dict()
        assert torch.equal(tensor, source[name]), name
    assert not any(parameter.requires_grad for parameter in joined.model.parameters())
    joined.model.save_pretrained(tmp_path / "joined")
    joined.processor.save_pretrained(tmp_path / "joined")
    loaded = load_backbone(config.model_copy(update={"name": str(tmp_path / "joined")}))
    for name, tensor in loaded.model.state_dict().items():
        assert torch.equal(tensor, own[name])
    made = recipe(base, "pretrain.vision=tiny")
    batch = batch_of(made, phase=0)
    assert torch.isfinite(made.loss(batch, step=0, denominator=supervised(batch))["loss"])


def test_a_text_only_qwen3_can_be_joined_and_still_says_the_same(tmp_path: Path) -> None:
    tokenizer = random_backbone().processor.tokenizer
    shape = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=40, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, tie_word_embeddings=False,
    )  # fmt: skip
    text = Qwen3ForCausalLM(shape).eval()
    text.save_pretrained(tmp_path / "text")
    tokenizer.save_pretrained(tmp_path / "text")
    config = ModelConfig(device="cpu")
    joined = join(config, vision="tiny", language=str(tmp_path / "text"), seed=0)
    ids = torch.randint(10, 300, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(joined.model(ids).logits, text(ids).logits, atol=1e-5, rtol=1e-4)


def test_what_cannot_be_joined_is_refused(tmp_path: Path, base: Path) -> None:
    config = ModelConfig(name=str(base), device="cpu")
    with pytest.raises(InputError, match=r"pretrain\.projector|projector=keep"):
        resolve("smoke/pretrain", overrides=["pretrain.projector=keep", "pretrain.vision=tiny"])
    with pytest.raises(InputError, match="no such model folder"):
        join(config, vision=str(tmp_path / "none"), language="tiny", seed=0)


def test_a_finished_run_is_a_base_for_other_recipes(base: Path, tmp_path: Path) -> None:
    from saccade.training.recipes.relevance import RelevanceRecipe

    place = [f"run.root={tmp_path}", f"model.name={base}", "training.threads=1"]
    train(resolve("smoke/pretrain", overrides=[*place, "training.steps=4"]))
    model = tmp_path / "smoke-pretrain" / "model"
    made = RelevanceRecipe(
        resolve("smoke/relevance", overrides=[f"model.name={model}", "model.device=cpu"]).config
    )
    source = made.train_source()
    batch = made.collate([source[i] for i in range(2)])
    assert torch.isfinite(made.loss(batch, step=0, denominator=supervised(batch))["loss"])


@pytest.mark.slow
def test_a_new_projector_on_the_tiny_base_learns_to_match(tmp_path: Path) -> None:
    """Matching among 64 held-out pairs, five times above chance, after a contrastive minute."""
    overrides = [
        "data=captions-small", "data.train.scenes=2000", "data.train.noise=0", "eval.batch_size=32",
        "data.eval.scenes=64", "training.eval_samples=64", "training.steps=160",
        "training.batch_size=32", "training.threads=1", f"run.root={tmp_path}",
        "pretrain.schedule=[{until: 0.8, task: contrastive},"
        " {until: 1.0, task: caption, matching: 1.0}]",
        "training.eval_every=128",
    ]  # fmt: skip
    from saccade.training.events import read_events, step_series

    train(resolve("pretrain", overrides=overrides))
    events = read_events(tmp_path / "pretrain" / "events.jsonl")
    after = {e["step"]: e["metrics"] for e in step_series(events, type="eval")}
    assert after[128]["recall_over_chance"] >= 5
    assert after[160]["recall_over_chance"] >= 5
    assert after[160]["caption_loss"] < after[128]["caption_loss"] - 2

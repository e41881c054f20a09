"""The phases that learn from known boxes: what is demonstrated, the aids, and the chain of runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from saccade.config.errors import InputError, OutsideError
from saccade.config.resolve import Resolved, resolve
from saccade.data.boxes import WHOLE, Box
from saccade.grounding.episodes import target_side
from saccade.grounding.packed import NOBODY
from saccade.training.grounding_phases import runs_of
from saccade.training.recipes.grounding import open_phase
from saccade.training.recipes.grounding_aids import (
    OFFSETS,
    Thing,
    cell_labels,
    cells_under,
    things_of,
)
from saccade.training.recipes.grounding_demos import DemoPhase, chance, drawn_window
from saccade.training.rundir import RunDir

share = st.floats(0.0, 1.0)


def smoke(cache: Path, *overrides: str) -> Resolved:
    place = f"data.train.cache={cache}", f"data.eval.cache={cache}", "training.threads=1"
    return resolve("smoke/grounding", overrides=[*place, *overrides])


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("screens")


def phase(cache: Path, name: str, *overrides: str) -> DemoPhase:
    opened: Any = open_phase(smoke(cache, f"grounding.phase={name}", *overrides).config)
    return opened


def a_batch(recipe: DemoPhase, *, count: int = 8) -> dict[str, Any]:
    source = recipe.train_source()
    return recipe.collate([source[i] for i in range(count)])


def loss_of(recipe: DemoPhase, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    return recipe.loss(batch, step=0, denominator=(batch["labels"] != -100).sum())


@pytest.mark.parametrize("name", ["places", "warm"])
def test_a_gradient_reaches_every_trained_tensor(name: str, cache: Path) -> None:
    recipe = phase(cache, name)
    loss_of(recipe, a_batch(recipe))["loss"].backward()
    silent = [n for n, p in recipe.model.named_parameters() if p.requires_grad
              and (p.grad is None or not p.grad.abs().sum())]  # fmt: skip
    assert not silent


@pytest.mark.parametrize(("name", "adapter"), [("places", "none"), ("warm", "lora")])
def test_layers_that_are_computed_again_give_the_same_gradient(
    name: str, adapter: str, cache: Path
) -> None:
    found = []
    for again in ("false", "true"):
        recipe = phase(cache, name, f"grounding.warm.adapter={adapter}", "lora.dropout=0",
                       f"training.gradient_checkpointing={again}")  # fmt: skip
        stirred(recipe)
        loss_of(recipe, a_batch(recipe))["loss"].backward()
        found.append({n: p.grad for n, p in recipe.model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for key, gradient in found[0].items():
        assert torch.allclose(gradient, found[1][key], atol=1e-6), key


def stirred(recipe: DemoPhase) -> None:
    """Give adapters something to say; they start as the identity."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for key, one in recipe.model.named_parameters():
            if "lora_B" in key:
                one.add_(torch.randn(one.shape, generator=generator) * 0.05)


def test_a_warm_start_by_adapters_trains_them_alone_and_hands_on_a_merged_base(
    cache: Path, tmp_path: Path
) -> None:
    pytest.importorskip("peft", reason="the extra `rl` is not installed")
    recipe = phase(cache, "warm", "grounding.warm.adapter=lora", f"run.root={tmp_path}")
    stirred(recipe)
    recipe.model.eval()
    batch = a_batch(recipe)
    loss_of(recipe, batch)["loss"].backward()
    learned = {n: p for n, p in recipe.model.named_parameters() if p.requires_grad}
    assert learned and all("lora_" in n and "visual" not in n for n in learned)
    assert all(p.grad is not None and bool(p.grad.any()) for p in learned.values())
    run = RunDir.of(recipe.config)
    run.path.mkdir(parents=True)
    recipe.finish(run)
    merged = phase(cache, "warm", f"model.name={run.path / 'model'}")
    merged.model.eval()
    assert not any("lora_" in n for n, _ in merged.model.named_parameters())
    with torch.no_grad():
        mine, theirs = (one.dialogue.log_probs(batch)[0] for one in (recipe, merged))
    assert torch.allclose(mine, theirs, atol=1e-4) and float(mine.abs().max()) > 1e-3


@pytest.mark.parametrize("key", ["look_loss", "cell_loss"])
def test_each_aid_can_be_switched_off(key: str, cache: Path) -> None:
    with_aid, without = phase(cache, "places"), phase(cache, "places", f"grounding.{key}=0")
    batch = a_batch(with_aid)
    on = loss_of(with_aid, batch)
    off = loss_of(without, a_batch(without))
    assert key in on and key not in off
    assert on["loss"].item() > off["loss"].item()


def test_a_frozen_tower_learns_nothing(cache: Path) -> None:
    recipe = phase(cache, "warm", "grounding.warm.vision=false")
    loss_of(recipe, a_batch(recipe))["loss"].backward()
    assert all(p.grad is None for p in recipe.base.model.visual.parameters())


@pytest.mark.parametrize("zooms", [0, 1])
def test_whether_a_demonstration_zooms_is_drawn_by_the_configured_share(
    zooms: int, cache: Path
) -> None:
    recipe = phase(cache, "warm", f"grounding.warm.zoom_share={zooms}")
    source = recipe.train_source()
    (group,) = recipe.demonstrations([source[i] for i in range(4)])
    assert [len(one.screen.views) - 1 for one in group] == [zooms] * 4
    for one in group:
        assert one.answer is not None and one.task.box is not None
        assert one.task.box.contains(*one.answer.point)


def test_the_draw_leans_to_zooming_at_hard_targets(cache: Path) -> None:
    decided = phase(cache, "warm", "grounding.warm.lean=1", "grounding.warm.hard_side=8")
    source = decided.train_source()
    samples = [source[i] for i in range(len(source))]
    (group,) = decided.demonstrations(samples)
    sides = [target_side(one.task.box, size=one.screen.views[0].size) for one in group]
    zooms = [len(one.screen.views) > 1 for one in group]
    assert zooms == [side is not None and side < 8 for side in sides]
    assert 0 < sum(zooms) < len(zooms)
    (drawn,) = phase(cache, "warm", "grounding.warm.lean=0").demonstrations(samples)
    assert [len(one.screen.views) > 1 for one in drawn] != zooms


def test_places_shows_crops_as_a_zoom_would(cache: Path) -> None:
    recipe = phase(cache, "places", "grounding.places.crop_share=1", "grounding.places.views=1")
    source = recipe.train_source()
    pages = [[source[i] for i in page] for page in source.groups()]
    groups = [group for page in pages for group in recipe.demonstrations(page)]
    assert all(len({one.task.kept for one in group}) == 1 for group in groups)
    cropped = [one for group in groups for one in group if one.task.kept is not None]
    assert cropped and len(cropped) < len(source)
    for one in cropped:
        pixels = one.screen.views[0].pixels
        assert abs(pixels - recipe.settings.zoom.pixels) < 0.2 * recipe.settings.zoom.pixels
        assert one.task.box is not None and min(one.task.box) >= 0 and max(one.task.box) <= 1


def test_a_page_comes_back_without_a_little_of_its_sides(cache: Path) -> None:
    recipe = phase(cache, "places", "grounding.places.crop_share=0", "grounding.places.views=3")
    source = recipe.train_source()
    count = len(source) // 3
    assert len(source.groups()) == 3 * len({source[i].image_key for i in range(count)})
    windows = set()
    for position in range(8):
        shown = []
        for view in range(3):
            ((one,),) = recipe.demonstrations([source[position + view * count]])
            assert one.answer is not None and one.task.box is not None
            assert one.task.box.contains(*one.answer.point)
            assert one.screen.views[0].size == recipe.dialogue.fit((800, 800))
            shown.append(one.task.kept)
        assert shown[0] is None
        windows |= {box for box in shown if box}  # none where it would have lost what is asked
    assert len(windows) >= 2 and all(0.75 <= box.width <= 1 for box in windows)


def test_what_is_asked_beside_a_question_changes_neither_its_crop_nor_its_loss(
    cache: Path,
) -> None:
    recipe = phase(cache, "places", "grounding.places.crop_share=1")
    source = recipe.train_source()
    samples = [source[i] for i in range(4)]
    assert recipe.views == 8
    samples += [source[i + len(source) // 8] for i in range(4)]
    for seen in (samples[:4], samples[4:]):
        together = {one.task.sample.id: one.task.kept
                    for group in recipe.demonstrations(seen) for one in group}  # fmt: skip
        for sample in seen:
            alone = [one for group in recipe.demonstrations([sample]) for one in group]
            assert together.get(sample.id) == alone[0].task.kept


def test_digits_are_drawn_to_cells_of_their_own_picture_that_touch_the_target(
    cache: Path,
) -> None:
    recipe = phase(cache, "warm", "grounding.warm.zoom_share=1")
    batch = a_batch(recipe, count=4)
    assert len(batch["look_row"]) == len(batch["look_from"]) == len(batch["look_at"])
    image = recipe.dialogue.markers.image
    for row, at, cells_L in zip(
        batch["look_row"], batch["look_from"], batch["look_at"], strict=True
    ):
        assert cells_L.any() and not cells_L[at:].any()
        assert bool((batch["input_ids"][row][cells_L] == image).all())
        seen = set(batch["episode_RL"][row][cells_L].tolist())
        assert seen <= {NOBODY, int(batch["episode_RL"][row, at + 1])} and len(seen) == 1


@given(left=share, top=share, width=st.floats(0.01, 0.2), height=st.floats(0.01, 0.2),
       jitter=share, key=st.text())  # fmt: skip
def test_a_drawn_window_shows_its_target_and_stays_on_the_screen(
    left: float, top: float, width: float, height: float, jitter: float, key: str
) -> None:
    box = Box(left * (1 - width), top * (1 - height), 0, 0)
    box = box._replace(right=box.left + width, bottom=box.top + height)
    window = drawn_window(box, side=0.25, jitter=jitter, key=key)
    inside, slack = box.seen_in(window), 1e-6
    assert min(inside) >= -slack and max(inside) <= 1 + slack
    assert min(window) >= -slack and max(window) <= 1 + slack
    assert window.width == pytest.approx(0.25) and window.height == pytest.approx(0.25)


def test_what_is_drawn_for_a_demonstration_is_independent_of_each_other() -> None:
    names = [f"screens-0-train-{page}-t{target}" for page in range(400) for target in range(8)]
    drawn = np.array([
        [chance("zoom", name), chance("window", 0, name), chance("window", 1, name)]
        for name in names
    ])  # fmt: skip
    assert abs(np.corrcoef(drawn.T) - np.eye(3)).max() < 0.06
    zoomed = drawn[drawn[:, 0] < 0.5, 1:]
    cells, _, _ = np.histogram2d(*zoomed.T, bins=4, range=[[0, 1], [0, 1]])
    assert cells.min() > 0.6 * cells.mean() and cells.max() < 1.4 * cells.mean()


def test_a_target_larger_than_a_crop_is_answered_at_once(cache: Path) -> None:
    recipe = phase(cache, "warm", "grounding.warm.zoom_share=1")
    sample = recipe.train_source()[0]
    large = replace(sample, facts={**sample.facts, "box": (0.1, 0.1, 0.8, 0.8)})
    ((episode,),) = recipe.demonstrations([large])
    assert len(episode.screen.views) == 1 and episode.answer is not None


def test_a_cell_is_labelled_by_the_thing_centred_in_it() -> None:
    things = [Thing(Box(0.5, 0.5, 0.75, 1.0), color=3, shape=5)]
    labels = cell_labels(things, view=WHOLE, grid=(2, 4))
    assert labels["color"] == [0, 0, 0, 0, 0, 0, 3, 0]
    assert [labels[name][6] - 1 for name in ("x", "y")] == [6, 7]
    assert labels["across"][6] == labels["down"][6] == 1 + OFFSETS // 2
    assert labels["column"][:2] == [1, 5] and labels["row"][-1] == 9
    beside = cell_labels(things, view=Box(0.0, 0.0, 0.5, 0.5), grid=(2, 4))
    assert not any(beside["color"])


def test_cells_under_a_box_are_those_it_touches() -> None:
    assert cells_under(Box(0.3, 0.1, 0.6, 0.4), grid=(2, 4)).nonzero()[:, 0].tolist() == [1, 2]
    assert cells_under(Box(1.2, 1.2, 1.3, 1.3), grid=(2, 4)).sum() == 1


def test_things_are_read_from_what_the_page_calls_them() -> None:
    tree = [{"role": "button", "name": "red star", "box": (0, 0, 0.1, 0.1)},
            {"role": "link", "name": "Settings", "box": (0, 0, 0.1, 0.1)}]  # fmt: skip
    assert [(one.color, one.shape) for one in things_of(tree)] == [(1, 4)]


def test_a_run_stands_on_the_phases_before_it(cache: Path) -> None:
    runs = [one.config for one in runs_of(smoke(cache))]
    assert [one.run.name for one in runs] == [
        "smoke-grounding-places", "smoke-grounding-warm", "smoke-grounding",
    ]  # fmt: skip
    assert [one.grounding.phase for one in runs] == ["places", "warm", "grpo"]
    assert [one.model.name for one in runs] == [
        "tiny", "runs/smoke-grounding-places/model", "runs/smoke-grounding-warm/model",
    ]  # fmt: skip
    skipped = [one.config for one in runs_of(smoke(cache, "grounding.places.steps=0"))]
    assert [one.grounding.phase for one in skipped] == ["warm", "grpo"]
    assert skipped[0].model.name == "tiny"
    other = resolve("smoke/sft")
    assert runs_of(other) == [other]


def test_a_step_of_an_earlier_phase_is_dealt_out_to_parts_and_processes(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    places, warm, _ = (one.config for one in runs_of(smoke(cache, "training.accumulation=2")))
    assert (places.training.batch_size, places.training.accumulation) == (1, 2)
    assert (warm.training.batch_size, warm.training.accumulation) == (1, 2)
    with pytest.raises(InputError, match="= 6: does not divide"):
        runs_of(smoke(cache, "training.accumulation=2", "grounding.warm.batch_size=6"))


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (("training.parallel=fsdp",), "sharded base"),
        (("grounding.selector=grid", "grounding.grpo.adapter=none"), "word embeddings"),
        (("grounding.selector=grid", "grounding.grpo.rollouts=trl"), "whole looks"),
        (("grounding.tools=[zoom,wait]", "grounding.grpo.rollouts=trl"), "zoom alone"),
        (("data.train.loading_share=0.5",), "no tool waits"),
        (("grounding.zoom.calls=0", "grounding.grpo.budget=0.4"), "no zoom to spend it on"),
        (
            ("grounding.tools=[]", "grounding.grpo.budget=null", "grounding.grpo.choice=1"),
            "no zoom to choose",
        ),
    ],
)
def test_what_the_last_phase_refuses_is_refused_before_the_first(
    words: tuple[str, ...], match: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    with pytest.raises(InputError, match=match):
        runs_of(smoke(cache, *words))


@pytest.mark.parametrize("words", [
    ("grounding.grpo.adapter=lora",),
    ("grounding.grpo.adapter=none", "grounding.grpo.rollouts=trl"),
    ("grounding.grpo.adapter=none", "grounding.warm.adapter=lora"),
])  # fmt: skip
def test_what_is_not_installed_is_missed_before_the_first_phase(
    words: tuple[str, ...], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(OutsideError, match="not installed"):
        runs_of(smoke(cache, *words))


def test_a_bonus_for_looks_needs_rows_that_say_who_needs_one(cache: Path) -> None:
    recipe = phase(cache, "places", "grounding.reward.tool=0.1")
    with pytest.raises(InputError, match="whether it needs a zoom"):
        recipe.train_source()

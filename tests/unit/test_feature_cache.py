"""The cache of visual features: exact, bounded, shared, and never believed when damaged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from saccade.config.errors import InputError, OutsideError
from saccade.config.resolve import resolve
from saccade.models.relevance.feature_cache import LOCK, FeatureCache, TensorStore
from saccade.models.relevance.model import RelevanceModel, VisualFeatures
from saccade.training.recipes.relevance import RelevanceRecipe
from tests.scored_run import base_folder
from tests.tiny_models import (
    mixed_samples,
    older_backbone,
    random_backbone,
    relevance_model,
    renderer,
)

ROOMY = 10**9


def batch() -> dict[str, Any]:
    first, second, third = mixed_samples()
    return renderer().batch([first, first, second, second, third], with_answer=True)


def cached_model(folder: Path, *, max_bytes: int = ROOMY, backbone: Any = None) -> RelevanceModel:
    model = relevance_model(backbone)
    store = TensorStore(folder, max_bytes=max_bytes)
    model.feature_cache = FeatureCache(store, base=model.base, layout=model.layout)
    return model


def counts(model: RelevanceModel) -> tuple[int, int]:
    assert model.feature_cache is not None
    return model.feature_cache.counts.hits, model.feature_cache.counts.misses


def assert_equal(one: VisualFeatures, other: VisualFeatures) -> None:
    mine, theirs = one.inputs.images, other.inputs.images
    assert mine is not None
    assert theirs is not None
    for a, b in zip(mine.pooled, theirs.pooled, strict=True):
        assert torch.equal(a, b)
    for level, level_ in zip(mine.deepstack, theirs.deepstack, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(level, level_, strict=True))
    for name, values in vars(one.textures).items():
        assert torch.equal(values, getattr(other.textures, name))


def tower_calls(model: RelevanceModel) -> list[int]:
    seen: list[int] = []
    model.base.model.visual.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(1), with_kwargs=True
    )
    return seen


def entries(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


@pytest.mark.parametrize("backbone", [random_backbone, older_backbone])
def test_features_read_back_are_those_computed_bit_for_bit(
    tmp_path: Path, backbone: Callable[[], Any]
) -> None:
    model = cached_model(tmp_path, backbone=backbone())
    first = model.encode(batch())
    assert counts(model) == (0, 8)  # tokens and textures of four distinct images
    again = cached_model(tmp_path, backbone=backbone())
    calls = tower_calls(again)
    second = again.encode(batch())
    assert counts(again) == (8, 0)
    assert calls == []
    assert_equal(first, second)
    plain = relevance_model(backbone()).encode(batch())
    assert second.inputs.images is not None
    assert plain.inputs.images is not None
    for one, other in zip(second.inputs.images.pooled, plain.inputs.images.pooled, strict=True):
        torch.testing.assert_close(one, other)


def test_an_entry_does_not_depend_on_the_other_images_of_its_batch(tmp_path: Path) -> None:
    samples = mixed_samples()
    alone, together = cached_model(tmp_path / "a"), cached_model(tmp_path / "b")
    for sample in samples:
        alone.encode(renderer().batch([sample], with_answer=True))
    together.encode(renderer().batch(samples, with_answer=True))
    one, other = entries(tmp_path / "a"), entries(tmp_path / "b")
    assert [path.name for path in one] == [path.name for path in other]
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in other]


def test_another_base_precision_or_pixel_is_another_entry(tmp_path: Path) -> None:
    model = cached_model(tmp_path)
    model.encode(batch())
    with torch.autocast("cpu", torch.bfloat16):
        half = model.encode(batch())
    assert counts(model) == (4, 12)  # textures are float32 always
    assert half.inputs.images is not None
    assert half.inputs.images.pooled[0].dtype == torch.bfloat16
    changed = batch()
    changed["pixel_values"] = changed["pixel_values"].clone()
    changed["pixel_values"][-1, 0] += 0.01  # in the last image only
    model.encode(changed)
    assert counts(model) == (10, 14)
    other = random_backbone.__wrapped__()
    with torch.no_grad():
        other.model.model.visual.blocks[0].mlp.linear_fc1.weight[0, 0] += 1
    retrained = cached_model(tmp_path, backbone=other)
    retrained.encode(batch())
    assert counts(retrained) == (0, 8)


@pytest.mark.parametrize("harm", ["flip", "cut", "empty", "swap", "text"])
def test_a_damaged_entry_is_computed_again_and_mended(tmp_path: Path, harm: str) -> None:
    sound = cached_model(tmp_path).encode(batch())
    good = {path: path.read_bytes() for path in entries(tmp_path)}
    for path, content in good.items():
        damaged = {
            "flip": content[:-9] + bytes([content[-9] ^ 1]) + content[-8:],
            "cut": content[: len(content) // 2],
            "empty": b"",
            "swap": next(other for name, other in good.items() if name != path),
            "text": b"not a tensor at all",
        }
        path.write_bytes(damaged[harm])
    model = cached_model(tmp_path)
    assert_equal(model.encode(batch()), sound)
    assert model.feature_cache is not None
    assert model.feature_cache.counts.damaged == len(good)
    assert {path: path.read_bytes() for path in entries(tmp_path)} == good


def filled(size: int) -> dict[str, Tensor]:
    return {"values": torch.arange(size, dtype=torch.uint8)}


def test_the_folder_stays_within_its_bound_and_drops_what_was_unused_longest(
    tmp_path: Path,
) -> None:
    store = TensorStore(tmp_path, max_bytes=3000)
    for number in range(12):
        store.put(f"entry-{number}", filled(200))
        path = tmp_path / f"entry-{number}.safetensors"
        if path.exists():
            os.utime(path, (number, number))
        assert store.bytes_used() <= 3000
        if number >= 3:
            assert store.get("entry-3") is not None  # used now: it stays
    assert store.counts.evicted > 0
    left = {path.stem for path in entries(tmp_path)}
    assert {"entry-3", "entry-11"} <= left
    assert "entry-0" not in left
    store.put("huge", filled(250).copy() | {"more": torch.zeros(10_000)})
    assert store.get("huge") is None


def test_a_smaller_bound_takes_effect_when_the_folder_is_opened(tmp_path: Path) -> None:
    roomy = TensorStore(tmp_path, max_bytes=ROOMY)
    for number in range(10):
        roomy.put(f"entry-{number}", filled(100))
    tight = TensorStore(tmp_path, max_bytes=1500)
    assert 0 < tight.bytes_used() <= 1500


def test_two_processes_may_fill_one_folder_at_once(tmp_path: Path) -> None:
    bound = 20_000
    children = []
    for start in (0, 40):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                store = TensorStore(tmp_path, max_bytes=bound)
                for number in range(start, start + 80):
                    store.put(f"entry-{number}", filled(number % 100 + 100))
                    found = store.get(f"entry-{number}")
                    assert found is None or torch.equal(
                        found["values"], filled(number % 100 + 100)["values"]
                    )
                    assert store.bytes_used() <= bound
                assert store.counts.damaged == 0
                code = 0
            finally:
                os._exit(code)
        children.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0, 0]
    assert entries(tmp_path)
    assert all(
        path.suffix == ".safetensors" or path.name.startswith(".") for path in tmp_path.iterdir()
    )
    for path in entries(tmp_path):
        assert TensorStore(tmp_path, max_bytes=bound).get(path.stem) is not None


def test_what_a_killed_writer_left_is_cleaned_up_later(tmp_path: Path) -> None:
    left = tmp_path / ".entry.safetensors.1.tmp"
    fresh = tmp_path / ".entry.safetensors.2.tmp"
    for path in (left, fresh):
        path.write_bytes(b"half")
    old = time.time() - 10_000
    os.utime(left, (old, old))
    (tmp_path / ".bytes").write_bytes(b"torn")
    store = TensorStore(tmp_path, max_bytes=ROOMY)
    store.put("entry", filled(10))
    assert not left.exists()
    assert fresh.exists()
    assert store.get("entry") is not None


def test_a_folder_that_cannot_be_written_is_said_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutsideError, match=r"selector\.feature_cache"):
        TensorStore(tmp_path / "file", max_bytes=ROOMY)


def test_a_disk_that_fails_later_costs_the_entry_and_not_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = TensorStore(tmp_path, max_bytes=ROOMY)
    (tmp_path / LOCK).unlink()
    (tmp_path / LOCK).mkdir()  # nothing can be locked, so nothing is written
    for number in range(3):
        store.put(f"entry-{number}", filled(10))
    assert store.counts.refused == 3
    assert caplog.text.count("cannot store features") == 1
    assert entries(tmp_path) == []


def test_entries_are_ordinary_safetensors(tmp_path: Path) -> None:
    cached_model(tmp_path).encode(batch())
    kinds = {
        path.name.split("-")[0]: set(safetensors.torch.load_file(path))
        for path in entries(tmp_path)
    }
    assert kinds["tokens"] == {"pooled", "deepstack.0", "deepstack.1"}
    assert "channels_NC" in kinds["textures"]


def test_reuse_encodes_each_image_once_and_changes_nothing(tmp_path: Path) -> None:
    once, always = relevance_model(), relevance_model(reuse_features=False)
    patches: list[int] = []
    for model in (once, always):
        hook = model.base.model.visual.patch_embed.register_forward_pre_hook(
            lambda module, args: patches.append(len(args[0]))
        )
        features = model.encode(batch())
        hook.remove()
        assert features.inputs.images is not None
    rows = batch()["image_grid_thw"].prod(-1).tolist()
    assert patches[0] == sum(rows) - rows[0] - rows[2] - rows[3]  # questions 0, 1 and 2, 3 share
    assert patches[1] == sum(rows)
    one, other = once.encode(batch()), always.encode(batch())
    assert torch.equal(one.textures.channels_NC, other.textures.channels_NC)
    for a, b in zip(one.inputs.images.pooled, other.inputs.images.pooled, strict=True):  # type: ignore[union-attr]
        torch.testing.assert_close(a, b)


def test_a_recipe_opens_the_configured_cache_and_refuses_it_for_a_sharded_base(
    tmp_path: Path,
) -> None:
    place = (f"model.name={base_folder(tmp_path / 'base')}", f"selector.feature_cache={tmp_path}/c")
    recipe = RelevanceRecipe(resolve("smoke/relevance", overrides=place).config)
    source = recipe.train_source()
    loaded = recipe.collate([source[i] for i in range(4)])
    losses = [
        recipe.loss(loaded, step=step, denominator=torch.tensor(8.0))["loss"].item()
        for step in (0, 0, 5, 5)
    ]
    assert losses[0] == losses[1]
    assert losses[2] == losses[3]
    assert recipe.model.feature_cache is not None
    assert recipe.model.feature_cache.counts.hits == 3 * recipe.model.feature_cache.counts.misses
    sharded = resolve("smoke/relevance", overrides=[*place, "training.parallel=fsdp"]).config
    with pytest.raises(InputError, match=r"training\.parallel=ddp"):
        RelevanceRecipe(sharded)


def test_the_reuse_benchmark_runs_the_same_losses_through_all_arms(tmp_path: Path) -> None:
    out = tmp_path / "reuse.json"
    base = base_folder(tmp_path / "base")
    script = Path(__file__).parents[2] / "benchmarks" / "reuse.py"
    command = [
        sys.executable, str(script), "--questions", "3", "--images", "1", "--steps", "2",
        "--imitation", "0.5", "--threads", "1", "--bound", "--out", str(out),
        f"model.name={base}", "data.train.min_cells=30", "data.train.max_cells=40",
        "data.train.min_objects=3", "data.train.max_objects=4", "selector.width=32",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "at most" in done.stdout
    rows = json.loads(out.read_text())["measured"]
    assert len(rows) == 4
    assert all(row["losses"] == pytest.approx(rows[0]["losses"], rel=1e-4) for row in rows)
    assert all(row["samples"] == {"imitation": 3, "answers": 3} for row in rows)

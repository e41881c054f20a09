"""Shards: built from any source, resumed, cached, verified, repaired, and read while built."""

from __future__ import annotations

import fcntl
import json
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from saccade.config.errors import InputError, OutsideError, Preempted
from saccade.config.shards import ShardsConfig, ShardSource
from saccade.data.grids.canvas import crop
from saccade.data.samples import DataError
from saccade.data.shards import estimate as estimating
from saccade.data.shards import manifest
from saccade.data.shards.encode import Pooling, pooling_weights, split_parts
from saccade.data.shards.manifest import builder_lock, read_manifest
from saccade.data.shards.reader import ShardReader
from saccade.data.shards.samples import FIRST_BYTE, VOCABULARY
from saccade.data.shards.sources import open_sources
from tests.toy_shards import ToyEncoder, builder, config, digests


def reader(folder: Path) -> ShardReader:
    return ShardReader(folder, patience_s=0.0, poll_s=0.01)


def tokens_to_bytes(tokens: np.ndarray) -> bytes:
    kept = np.asarray(tokens)
    return (kept[kept >= FIRST_BYTE] - FIRST_BYTE).astype(np.uint8).tobytes()


def all_sources(folder: Path) -> list[ShardSource]:
    (folder / "tale.txt").write_text("Once upon a time there was a goat who ran. " * 30)
    (folder / "code").mkdir()
    (folder / "code" / "a.py").write_text("def f(x):\n    return x + 1\n\n" * 20)
    (folder / "arc").mkdir()
    pair = {"input": [[1, 2], [3, 4]], "output": [[4, 3, 2]]}
    (folder / "arc" / "t.json").write_text(json.dumps({"train": [pair], "test": [pair]}))
    (folder / "photos" / "cat").mkdir(parents=True)
    Image.new("RGB", (40, 20), "red").save(folder / "photos" / "cat" / "a.png")
    Image.new("RGB", (20, 40), "blue").save(folder / "photos" / "cat" / "b.png")
    (folder / "photos" / "cat" / "b.txt").write_text("a blue door\n")
    return [
        ShardSource(type="scenes", limit=10),
        ShardSource(type="stories", path=folder / "tale.txt"),
        ShardSource(type="code", path=folder / "code"),
        ShardSource(type="texts", path=folder),
        ShardSource(type="grids", path=folder / "arc", augmentations=3),
        ShardSource(type="images", path=folder / "photos"),
    ]


def test_every_kind_of_source_has_targets_that_mean_something(tmp_path: Path) -> None:
    settings = config(tmp_path / "shards", sources=all_sources(tmp_path))
    made = builder(settings)
    summary = made.build()
    assert summary.complete and summary.built == len(made.mixture)
    rows = [reader(tmp_path / "shards")[i] for i in range(summary.samples)]
    shards = reader(tmp_path / "shards")
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_kind.setdefault(shards.kind(row), []).append(row)
        assert row["targets"].any() and int(row["targets"].max()) < VOCABULARY
        assert row["sketches"].shape == (12, 3) and row["children"].shape == (12, 4, 3)
        assert row["sketches"].dtype == torch.half and row["sketches"].isfinite().all()
    assert set(by_kind) == {"scenes", "stories", "code", "texts", "grids", "images"}
    tale = (tmp_path / "tale.txt").read_bytes()
    for row in by_kind["stories"]:
        shown, asked = (tokens_to_bytes(row[name].numpy()) for name in ("inputs", "targets"))
        start = int(row["id"].rpartition("@")[2])
        assert tale[start:].startswith(shown)
        assert asked in tale[start + len(shown) :]
    answer = by_kind["grids"][0]["targets"].numpy()
    assert crop(answer[:9], shape=(3, 3)).tolist() == [[4, 3, 2]]
    captions = {tokens_to_bytes(row["targets"].numpy()) for row in by_kind["images"]}
    assert captions == {b"cat", b"a blue door"}
    assert json.loads((tmp_path / "shards" / "manifest.json").read_text())["batches"] == []


def test_an_early_part_holds_every_source_in_proportion(tmp_path: Path) -> None:
    mixture = open_sources(config(tmp_path / "s", sources=all_sources(tmp_path)))
    whole = np.bincount([mixture.source_of(i) for i in range(len(mixture))], minlength=6)
    half = len(mixture) // 2
    early = np.bincount([mixture.source_of(i) for i in range(half)], minlength=6)
    assert (np.abs(early - whole / 2) <= 1).all()
    ids = [mixture[i].id for i in range(len(mixture))]
    assert len(set(ids)) == len(ids)


def test_pictures_without_a_target_are_refused_at_once(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "lonely.png")
    source = ShardSource(type="images", path=tmp_path)
    with pytest.raises(DataError, match=r"lonely\.png: nothing says what this picture shows"):
        open_sources(config(tmp_path / "s", sources=[source]))


def test_a_source_without_its_path_is_refused() -> None:
    with pytest.raises(ValidationError, match="type=code needs a path"):
        ShardSource(type="code")
    with pytest.raises(ValidationError, match="must be a square number"):
        ShardsConfig(children=3)


def test_the_fixed_pooling_is_the_stated_formula() -> None:
    weights = pooling_weights((6, 8), parts=(3, 4))
    assert weights.shape == (12, 48)
    assert torch.allclose(weights.sum(1), torch.ones(12))
    k, t = 5, 19  # capsule row 1, column 1; cell row 2, column 3
    logits = torch.empty(48, dtype=torch.float64)
    for cell in range(48):
        dy = ((1 + 0.5) / 3 - (cell // 8 + 0.5) / 6) * 3
        dx = ((1 + 0.5) / 4 - (cell % 8 + 0.5) / 8) * 4
        logits[cell] = -(dy**2 + dx**2) / (2 * 0.5**2)
    assert weights[k, t].item() == pytest.approx(logits.softmax(0)[t].item(), rel=1e-6)
    assert split_parts(12) == (3, 4) and split_parts(7) == (1, 7)


def test_children_lie_inside_their_capsule() -> None:
    pooling = Pooling((12, 16), capsules=12, children=4)
    y, x = np.mgrid[0:12, 0:16]
    places = torch.tensor(np.stack([y, x], -1).reshape(1, -1, 2) + 0.5, dtype=torch.float32)
    made = pooling(places)
    assert torch.allclose(made["sketches"][0, 5].float(), torch.tensor([6.0, 6.0]), atol=0.1)
    children = made["children"][0, 5].float()
    assert children[0, 0] < 6 < children[3, 0] and children[0, 1] < 6 < children[3, 1]
    assert (children > 4).all() and (children < 8).all()


def test_a_finished_build_is_a_pure_function_of_the_plan(tmp_path: Path) -> None:
    builder(config(tmp_path / "a")).build()
    builder(config(tmp_path / "b", cache_gb=0.0, queue_batches=1)).build()
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    assert builder(config(tmp_path / "a")).build().built == 0
    manifest = read_manifest(tmp_path / "a")
    assert manifest is not None and manifest.complete
    assert [entry.samples for entry in manifest.shards] == [20, 20, 20, 10]


def test_a_stopped_build_continues_to_the_same_bytes(tmp_path: Path) -> None:
    builder(config(tmp_path / "whole")).build()
    settings = config(tmp_path / "parts")
    for stop_after in (1, 4, 6, 0, 5):  # 18 batches in all
        left = iter([False] * stop_after + [True])
        with pytest.raises(Preempted, match="to continue: run the same command"):
            builder(settings).build(stop=lambda left=left: next(left))
    (tmp_path / "parts" / "batch_00099.safetensors").write_bytes(b"half a bat")
    (tmp_path / "parts" / ".manifest.json.tmp").write_bytes(b"{")
    builder(settings).build()
    assert digests(tmp_path / "parts") == digests(tmp_path / "whole")
    assert not list((tmp_path / "parts").glob(".*.tmp"))


def test_the_same_picture_is_encoded_once(tmp_path: Path) -> None:
    first = builder(config(tmp_path / "s"))
    first.build()
    again = builder(config(tmp_path / "s"))
    summary = again.build(rebuild=True)
    assert isinstance(again.encoder, ToyEncoder)
    assert (summary.built, summary.cache_hits, again.encoder.encoded) == (70, 70, 0)
    # a damaged entry counts as absent
    entry = next(file for file in (tmp_path / "s" / "cache").glob("*/*"))
    entry.write_bytes(entry.read_bytes()[:-1] + b"\x00\x01")
    third = builder(config(tmp_path / "s"))
    assert third.build(rebuild=True).cache_hits == 69
    bounded = builder(config(tmp_path / "t", cache_gb=1e-5))
    bounded.build()
    size = sum(file.stat().st_size for file in (tmp_path / "t" / "cache").glob("*/*"))
    assert 0 < size <= 1e-5 * 2**30


def test_another_plan_is_refused_by_what_differs(tmp_path: Path) -> None:
    builder(config(tmp_path / "s")).build()
    with pytest.raises(InputError, match=r"differs in pooling\)\n  fix: --rebuild"):
        builder(config(tmp_path / "s", capsules=9)).build()
    other = [ShardSource(type="scenes", limit=50)]
    with pytest.raises(InputError, match="differs in sources, samples"):
        builder(config(tmp_path / "s", sources=other)).build()
    assert builder(config(tmp_path / "s", capsules=9)).build(rebuild=True).complete


def test_two_builders_do_not_share_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest, "LOCK_SECONDS", 0.2)
    with (
        builder_lock(tmp_path / "s"),
        pytest.raises(
            InputError, match=r"another process \(pid \d+\) is building here, still after"
        ),
    ):
        builder(config(tmp_path / "s")).build()


def test_a_builder_outlasts_a_reader_that_looks_whether_anyone_builds(tmp_path: Path) -> None:
    with builder_lock(tmp_path / "s"):
        pass
    looking = os.open(tmp_path / "s" / manifest.LOCK, os.O_RDWR)
    fcntl.flock(looking, fcntl.LOCK_SH)
    threading.Timer(0.2, os.close, [looking]).start()
    assert builder(config(tmp_path / "s")).build().complete


def test_a_damaged_shard_is_named_and_repaired_on_request(tmp_path: Path) -> None:
    settings = config(tmp_path / "s")
    builder(settings).build()
    whole = digests(tmp_path / "s")
    file = tmp_path / "s" / "consolidated_001.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"consolidated_001\.safetensors: the shard is damaged"):
        reader(tmp_path / "s")[25]
    with pytest.raises(DataError, match=r"consolidated_001.*\n  fix: .*--repair"):
        builder(settings).build()
    assert builder(settings).build(repair=True).repaired == [file.name]
    assert digests(tmp_path / "s") == whole


def test_a_damaged_batch_is_encoded_again_on_the_way(tmp_path: Path) -> None:
    builder(config(tmp_path / "whole")).build()
    settings = config(tmp_path / "s")
    calls = iter([False] * 3 + [True])
    with pytest.raises(Preempted):
        builder(settings).build(stop=lambda: next(calls))
    (tmp_path / "s" / "batch_00001.safetensors").write_bytes(b"cut")
    builder(settings).build()
    assert digests(tmp_path / "s") == digests(tmp_path / "whole")


def test_waiting_for_nobody_ends_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there are no shards"):
        reader(tmp_path / "none")
    calls = iter([False] * 7 + [True])
    with pytest.raises(Preempted):
        builder(config(tmp_path / "s")).build(stop=lambda: next(calls))
    shards = reader(tmp_path / "s")
    assert shards[0]["id"]
    with pytest.raises(OutsideError, match=r"no builder is running \(28 of 70 samples are built\)"):
        shards[20]


def test_features_are_kept_when_asked(tmp_path: Path) -> None:
    builder(config(tmp_path / "s", keep_tokens=True, children=0)).build()
    row = reader(tmp_path / "s")[0]
    assert row["tokens"].shape == (36, 3) and "children" not in row
    weights = pooling_weights((6, 6), parts=(3, 4))
    assert torch.allclose(weights @ row["tokens"].float(), row["sketches"].float(), atol=2e-3)


def test_the_disk_estimate_is_near_and_a_full_disk_is_refused_before_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = builder(config(tmp_path / "s"))
    told = made.estimate()
    made.build()
    shards = sum(file.stat().st_size for file in (tmp_path / "s").glob("*.safetensors"))
    assert told.shards_bytes == pytest.approx(shards, rel=0.2)
    full = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(estimating.shutil, "disk_usage", lambda path: full)
    with pytest.raises(OutsideError, match=r"needs .* MB and 0 MB are free"):
        builder(config(tmp_path / "t")).build()
    before = digests(tmp_path / "s")
    large = [ShardSource(type="scenes", limit=900)]
    with pytest.raises(OutsideError, match=r"needs .* MB and 0 MB are free"):
        builder(config(tmp_path / "s", sources=large)).build(rebuild=True)
    assert digests(tmp_path / "s") == before
    assert not list((tmp_path / "t").glob("*.safetensors"))


def test_an_error_while_drawing_reaches_the_caller(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "p" / "good.png")
    (tmp_path / "p" / "bad.png").write_bytes(b"not a picture")
    for name in ("good", "bad"):
        (tmp_path / "p" / f"{name}.txt").write_text(name)
    source = ShardSource(type="images", path=tmp_path / "p")
    with pytest.raises(DataError, match=r"bad\.png"):
        builder(config(tmp_path / "s", sources=[source])).build()

"""A folder of shards: what a build may remove and refuses, how it starts over, what is held out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from saccade.config.errors import InputError, Preempted
from saccade.config.resolve import resolve
from saccade.config.shards import ShardsConfig, ShardSource
from saccade.data.shards.manifest import is_building, read_manifest
from saccade.data.shards.sources import open_sources
from saccade.pipeline import shards as pipeline
from saccade.training.rundir import is_free
from tests.toy_shards import ToyEncoder, builder, config, digests


def stopping_after(batches: int) -> Callable[[], bool]:
    left = iter([False] * batches + [True])
    return lambda: next(left)


def test_a_build_leaves_what_it_did_not_make(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    builder(config(folder)).build()
    others = [folder / "model.safetensors", folder / "batch_notes.safetensors", folder / ".x.tmp"]
    for file in others:
        file.write_text("mine")
    builder(config(folder)).build()
    builder(config(folder)).build(rebuild=True)
    assert [file.read_text() for file in others] == ["mine"] * 3


@pytest.mark.parametrize("rebuild", [False, True])
@pytest.mark.parametrize("name", ["model.safetensors", "notes.txt", "manifest.json"])
def test_a_folder_of_something_else_is_refused_untouched(
    tmp_path: Path, name: str, rebuild: bool
) -> None:
    (tmp_path / name).write_text('{"mine": 1}')
    with pytest.raises(InputError, match=rf"no folder of shards: .* {name}\n  fix: a folder of"):
        builder(config(tmp_path)).build(rebuild=rebuild)
    assert [file.name for file in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == '{"mine": 1}'


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("mine")
    with pytest.raises(InputError, match="s: this is a file"):
        builder(config(tmp_path / "s")).build()


def test_shards_without_their_manifest_are_built_anew(tmp_path: Path) -> None:
    builder(config(tmp_path)).build()
    whole = digests(tmp_path)
    (tmp_path / "manifest.json").unlink()
    assert builder(config(tmp_path)).build().built == 70
    assert digests(tmp_path) == whole


def test_a_damaged_manifest_is_replaced_by_a_rebuild_alone(tmp_path: Path) -> None:
    builder(config(tmp_path)).build()
    whole = digests(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(InputError, match=r"the manifest is damaged .*\n  fix: build .*--rebuild"):
        builder(config(tmp_path)).build()
    builder(config(tmp_path)).build(rebuild=True)
    assert digests(tmp_path) == whole


def test_an_interrupted_rebuild_is_continued_by_the_same_command(tmp_path: Path) -> None:
    builder(config(tmp_path)).build()
    whole = digests(tmp_path)
    built = []
    for _ in range(3):
        with pytest.raises(Preempted):
            builder(config(tmp_path)).build(rebuild=True, stop=stopping_after(5))
        found = read_manifest(tmp_path)
        assert found is not None
        built.append(found.built)
    assert built == [20, 40, 60]
    assert builder(config(tmp_path)).build(rebuild=True).built == 10
    assert digests(tmp_path) == whole
    assert builder(config(tmp_path)).build(rebuild=True).built == 70


def test_a_rebuild_of_another_plan_starts_over(tmp_path: Path) -> None:
    with pytest.raises(Preempted):
        builder(config(tmp_path)).build(rebuild=True, stop=stopping_after(5))
    summary = builder(config(tmp_path, capsules=9)).build(rebuild=True)
    assert summary.built == 70
    found = read_manifest(tmp_path)
    assert found is not None and not found.rebuilding


def test_ready_is_said_when_nothing_of_another_build_is_left(tmp_path: Path) -> None:
    builder(config(tmp_path)).build()
    seen: list[int] = []

    def ready() -> None:
        found = read_manifest(tmp_path)
        assert found is not None
        seen.append(len(found.shards))

    builder(config(tmp_path, capsules=9)).build(rebuild=True, ready=ready)
    builder(config(tmp_path, capsules=9)).build(ready=ready)
    assert seen == [0, 4]
    with pytest.raises(InputError, match="another plan"):
        builder(config(tmp_path)).build(ready=ready)
    assert len(seen) == 2


def test_marks_that_are_damaged_are_written_anew(tmp_path: Path) -> None:
    builder(config(tmp_path)).build()
    whole = digests(tmp_path)
    (tmp_path / "held_out.bin").write_bytes(b"")
    builder(config(tmp_path)).build()
    assert digests(tmp_path) == whole


def test_a_builder_that_loads_its_encoder_is_seen_as_one_that_builds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, seen = tmp_path / "s", []

    def slow_to_open(settings: object) -> object:
        seen.append(is_building(folder))
        return builder(config(folder))

    monkeypatch.setattr(pipeline, "open_builder", slow_to_open)
    resolved = resolve(overrides=[f"shards.path={folder}", "training.threads=1"])
    summary = pipeline.build_shards(
        resolved.config, rebuild=False, repair=False, progress=lambda what, done, total: None
    )
    assert seen == [True] and summary.complete and not is_building(folder)


def test_a_repair_can_be_stopped(tmp_path: Path) -> None:
    builder(config(tmp_path)).build()
    whole = digests(tmp_path)
    (tmp_path / "consolidated_001.safetensors").write_bytes(b"cut")
    with pytest.raises(Preempted, match="to continue: run the same command"):
        builder(config(tmp_path)).build(repair=True, stop=stopping_after(2))
    told: list[str] = []
    builder(config(tmp_path)).build(
        repair=True, progress=lambda what, done, total: told.append(f"{what} {done}/{total}")
    )
    assert told[0] == "repairing consolidated_001.safetensors 0/5"
    assert digests(tmp_path) == whole


def test_the_first_shard_of_a_default_build_is_done_before_a_tenth_of_it() -> None:
    settings = ShardsConfig()
    first = settings.batch_size * settings.batches_per_shard
    assert settings.batches_per_shard == 100
    assert first < 0.07 * len(open_sources(settings))


def test_sizes_of_cache_and_queue_may_change_when_a_run_continues() -> None:
    assert is_free("shards.cache_gb") and is_free("shards.queue_batches")
    assert not is_free("shards.batch_size") and not is_free("shards.path")


def test_held_out_are_whole_contents_and_about_a_tenth(tmp_path: Path) -> None:
    (tmp_path / "tales.txt").write_text("<|endoftext|>".join(
        f"Tale {n}. " + f"Once there was a goat called {n} who ran. " * 30 for n in range(60)
    ))  # fmt: skip
    (tmp_path / "arc").mkdir()
    for n in range(40):
        pair = {"input": [[n % 10, n // 10], [3, 4]], "output": [[4, 3, 2]]}
        task = json.dumps({"train": [pair], "test": [pair]})
        (tmp_path / "arc" / f"t{n}.json").write_text(task)
    sources = [
        ShardSource(type="stories", path=tmp_path / "tales.txt"),
        ShardSource(type="grids", path=tmp_path / "arc", augmentations=3),
    ]
    made = builder(config(tmp_path / "s", sources=sources))
    sides: dict[str, set[bool]] = {}
    for position in range(len(made.mixture)):
        # the document starts at the first page's byte, which all its pages share the text of
        kind, _, rest = made.mixture[position].id.partition(":")
        task = rest.split("|||")[0].split("#")[0] if kind == "grids" else _tale(rest, tmp_path)
        sides.setdefault(f"{kind} {task}", set()).add(bool(made.held_out[position]))
    assert all(len(found) == 1 for found in sides.values())
    out = [name for name, found in sides.items() if found == {True}]
    assert 3 <= len(out) <= 20 and {name.split()[0] for name in out} == {"stories", "grids"}
    again = builder(config(tmp_path / "t", sources=sources))
    assert (again.held_out == made.held_out).all()


def _tale(rest: str, folder: Path) -> str:
    text = (folder / "tales.txt").read_bytes()[: int(rest.rpartition("@")[2]) + 1]
    return str(text.count(b"<|endoftext|>"))


def test_one_content_in_two_sources_is_on_one_side(tmp_path: Path) -> None:
    sources = [ShardSource(type="scenes", limit=50), ShardSource(type="scenes", limit=30)]
    made = builder(config(tmp_path / "s", sources=sources))
    names = [made.mixture[position].id for position in range(80)]
    sides = {name: {bool(h) for n, h in zip(names, made.held_out, strict=True) if n == name}
             for name in names}  # fmt: skip
    assert len(sides) == 50 and all(len(found) == 1 for found in sides.values())
    assert isinstance(made.encoder, ToyEncoder)

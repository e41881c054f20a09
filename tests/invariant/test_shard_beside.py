"""A training beside a builder: it starts on nothing old, and hears why the builder failed.

Real processes and real signals; the training is a function that notes what it finds. The builder
is the command's own, with the tiny tower, on pictures as small as scenes allow.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from saccade.config.errors import InputError, OutsideError, SaccadeError
from saccade.config.resolve import Resolved, resolve
from saccade.data.shards.manifest import OUTPUT_LOG, builder_lock, is_building, read_manifest
from saccade.data.shards.reader import ShardReader
from saccade.pipeline.shards import GRACE_SECONDS, build_beside, build_shards

SMALL = (
    "shards.side=96", "shards.batch_size=4", "shards.batches_per_shard=4", "model.device=cpu",
    "training.threads=1",
)  # fmt: skip


def small(folder: Path, *, scenes: int = 48, seed: int = 0, more: tuple[str, ...] = ()) -> Resolved:
    sources = f"shards.sources=[{{type: scenes, limit: {scenes}, seed: {seed}}}]"
    return resolve(overrides=[*SMALL, f"shards.path={folder}", sources, *more])


def quietly(what: str, done: int, total: int) -> None:
    """Show no progress."""


def beside(resolved: Resolved, train: Callable[[], dict[str, Any]], **how: bool) -> dict[str, Any]:
    plain = {"incremental": True, "rebuild": False, "repair": False}
    return build_beside(resolved, train=train, progress=quietly, **(plain | how))


def fails(resolved: Resolved, error: type[SaccadeError], **how: bool) -> str:
    """The message of a builder that fails before the training starts."""

    def never() -> dict[str, Any]:
        raise AssertionError("the training started")

    with pytest.raises(error) as caught:
        beside(resolved, never, **how)
    assert type(caught.value) is error
    return str(caught.value)


def start_child(resolved: Resolved, **how: bool) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-m", "saccade.pipeline.shards"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    job = {"config": resolved.config.model_dump(mode="json"), "rebuild": False, "repair": False}
    assert child.stdin is not None
    child.stdin.write(json.dumps(job | how) + "\n")
    child.stdin.flush()
    return child


def wait_for(condition: Callable[[], bool], *, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


@pytest.mark.slow
def test_a_training_beside_a_rebuild_starts_on_the_new_shards(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    build_shards(small(folder).config, rebuild=False, repair=False, progress=quietly)
    old = {ShardReader(folder)[i]["id"] for i in range(48)}
    seen: list[str] = []

    def train() -> dict[str, Any]:
        reader = ShardReader(folder)
        seen.extend(reader[i]["id"] for i in range(len(reader)))
        return {}

    beside(small(folder, seed=1), train, rebuild=True)
    assert len(seen) == 48 and not old & set(seen)


@pytest.mark.slow
def test_no_training_starts_on_shards_of_another_plan_or_on_damaged_ones(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    build_shards(small(folder).config, rebuild=False, repair=False, progress=quietly)
    other = small(folder, seed=1)
    assert fails(other, InputError).startswith(f"{folder}: holds shards of another plan (differs")
    file = folder / "consolidated_001.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    message = fails(small(folder), InputError)
    assert message.startswith(f"{file}: the shard is damaged") and "\n  fix: build it" in message
    seen: list[bool] = []

    def train() -> dict[str, Any]:
        seen.append(file.read_bytes() == whole)
        return {}

    beside(small(folder), train, repair=True)
    assert seen == [True]


@pytest.mark.slow
def test_a_builder_that_refuses_is_quoted_in_full_with_its_exit_code(tmp_path: Path) -> None:
    message = fails(small(tmp_path / "s", more=("shards.side=100",)), InputError)
    assert message == (
        "shards.side=100: tiny sees cells of 16 pixels\n  fix: a multiple of it, such as"
        " shards.side=96"
    )


@pytest.mark.slow
def test_a_builder_that_is_killed_is_told_as_killed(tmp_path: Path) -> None:
    folder = tmp_path / "s"

    def train() -> dict[str, Any]:
        os.kill(int((folder / ".building").read_text()), signal.SIGKILL)
        time.sleep(1)
        raise OutsideError("waited in vain")

    with pytest.raises(OutsideError, match=r"builder was killed \(SIGKILL\)\n  fix: run the same"):
        beside(small(folder, scenes=4000), train)


def test_a_training_beside_a_folder_of_something_else_touches_nothing(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("mine")
    assert "no folder of shards" in fails(small(tmp_path), InputError)
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
    assert not (tmp_path / OUTPUT_LOG).exists()


@pytest.mark.slow
def test_a_builder_without_its_parent_lets_go_in_the_middle_of_a_long_batch(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    long = small(folder, scenes=4000, more=("shards.batch_size=4000",))
    child = start_child(long)
    assert child.stdin is not None
    wait_for(lambda: read_manifest(folder) is not None)
    assert is_building(folder)
    time.sleep(1)
    child.stdin.close()
    closed = time.monotonic()
    with builder_lock(folder):  # what a restart waits for
        assert time.monotonic() - closed < GRACE_SECONDS + 5
    assert child.wait() == 143


@pytest.mark.slow
def test_a_builder_says_ready_after_the_old_shards_are_gone(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    build_shards(small(folder).config, rebuild=False, repair=False, progress=quietly)
    child = start_child(small(folder, scenes=400, seed=1), rebuild=True)
    assert child.stdout is not None and child.stdin is not None
    assert json.loads(child.stdout.readline()) == {"ready": True}
    found = read_manifest(folder)
    assert found is not None and found.samples == 400 and found.built < 200
    child.stdin.close()
    closed = time.monotonic()
    said = json.loads(child.stdout.readline())
    assert child.wait() == 143 and "to continue: run the same command" in said["error"]
    assert time.monotonic() - closed < GRACE_SECONDS

"""`saccade data build shards`: builds, estimates, continues, repairs, trains beside, refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from saccade.config.resolve import resolve
from saccade.data.shards.manifest import read_manifest
from saccade.data.shards.reader import ShardReader
from saccade.pipeline.shards import build_beside
from tests.terminal.saccade_cli import refused, saccade

SMALL = (
    "shards.sources=[{type: scenes, limit: 40}]", "shards.side=96", "shards.batch_size=4",
    "shards.batches_per_shard=4", "model.device=cpu", "training.threads=1",
)  # fmt: skip
BUILD = ("data", "build", "shards")


def test_a_build_is_estimated_made_and_not_made_again(tmp_path: Path) -> None:
    told = saccade(*BUILD, *SMALL, "--estimate", "--json", folder=tmp_path)
    assert told.code == 0, told.err
    estimate = json.loads(told.out)
    assert estimate["samples"] == 40 and not (tmp_path / "shards").exists()
    made = saccade(*BUILD, *SMALL, "--json", folder=tmp_path)
    assert made.code == 0, made.err
    assert "40 samples of" in made.err and "encoding" in made.err
    result = json.loads(made.out)
    assert (result["built"], result["complete"]) == (40, True)
    size = sum(file.stat().st_size for file in (tmp_path / "shards").glob("*.safetensors"))
    assert estimate["shards_bytes"] == pytest.approx(size, rel=0.2)
    again = saccade(*BUILD, *SMALL, "--json", folder=tmp_path)
    assert json.loads(again.out)["built"] == 0
    damaged = tmp_path / "shards" / "consolidated_001.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    message = refused(saccade(*BUILD, *SMALL, folder=tmp_path), code=2)
    assert "consolidated_001.safetensors" in message and "--repair" in message
    mended = saccade(*BUILD, *SMALL, "--repair", "--json", folder=tmp_path)
    assert json.loads(mended.out)["repaired"] == ["consolidated_001.safetensors"]


def test_mistakes_are_named(tmp_path: Path) -> None:
    message = refused(
        saccade(*BUILD, "shards.sources=[{type: code}]", folder=tmp_path), code=2
    )  # fmt: skip
    assert "type=code needs a path" in message
    message = refused(
        saccade(*BUILD, "shards.sources=[{type: stories, path: none.txt}]", folder=tmp_path), code=2
    )
    assert "none.txt: no such file or folder" in message
    message = refused(saccade(*BUILD, "recursion", folder=tmp_path), code=2)
    assert "data.train.type=sudoku: this recipe trains on no shards" in message
    elsewhere = (*BUILD, "recursion", "arch=multimodal", "shards.path=here")
    message = refused(saccade(*elsewhere, folder=tmp_path), code=2)
    assert "data.train.path=shards: the shards are built in here" in message
    assert not (tmp_path / "here").exists()


@pytest.mark.slow
def test_sigterm_stops_after_a_batch_with_143_and_the_same_command_continues(
    tmp_path: Path,
) -> None:
    source = Path(__file__).parents[2] / "src"
    env = os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    many = [word.replace("40", "400") for word in SMALL]
    child = subprocess.Popen(
        [sys.executable, "-m", "saccade.cli", *BUILD, *many], cwd=tmp_path, env=env,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        found = read_manifest(tmp_path / "shards")
        if found is not None and found.built:
            break
        time.sleep(0.02)
    child.send_signal(signal.SIGTERM)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 143, errors
    assert "to continue: run the same command" in errors and "Traceback" not in errors
    done = saccade(*BUILD, *many, "--json", folder=tmp_path)
    assert json.loads(done.out)["complete"]


def training(folder: Path, *, seen: list[Any]) -> dict[str, Any]:
    reader = ShardReader(folder)
    seen.append(reader.manifest.built)
    seen.append(len([reader[i]["id"] for i in range(len(reader))]))
    return {"read": seen[-1]}


@pytest.mark.slow
@pytest.mark.parametrize("incremental", [True, False])
def test_a_training_follows_the_builder(tmp_path: Path, incremental: bool) -> None:
    sources = [{"type": "scenes", "limit": 160}]
    overrides = [*SMALL[1:], f"shards.path={tmp_path / 's'}", f"shards.sources={sources}"]
    resolved = resolve(overrides=[word.replace("'", "") for word in overrides])
    seen: list[Any] = []
    metrics = build_beside(
        resolved, train=lambda: training(tmp_path / "s", seen=seen), incremental=incremental,
        rebuild=False, repair=False, progress=lambda what, done, total: None,
    )  # fmt: skip
    assert metrics == {"read": 160}
    assert seen[0] == 160 if not incremental else seen[0] < 160
    found = read_manifest(tmp_path / "s")
    assert found is not None and found.complete

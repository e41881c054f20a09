"""The smoke twins of the shipped pipelines, run as a user runs them: minutes, so marked slow.

`vlm-smoke` must end with a Space that answers, in a browser where one is there.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("peft", reason="the extra `rl` is not installed")
ROOT = Path(__file__).parents[2]


def run(folder: Path, *words: str) -> tuple[list[dict[str, Any]], str]:
    """`saccade pipeline run WORDS --json`, which must succeed; its rows and messages."""
    done = subprocess.run(
        [sys.executable, "-m", "saccade.cli", "pipeline", "run", *words, "--json"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout), done.stderr


@pytest.mark.slow
def test_every_stage_of_vlm_moves_its_metric_and_the_space_answers(tmp_path: Path) -> None:
    rows, _ = run(tmp_path, "vlm-smoke")
    found = {row["stage"]: row["metrics"] for row in rows}
    assert list(found) == ["pretrain", "sft", "dpo", "evaluate", "deploy"]
    assert all(row["ran"] and row["state"] == "finished" for row in rows)
    assert found["pretrain"]["recall_over_chance"] >= 5
    assert found["sft"]["accuracy"] > found["sft"]["accuracy_before"] + 0.2
    assert found["dpo"]["preference_margin"] > 0
    assert found["dpo"]["preference_accuracy"] > 0.5
    assert found["dpo"]["accuracy_gain"] >= -0.02
    assert found["evaluate"]["accuracy"] > found["evaluate"]["majority"] + 0.2
    assert found["deploy"]["answers_changed"] == 0
    again, messages = run(tmp_path, "vlm-smoke")
    assert not any(row["ran"] for row in again)
    assert messages.count("finished before") == 5
    space = tmp_path / rows[4]["folder"] / "space"
    assert (space / "app.py").is_file() and (space / "model" / "model.safetensors").is_file()
    ask_in_a_browser(space, tmp_path)


def ask_in_a_browser(space: Path, folder: Path) -> None:
    """Start the Space away from the checkout; most of a few plain questions are answered right."""
    from tests.browser import test_space as browser

    if browser.MISSING:
        return  # the tests of the Space say what is missing
    from saccade.config.resolve import resolve
    from saccade.data.images import load_image
    from saccade.data.sources import open_source

    source = open_source(resolve("sft", overrides=["data=scenes-few-small"]).config.data.eval)
    away = shutil.copytree(space, folder / "elsewhere" / "space")
    right = 0
    with browser.served(away) as address, browser.opened(address) as page:
        for place in (0, 4, 8):
            sample = source[place]
            picture = folder / f"{place}.png"
            load_image(sample.images[0], where="scene").save(picture)
            page.goto(address)
            right += browser.ask(page, picture, sample.question) == sample.answer
    assert right >= 2


@pytest.mark.slow
def test_production_ablates_nine_parts_in_parallel_and_deploys(tmp_path: Path) -> None:
    rows, _ = run(tmp_path, "arr-coc-production-smoke")
    assert len(rows) == 13
    assert all(row["ran"] and row["state"] == "finished" for row in rows)
    metrics = {row["stage"]: row["metrics"] for row in rows}
    assert metrics["data"]["broken"] == 0
    assert sum("accuracy" in one for one in metrics.values()) == 11  # ten trainings, one evaluation
    space = next(row["folder"] for row in rows if row["stage"] == "deploy")
    assert (tmp_path / space / "space" / "app.py").is_file()
    again, _ = run(tmp_path, "arr-coc-production-smoke")
    assert not any(row["ran"] for row in again)

"""`saccade data build grounding`: builds, knows its own work, refuses; its rows can be shown."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from tests.screen_files import folder, v1_row
from tests.terminal.saccade_cli import refused, saccade

BUILD = ("data", "build", "grounding")
DRAWN = ("data.train.renderer=drawn", "data.train.screens=6", "data.train.cache=cache")


def test_generated_pages_and_folders_are_built_checked_and_shown(tmp_path: Path) -> None:
    names = [f"{number}.png" for number in range(12)]
    folder(tmp_path / "mine", [v1_row(name) for name in names], pictures=names)
    words = (*BUILD, "--max-samples", "20", "--from", "mine", "--out", "out", "--json", *DRAWN)
    made = saccade(*words, folder=tmp_path)
    assert made.code == 0, made.err
    result = json.loads(made.out)
    assert sum(result["rows"].values()) == 20 and result["built"] is True
    assert result["sources"] == ["screens", "screenspot mine"]
    again = saccade(*words, folder=tmp_path)
    assert json.loads(again.out)["built"] is False and "nothing changed" in again.err
    message = refused(saccade(*words, "--shares", "1/1/1", folder=tmp_path), code=2)
    assert "out: holds rows that were built otherwise; different: sources, shares" in message
    source = ("data.train.type=grounding", "data.train.path=out")
    checked = saccade("data", "check", *source, "--split", "train", "--json", folder=tmp_path)
    assert checked.code == 0, checked.err
    statistics = json.loads(checked.out)["train"]["statistics"]
    assert 0 < statistics["random_click"]["accuracy"] < 0.1
    shown = saccade("data", "show", *source, "--limit", "4", "--out", "sheet.png", folder=tmp_path)
    assert shown.code == 0, shown.err
    assert "point" in shown.out and "icon" in shown.out
    colors = Image.open(tmp_path / "sheet.png").convert("RGB").getcolors(1 << 20)
    assert colors is not None and (230, 0, 90) in {color for _, color in colors}


def test_benchmarks_and_mistakes_are_named(tmp_path: Path) -> None:
    folder(tmp_path / "b", [v1_row()], file="screenspot_web.json")
    base = (*BUILD, "--out", "out", *DRAWN)
    message = refused(saccade(*base, "--from", "b", folder=tmp_path), code=2)
    assert "ScreenSpot, a public benchmark" in message and "--allow-benchmark" in message
    message = refused(saccade(*base, "--from", "none", folder=tmp_path), code=2)
    assert "none: no such file or folder" in message
    message = refused(saccade(*base, "--shares", "3/4", folder=tmp_path), code=2)
    assert "--shares 3/4" in message
    folder(tmp_path / "c", [v1_row(bbox=[150, 60, 190, 90])])
    message = refused(saccade(*base, "--from", "c", folder=tmp_path), code=2)
    assert "screenspot.json, row 1" in message and "fix: boxes=xyxy" in message
    message = refused(saccade(*base, "--boxes", "xyxy", folder=tmp_path), code=2)
    assert "--boxes belongs to --from" in message
    message = refused(saccade(*BUILD, "relevance", folder=tmp_path), code=2)
    assert "data.train.type=scenes: its rows name no place" in message
    assert not (tmp_path / "out").exists()


def test_both_verbs_of_the_group_are_there(tmp_path: Path) -> None:
    told = saccade("data", "build", "--help", folder=tmp_path)
    assert told.code == 0 and "grounding" in told.out and "shards" in told.out

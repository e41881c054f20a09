"""Captions with several references and probing questions, scored through the real command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from saccade_cli import refused, saccade

from saccade.config.schema import ScenesSource
from saccade.data.generate.scenes import draw_scene, make_scene
from saccade.scoring.captions import caption_scores
from tests.scored_run import make_run

DRAWN = {"min_cells": 20, "max_cells": 36, "min_objects": 2, "max_objects": 3, "kinds": ["color"]}


def caption_data(folder: Path) -> list[dict[str, Any]]:
    """Four generated pictures, each with three captions made from what is drawn."""
    rows = []
    for index in range(4):
        scene = make_scene(ScenesSource.model_validate(DRAWN), index=index)
        draw_scene(scene).save(folder / f"{index}.png")
        things = [f"a {thing.color} {thing.shape}" for thing in scene.shapes]
        captions = [" and ".join(things), f"there is {things[0]}", f"{things[-1]}, among others"]
        shapes = [thing.shape for thing in scene.shapes]
        rows.append({"image": f"{index}.png", "captions": captions, "things": shapes})
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def test_a_caption_set_with_several_references_is_scored_from_a_jsonl(tmp_path: Path) -> None:
    make_run(tmp_path)
    rows = caption_data(tmp_path)
    data = [
        "data.eval.type=jsonl", "data.eval.path=captions.jsonl", "data.eval.ask=describe it",
        "data.eval.columns={answer: captions, objects: things}", "eval.vocabulary=scenes",
    ]  # fmt: skip
    outcome = saccade("eval", "runs/toy", *data, "eval.metric=cider", "--json", folder=tmp_path)
    assert outcome.code == 0, outcome.err
    result = json.loads(outcome.out)
    assert (result["samples"], result["metrics"]) == (4, ["cider"])
    file = tmp_path / "runs/toy/predictions.jsonl"
    stored = [json.loads(line) for line in file.read_text().splitlines()]
    assert [one["people"] for one in stored] == [row["captions"] for row in rows]
    expect_scores(result, stored)

    # a model that had said each picture's second caption and once named what is not there
    for one, row in zip(stored, rows, strict=True):
        one["prediction"] = row["captions"][1]
    absent = ({"star", "moon", "heart", "cross"} - set(rows[0]["things"])).pop()
    stored[0]["prediction"] += f" and a {absent}"
    file.write_text("".join(json.dumps(one) + "\n" for one in stored))
    again = ["eval", "runs/toy", "--rejudge", "eval.vocabulary=scenes"]
    outcome = saccade(*again, "eval.metric=bleu4", "--json", folder=tmp_path)
    better = json.loads(outcome.out)
    expect_scores(better, stored)
    assert better["scores"]["cider"] > 1.0
    assert better["scores"]["chair_s"] == 1 / 4
    assert better["scores"]["chair_i"] == 1 / 5
    table = saccade(*again, "eval.metric=cider", folder=tmp_path).out
    assert "CIDEr-D of the set" in table
    assert "captions with such a mention" in table


def expect_scores(result: dict[str, Any], stored: list[dict[str, Any]]) -> None:
    """The file's scores are those of the library on the stored answers."""
    found = caption_scores(
        [one["prediction"] for one in stored], references=[one["people"] for one in stored]
    )
    for name, scores in found.items():
        assert result["scores"][name] == pytest.approx(scores.corpus, abs=1e-12)
    mean = sum(found[result["metrics"][0]].samples) / len(stored)
    assert result["accuracy"] == pytest.approx(mean, abs=1e-12)


def test_probing_reports_its_rates_and_a_bad_vocabulary_is_refused(tmp_path: Path) -> None:
    make_run(tmp_path)
    settings = ["data.eval.type=probing", "data.eval.scenes=2", "data.eval.questions=4",
                "data.eval.min_cells=30", "data.eval.max_cells=40", "data.eval.min_objects=3",
                "data.eval.max_objects=4", "data.eval.kinds=[color]"]  # fmt: skip
    outcome = saccade("eval", "runs/toy", *settings, "--json", folder=tmp_path)
    assert outcome.code == 0, outcome.err
    scores = json.loads(outcome.out)["scores"]
    assert list(scores) == [
        f"yes_no_{name}"
        for name in ("accuracy", "precision", "recall", "f1", "yes_rate", "unclear_rate")
    ]
    assert scores["yes_no_accuracy"] + scores["yes_no_unclear_rate"] <= 1.0
    outcome = saccade(
        "eval", "runs/toy", "--rejudge", "eval.metric=cider", "eval.vocabulary=birds.json",
        folder=tmp_path,
    )  # fmt: skip
    assert "eval.vocabulary: birds.json: no such file" in refused(outcome, code=2)

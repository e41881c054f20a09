"""Public data sets load by configuration alone.

They are found through SACCADE_SHARED_DATA, else beside the repository in `shared/data`; without
them the tests are skipped.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from saccade.config.errors import InputError
from saccade.config.resolve import resolve
from saccade.config.schema import FolderSource, JsonlSource
from saccade.data.check import check_source
from saccade.data.images import load_image
from saccade.data.samples import DataError
from saccade.data.sources import infer_source, open_source
from saccade.scoring.answers import majority_baseline

REPOSITORY = Path(__file__).resolve().parents[2]
BESIDE = REPOSITORY.parent / "shared" / "data"
# read at import: a fixture of conftest.py hides the variables of this name from each test
SHARED = Path(os.environ.get("SACCADE_SHARED_DATA", BESIDE))
EASY_VQA: dict[str, Any] = {
    "type": "folder",
    "index": "questions.json",
    "image_format": "images/{}.png",
    "columns": {"question": 0, "answer": 1, "image": 2},
}
SPLITS = {"train": "train", "eval": "test"}


@pytest.fixture
def vqa() -> Path:
    folder = SHARED / "vqa"
    if not folder.is_dir():
        pytest.skip(f"no public data sets in {folder}; set SACCADE_SHARED_DATA to their folder")
    return folder


def test_easy_vqa_loads_from_list_rows(vqa: Path) -> None:
    source = open_source(FolderSource(path=vqa / "easy-vqa" / "train", **EASY_VQA))
    rows = json.loads((vqa / "easy-vqa" / "train" / "questions.json").read_text())
    assert len(source) == len(rows) == 15_383
    assert len(source.groups()) == 1600
    question, answer, image = rows[5000]
    sample = source[5000]
    assert (sample.question, sample.answers) == (question, (answer,))
    assert sample.images[0] == vqa / "easy-vqa" / "train" / "images" / f"{image}.png"
    assert load_image(sample.images[0], where=sample.id).size == (64, 64)


def test_the_whole_easy_vqa_test_split_is_sound(vqa: Path) -> None:
    report = check_source(
        FolderSource(path=vqa / "easy-vqa" / "test", **EASY_VQA), cell_pixels=16, min_pixels=4096
    )
    assert report.ok
    assert report.rows == 1470
    assert report.statistics["distinct_images"] == 150
    assert report.statistics["distinct_answers"] == 13
    assert report.statistics["visual_tokens_per_image"]["p50"] == 16


def test_the_majority_baseline_of_easy_vqa_is_below_a_question_prior(vqa: Path) -> None:
    train, test = (
        open_source(FolderSource(path=vqa / "easy-vqa" / split, **EASY_VQA))
        for split in ("train", "test")
    )
    blind = majority_baseline(
        (train[i] for i in range(len(train))), evaluation=(test[i] for i in range(len(test)))
    )
    assert 0.2 < blind["question"] < 0.68


def test_every_puzzlevqa_file_is_sound_without_any_option(vqa: Path) -> None:
    for path in sorted((vqa / "puzzlevqa").glob("*.jsonl"))[:4]:
        report = check_source(infer_source(path), limit=8)
        assert report.ok, path


def test_shapeworld_rows_with_five_captions_say_what_is_wrong(vqa: Path) -> None:
    path = vqa / "shapeworld" / "logical-full.jsonl"
    with pytest.raises(InputError, match="'image', 'captions', 'agreement'"):
        open_source(JsonlSource(type="jsonl", path=path))
    source = open_source(
        JsonlSource(
            type="jsonl", path=path, columns={"question": "captions", "answer": "agreement"}
        )
    )
    with pytest.raises(DataError, match=r"line 1 .*the question is a list, text is needed"):
        source[0]


def test_nlvr_maps_its_own_column_names(vqa: Path) -> None:
    columns: Any = {"id": "identifier", "question": "sentence", "answer": "label"}
    source = open_source(
        JsonlSource(type="jsonl", path=vqa / "nlvr" / "dev.jsonl", columns=columns)
    )
    assert source[0].id == "2379-2"
    assert {source[i].answer for i in range(len(source))} == {"true", "false"}


def test_the_example_file_and_key_value_pairs_name_the_same_sources() -> None:
    example = resolve(str(REPOSITORY / "examples" / "easy-vqa.yaml")).config.data
    pairs = [
        f"data.{part}.{pair}"
        for part, split in SPLITS.items()
        for pair in (
            "type=folder",
            f"path=data/easy-vqa/{split}",
            "index=questions.json",
            "image_format='images/{}.png'",
            "columns={question:0,answer:1,image:2}",
        )
    ]
    assert resolve(None, overrides=pairs).config.data == example


def test_the_example_opens_on_the_real_data(vqa: Path) -> None:
    paths = [f"data.{part}.path={vqa}/easy-vqa/{s}" for part, s in SPLITS.items()]
    config = resolve(str(REPOSITORY / "examples" / "easy-vqa.yaml"), overrides=paths).config
    assert len(open_source(config.data.train)) == 15_383
    assert len(open_source(config.data.eval)) == 1470

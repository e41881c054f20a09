"""Public benchmarks open as they are distributed, by configuration alone.

The layouts are written here file by file as their publishers name them; where real files are at
hand (SACCADE_SHARED_DATA, else `shared/data` beside the repository) they are opened too.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from saccade.config.errors import InputError
from saccade.config.resolve import resolve
from saccade.config.schema import LayoutSource
from saccade.data.chat import ChatRenderer
from saccade.data.check import check_source
from saccade.data.layouts import LAYOUTS
from saccade.data.samples import DataError, Sample
from saccade.data.sources import open_source
from saccade.scoring.answers import score_answer

REPOSITORY = Path(__file__).resolve().parents[2]
BESIDE = REPOSITORY.parent / "shared" / "data"
# read at import: a fixture of conftest.py hides the variables of this name from each test
SHARED = Path(os.environ.get("SACCADE_SHARED_DATA", BESIDE))
TEN = [{"answer": a, "answer_confidence": "yes", "answer_id": n} for n, a in
       enumerate(["net"] * 6 + ["netting", "mesh", "pitcher", ""], start=1)]  # fmt: skip


@pytest.fixture
def vqa() -> Path:
    folder = SHARED / "vqa"
    if not folder.is_dir():
        pytest.skip(f"no public data sets in {folder}; set SACCADE_SHARED_DATA to their folder")
    return folder


def layout(name: str, path: Path, **settings: Any) -> LayoutSource:
    return LayoutSource.model_validate({"type": "layout", "layout": name, "path": path, **settings})


def write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def draw(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (32, 32), "red").save(path)


def worth(sample: Sample, said: str) -> float:
    return score_answer(
        said,
        sample.answers,
        kind=sample.kind,
        metric=sample.facts["metric"],
        people=sample.facts["human_answers"],
    )


def vqav2(folder: Path, *, names: tuple[str, str] | None = None) -> Path:
    asked, answered = names or (
        "v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json",
    )  # fmt: skip
    questions = [
        {"image_id": 42, "question": "Through what?", "question_id": 42000},
        {"image_id": 42, "question": "Is it day?", "question_id": 42001},
        {"image_id": 73, "question": "How many?", "question_id": 73000},
    ]
    answers = [
        {"question_id": 42001, "image_id": 42, "question_type": "is it", "answer_type": "yes/no",
         "multiple_choice_answer": "yes",
         "answers": [{"answer": "yes", "answer_confidence": "yes", "answer_id": n}
                     for n in range(1, 11)]},
        {"question_id": 42000, "image_id": 42, "question_type": "what", "answer_type": "other",
         "multiple_choice_answer": "net", "answers": TEN},
    ]  # fmt: skip
    write(folder / asked, {"data_subtype": "val2014", "questions": questions})
    write(folder / answered, {"data_subtype": "val2014", "annotations": answers})
    draw(folder / "val2014" / "COCO_val2014_000000000042.jpg")
    return folder


def test_vqav2_joins_questions_and_answers_by_id(tmp_path: Path) -> None:
    source = open_source(layout("vqav2", vqav2(tmp_path)))
    first = source[0]
    assert (first.id, first.question, first.kind) == ("42000", "Through what?", "other")
    assert first.answers == ("net", "netting", "mesh", "pitcher")
    assert first.facts["human_answers"] == tuple(one["answer"] for one in TEN)
    assert first.facts["question_type"] == "what"
    assert first.images == (tmp_path / "val2014" / "COCO_val2014_000000000042.jpg",)
    assert source.groups() == [[0, 1], [2]]
    assert worth(first, "A net.") == 1.0
    assert worth(first, "mesh") == pytest.approx(0.3)
    assert (source[1].kind, worth(source[1], "yes")) == ("yes/no", 1.0)


def test_a_question_without_answers_names_its_file_and_row(tmp_path: Path) -> None:
    source = open_source(layout("vqav2", vqav2(tmp_path)))
    with pytest.raises(DataError, match=r"questions\.json, row 3.*question 73000 has no answers"):
        source[2]
    report = check_source(layout("vqav2", tmp_path), cell_pixels=16)
    assert [problem.row for problem in report.problems] == [3]


def test_a_missing_photo_names_its_file_and_row(tmp_path: Path) -> None:
    from tests.tiny_models import random_backbone

    source = open_source(layout("vqav2", vqav2(tmp_path)))
    (tmp_path / "val2014" / "COCO_val2014_000000000042.jpg").unlink()
    renderer = ChatRenderer(random_backbone().processor)
    with pytest.raises(DataError, match=r"questions\.json, row 2: the image file .*000042\.jpg"):
        renderer.encode(source[1], with_answer=False)


def test_another_split_or_folder_says_which_files_it_looked_for(tmp_path: Path) -> None:
    vqav2(tmp_path)
    with pytest.raises(InputError, match="v2_OpenEnded_mscoco_train2014_questions"):
        open_source(layout("vqav2", tmp_path, split="train"))
    with pytest.raises(InputError, match="no such folder"):
        open_source(layout("vqav2", tmp_path / "nowhere"))
    with pytest.raises(InputError, match="correct the name of the questions"):
        open_source(layout("vqav2", tmp_path, questions="q.json"))
    generic = vqav2(tmp_path / "generic", names=("questions.json", "annotations.json"))
    assert len(open_source(layout("vqav2", generic))) == 3
    with pytest.raises(InputError, match="holds val2014"):
        open_source(layout("vqav2", generic, split="train"))


def test_okvqa_names_its_kinds_of_knowledge(tmp_path: Path) -> None:
    questions = [{"image_id": 7, "question": "What sport?", "question_id": 75}]
    people = [{"answer_id": n, "raw_answer": "racing", "answer_confidence": "yes",
               "answer": "race"} for n in range(1, 11)]  # fmt: skip
    write(tmp_path / "OpenEnded_mscoco_val2014_questions.json",
          {"data_subtype": "val2014", "questions": questions})  # fmt: skip
    write(tmp_path / "mscoco_val2014_annotations.json",
          {"question_types": {"six": "Sports and Recreation"},
           "annotations": [{"question_id": 75, "image_id": 7, "question_type": "six",
                            "answer_type": "other", "answers": people}]})  # fmt: skip
    sample = open_source(layout("okvqa", tmp_path))[0]
    assert (sample.kind, sample.answers) == ("Sports and Recreation", ("race",))
    assert worth(sample, "race") == 1.0


def test_gqa_opens_one_file_or_a_folder_of_them(tmp_path: Path) -> None:
    row = {"question": "What is it?", "imageId": "n1", "answer": "cat", "fullAnswer": "A cat.",
           "types": {"structural": "query", "semantic": "obj"}}  # fmt: skip
    write(tmp_path / "testdev_balanced_questions.json", {"201": row})
    for part in range(2):
        name = f"train_all_questions/train_all_questions_{part}.json"
        write(tmp_path / name, {f"30{part}": row, f"31{part}": {**row, "answer": "Dog"}})
    sample = open_source(layout("gqa", tmp_path))[0]
    assert (sample.id, sample.kind, sample.images) == (
        "201", "query", (tmp_path / "images" / "n1.jpg",),
    )  # fmt: skip
    folder = open_source(layout("gqa", tmp_path, questions="train_all_questions"))
    assert [folder[i].id for i in range(4)] == ["300", "310", "301", "311"]
    assert worth(folder[1], "dog.") == 1.0


def test_textvqa_keeps_ten_answers_and_the_tokens_that_were_read(tmp_path: Path) -> None:
    row = {"question": "what brand?", "image_id": "ab12", "question_id": 5,
           "answers": ["nokia"] * 7 + ["Nokia's", "nokia's", "1,000"]}  # fmt: skip
    write(tmp_path / "TextVQA_0.5.1_val.json", {"dataset_type": "val", "data": [row]})
    without = open_source(layout("textvqa", tmp_path))
    assert without[0].facts["ocr_tokens"] == ()
    write(tmp_path / "TextVQA_Rosetta_OCR_v0.2_val.json",
          {"data": [{"image_id": "ab12", "ocr_tokens": ["NOKIA", "N95"]}]})  # fmt: skip
    source = open_source(layout("textvqa", tmp_path))
    assert source.fingerprint() != without.fingerprint()
    sample = source[0]
    assert sample.images == (tmp_path / "train_images" / "ab12.jpg",)
    assert sample.facts["ocr_tokens"] == ("NOKIA", "N95")
    assert worth(sample, "Nokia") == 1.0
    assert worth(sample, "nokia's") == pytest.approx(0.6)


def test_docvqa_accepts_any_of_its_answers(tmp_path: Path) -> None:
    row = {"questionId": 337, "question": "What is the date?", "question_types": ["form"],
           "image": "documents/xnbl0037_1.png", "answers": ["1/8/93", "Jan 8, 1993"]}  # fmt: skip
    write(tmp_path / "val_v1.0_withQT.json", {"dataset_split": "val", "data": [row]})
    draw(tmp_path / "documents" / "xnbl0037_1.png")
    sample = open_source(layout("docvqa", tmp_path))[0]
    assert (sample.kind, sample.answers) == ("form", ("1/8/93", "Jan 8, 1993"))
    assert worth(sample, "jan 8 1993") == pytest.approx(10 / 11)
    assert check_source(layout("docvqa", tmp_path), cell_pixels=16).ok


def test_chartqa_reads_both_origins_from_json_or_csv(tmp_path: Path) -> None:
    folder = tmp_path / "ChartQA Dataset" / "test"
    write(folder / "test_human.json",
          [{"imgname": "1.png", "query": "Largest?", "label": "14%"}])  # fmt: skip
    (folder / "test_augmented.csv").write_text("imgname,query,label\n2.png,How many?,105\n")
    source = open_source(layout("chartqa", tmp_path))
    assert [(source[i].id, source[i].kind) for i in range(2)] == [
        ("test_human-1", "human"), ("test_augmented-2", "augmented"),
    ]  # fmt: skip
    assert source[1].images == (folder / "png" / "2.png",)
    assert worth(source[0], "0.145") == 1.0
    assert worth(source[1], "100") == 1.0


def test_a_row_that_lost_a_field_names_it(tmp_path: Path) -> None:
    write(
        tmp_path / "val_v1.0.json", {"data": [{"questionId": 1, "image": "a.png", "answers": []}]}
    )
    with pytest.raises(DataError, match=r"val_v1\.0\.json, row 1: the row has no 'question'"):
        open_source(layout("docvqa", tmp_path))[0]
    (tmp_path / "val_v1.0.json").write_text('{"data": [')
    with pytest.raises(DataError, match="JSON syntax error"):
        open_source(layout("docvqa", tmp_path))
    write(tmp_path / "val_v1.0.json", [1, 2])
    with pytest.raises(DataError, match="row 1: the row is not as the benchmark writes it"):
        open_source(layout("docvqa", tmp_path))[0]
    write(tmp_path / "val_v1.0.json", {"rows": []})
    with pytest.raises(InputError, match="no list 'data'"):
        open_source(layout("docvqa", tmp_path))


def test_a_broken_line_among_puzzles_does_not_hide_the_others(tmp_path: Path) -> None:
    good = {"image": "a.png", "question": "?", "options": [1, "2"], "answer": 2}
    (tmp_path / "dots.jsonl").write_text(json.dumps(good) + "\n{oops\n")
    source = open_source(layout("puzzlevqa", tmp_path))
    assert source[0].question == "? Options: 1, 2."
    with pytest.raises(DataError, match=r"dots\.jsonl, line 2: JSON syntax error"):
        source[1]


def test_every_layout_is_in_the_configuration_and_back() -> None:
    schema = LayoutSource.model_json_schema()
    assert set(schema["properties"]["layout"]["enum"]) == set(LAYOUTS)


def test_the_official_vqav2_files_are_parsed_and_stored_answers_scored(vqa: Path) -> None:
    source = open_source(layout("vqav2", vqa / "official-format" / "vqav2"))
    samples = [source[i] for i in range(len(source))]
    assert [len(one.facts["human_answers"]) for one in samples] == [10, 10, 10]
    assert len(source.groups()) == 1
    stored = {"458752000": "net", "458752001": "catcher", "458752002": "Orange."}
    # all ten say "orange": the official script then compares the letters as they stand
    assert [worth(one, stored[one.id]) for one in samples] == [1.0, pytest.approx(0.3), 0.0]
    assert worth(samples[2], "orange") == 1.0


def test_the_official_gqa_and_visual_genome_files_open_with_their_photos(vqa: Path) -> None:
    gqa = layout("gqa", vqa / "official-format" / "gqa", questions="questions.json")
    assert check_source(gqa).ok
    genome = layout("visual_genome", vqa / "official-format" / "vgqa")
    report = check_source(genome)
    assert (report.ok, report.rows, report.statistics["distinct_images"]) == (True, 8, 2)
    lost = layout("gqa", vqa / "official-format" / "gqa", questions="questions1.json")
    (problem,) = check_source(lost).problems
    assert "n166008.jpg does not exist" in problem.problem


@pytest.mark.parametrize(
    ("name", "folder", "rows", "images"),
    [
        ("shapeworld", "shapeworld", 4000, 800),
        ("nlvr", "nlvr", 901, 901),
        ("puzzlevqa", "puzzlevqa", 250, 250),
        ("puzzlevqa", "algopuzzlevqa", 36, 36),
    ],
)
def test_generated_benchmarks_open_whole(
    vqa: Path, name: str, folder: str, rows: int, images: int
) -> None:
    source = open_source(layout(name, vqa / folder))
    assert len(source) == rows
    assert len({source[i].id for i in range(rows)}) == rows
    assert len(source.groups()) == images
    report = check_source(layout(name, vqa / folder), limit=20)
    assert report.ok


@pytest.mark.parametrize("name", ["shapeworld", "puzzlevqa"])
def test_the_examples_open_on_the_real_data(vqa: Path, name: str) -> None:
    example = str(REPOSITORY / "examples" / f"{name}.yaml")
    config = resolve(example, overrides=[f"data.eval.path={vqa / name}"]).config
    assert len(open_source(config.data.eval)) > 200

"""JSON lines, JSON lists, CSV and image folders: what is read, and what every fault is called."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
from PIL import Image

from saccade.config.errors import InputError
from saccade.config.schema import FolderSource, JsonlSource, ScenesSource
from saccade.data.samples import DataError
from saccade.data.sources import infer_source, open_source

GOOD = {"question": "what color?", "answer": "red", "image": "a.png"}


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def jsonl(path: Path, **options: object) -> JsonlSource:
    return JsonlSource.model_validate({"type": "jsonl", "path": path, **options})


def folder(path: Path, **options: object) -> FolderSource:
    return FolderSource.model_validate({"type": "folder", "path": path, **options})


def test_a_line_becomes_a_sample_without_opening_its_image(tmp_path: Path) -> None:
    source = open_source(jsonl(write(tmp_path / "rows.jsonl", {**GOOD, "kind": "color"})))
    sample = source[0]
    assert (sample.id, sample.question, sample.answers) == ("rows-1", "what color?", ("red",))
    assert sample.images == (tmp_path / "a.png",)
    assert sample.kind == "color"


def test_ten_answers_give_the_most_common_first_and_keep_the_raw_list(tmp_path: Path) -> None:
    people = ["mesh"] + ["net"] * 3 + [{"answer": "mesh", "answer_id": 5}]
    source = open_source(jsonl(write(tmp_path / "rows.jsonl", {**GOOD, "answer": people})))
    assert source[0].answers == ("net", "mesh")
    assert source[0].facts["human_answers"] == ("mesh", "net", "net", "net", "mesh")


@pytest.mark.parametrize(
    ("given", "read"), [(4, "4"), (4.0, "4"), (2.5, "2.5"), (True, "yes"), (" red ", "red")]
)
def test_numbers_and_truth_values_are_answers_too(tmp_path: Path, given: object, read: str) -> None:
    source = open_source(jsonl(write(tmp_path / "rows.jsonl", {**GOOD, "answer": given})))
    assert source[0].answer == read


def test_several_images_one_image_and_none_live_in_one_file(tmp_path: Path) -> None:
    rows = [{**GOOD, "image": cell} for cell in (["a.png", "b.png"], "a.png", None, [], "")]
    source = open_source(jsonl(write(tmp_path / "rows.jsonl", *rows)))
    assert [len(source[i].images) for i in range(5)] == [2, 1, 0, 0, 0]


def test_a_file_without_an_image_column_is_text_only(tmp_path: Path) -> None:
    source = open_source(jsonl(write(tmp_path / "t.jsonl", {"question": "1+1?", "answer": 2})))
    assert source[0].images == ()
    assert source[0].image_key is None


def test_a_forgotten_image_mapping_is_an_error_and_not_silently_text_only(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", {"question": "q", "answer": "a", "img": "a.png"})
    with pytest.raises(InputError, match=r"columns\.image=img"):
        open_source(jsonl(path))
    assert open_source(jsonl(path, columns={"image": ""}))[0].images == ()


def test_samples_of_one_image_form_a_group_in_order_of_first_appearance(tmp_path: Path) -> None:
    cells = ["b.png", "a.png", "b.png", None, None, ["a.png", "b.png"], "a.png"]
    rows = [{**GOOD, "image": cell} for cell in cells]
    source = open_source(jsonl(write(tmp_path / "rows.jsonl", *rows)))
    assert source.groups() == [[0, 2], [1, 6], [3], [4], [5]]
    assert source[0].image_key == source[2].image_key != source[1].image_key


def test_broken_rows_still_belong_to_a_group(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(GOOD) + "\n{broken\n" + json.dumps(GOOD) + "\n")
    assert open_source(jsonl(path)).groups() == [[0, 2], [1]]


def test_list_rows_are_addressed_by_position(tmp_path: Path) -> None:
    path = tmp_path / "questions.json"
    path.write_text(json.dumps([["what?", "circle", 7], ["why?", "red", 8]]))
    source = open_source(
        folder(
            tmp_path,
            columns={"question": 0, "answer": 1, "image": 2},
            image_format="images/{}.png",
        )
    )
    assert source[1].answer == "red"
    assert source[0].images == (tmp_path / "images" / "7.png",)
    assert source[0].id == f"{tmp_path.name}-1"


def test_list_rows_without_positions_say_how_to_give_them(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('[["what?", "circle", 7]]')
    with pytest.raises(InputError, match=r"lists of 3 cells.*\n.*columns\.question=0"):
        open_source(jsonl(path))
    with pytest.raises(InputError, match=r"columns\.answer=9 is no position"):
        open_source(jsonl(path, columns={"question": 0, "answer": 9}))


def test_an_unknown_column_names_those_there_are_and_the_nearest(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", {"Question": "q", "label": "a", "image": "a.png"})
    with pytest.raises(InputError, match=r"'Question', 'label', 'image'\n.*question=Question"):
        open_source(jsonl(path))
    with pytest.raises(InputError, match=r"no column 'lable'.*\n.*columns\.answer=label"):
        open_source(jsonl(path, columns={"question": "Question", "answer": "lable"}))
    with pytest.raises(InputError, match="is a position"):
        open_source(jsonl(path, columns={"question": 0, "answer": "label"}))


def test_a_json_list_over_many_lines_a_single_line_and_lines_in_a_json_file(
    tmp_path: Path,
) -> None:
    rows = [GOOD, {**GOOD, "answer": "blue"}]
    (tmp_path / "pretty.json").write_text(json.dumps(rows, indent=2))
    (tmp_path / "dense.json").write_text(json.dumps(rows))
    write(tmp_path / "lines.json", *rows)
    (tmp_path / "list.jsonl").write_text(json.dumps(rows, indent=1))
    for name in ("pretty.json", "dense.json", "lines.json", "list.jsonl"):
        source = open_source(jsonl(tmp_path / name))
        assert [source[i].answer for i in range(len(source))] == ["red", "blue"], name


def test_byte_order_mark_crlf_and_blank_lines_do_no_harm(tmp_path: Path) -> None:
    line = json.dumps(GOOD).encode()
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + line + b"\r\n\r\n  \r\n" + line)
    source = open_source(jsonl(path))
    assert len(source) == 2
    assert source[1].id == "rows-4"  # the number of its line


def test_a_syntax_error_on_line_3_is_named_and_the_other_rows_stay_readable(
    tmp_path: Path,
) -> None:
    line = json.dumps(GOOD)
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{line}\n{line}\n{{"question": "x", \n{line}\n')
    source = open_source(jsonl(path))
    with pytest.raises(DataError, match=r"rows\.jsonl, line 3: JSON syntax error"):
        source[2]
    assert source[3].answer == "red"


def test_a_syntax_error_in_a_json_list_names_its_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('[\n{"question": "q", "answer": "a"},\n{"question" "q"}\n]')
    with pytest.raises(DataError, match=r"rows\.json, line 3: JSON syntax error in column 13"):
        open_source(jsonl(path))


def test_text_that_is_not_utf8_is_named_by_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b'\n{"question": "caf\xe9?", "answer": "x"}\n')
    source = open_source(jsonl(path))
    with pytest.raises(DataError, match=r"line 2: not UTF-8 text \(byte 0xe9\)"):
        source[1]
    path.with_suffix(".csv").write_bytes(b"question,answer\nwhat,caf\xe9\n")
    with pytest.raises(DataError, match="line 2: not UTF-8"):
        open_source(folder(tmp_path, index="rows.csv"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"\n \n", "the file is empty"),
        (b"[]", "there are no rows"),
        (b'{\n"data": [1],\n"info": {}}', "found an object; its lists are under 'data'"),
        (b"\xff\xfe[\x00]\x00", "UTF-16"),
        (b"\x1f\x8b\x08\x00", "gzip"),
        (b"\x89PNG\r\n", "a PNG image"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    ],
)
def test_a_file_that_holds_no_rows_says_what_it_is(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        open_source(jsonl(path))


def test_a_missing_file_names_its_neighbour_and_a_folder_is_no_file(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", GOOD)
    with pytest.raises(InputError, match=r"no such file\n.*train\.jsonl"):
        open_source(jsonl(tmp_path / "trian.jsonl"))
    with pytest.raises(InputError, match="nowhere does not exist either"):
        open_source(jsonl(tmp_path / "nowhere" / "x.jsonl"))
    with pytest.raises(InputError, match="is a folder, a file was expected"):
        open_source(jsonl(tmp_path))
    with pytest.raises(InputError, match="is a file, a folder was expected"):
        open_source(folder(tmp_path / "train.jsonl"))
    with pytest.raises(InputError, match="no such folder"):
        open_source(folder(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=r"no index file; looked for index\.jsonl"):
        open_source(folder(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question": ""}, "the question is empty"),
        ({"question": 5}, "the question is a number, text is needed"),
        ({"question": None}, "the question is null"),
        ({"question": "<|image_pad|> what?"}, "a mark of the chat template"),
        ({"answer": "  "}, "the answer is empty"),
        ({"answer": None}, "the answer is null"),
        ({"answer": []}, "the list of answers is empty"),
        ({"answer": ["x", None]}, "the answer is null"),
        ({"answer": {"text": "x"}}, "the answer is an object"),
        ({"answer": float("nan")}, "the answer is a number"),
        ({"image": [["a.png"], ["b.png"]]}, "a list inside a list"),
        ({"image": ["a.png", None]}, "the image is null"),
        ({"image": 1.5}, "the image is a number"),
        ({"image": {"url": "x"}}, "the image is null"),
        ({"image": "https://example.org/a.png"}, "is an address"),
        ({"kind": ["x"]}, "the kind is a list"),
        ({"id": {}}, "the id is an object"),
    ],
)
def test_every_broken_cell_names_file_line_id_problem_and_fix(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    first = {**GOOD, "id": "one", "kind": "k"}
    source = open_source(
        jsonl(write(tmp_path / "rows.jsonl", first, {**first, "id": "two", **change}))
    )
    assert source[0].id == "one"
    with pytest.raises(DataError) as caught:
        source[1]
    assert message in caught.value.problem
    assert "rows.jsonl, line 2" in caught.value.where
    assert "id" in change or "(id two)" in caught.value.where
    assert caught.value.fix


def test_rows_of_another_shape_are_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    lacking = {"question": "q", "anwser": "typo"}
    path.write_text("\n".join(map(json.dumps, [GOOD, ["q", "a"], 5, lacking])))
    source = open_source(jsonl(path))
    for position, message in [
        (1, "the row is a list, the other rows are objects"),
        (2, "a row must be an object or a list, this one is a number"),
        (3, "no column 'answer'.*'anwser'"),
    ]:
        with pytest.raises(DataError, match=f"line {position + 1}.*{message}"):
            source[position]


def test_csv_with_quotes_semicolons_or_tabs_is_read(tmp_path: Path) -> None:
    (tmp_path / "index.csv").write_bytes(
        b'\xef\xbb\xbfimage,question,answer\r\na.png,"a, b\r\nor c?",red\r\nb.png,q,blue\r\n'
    )
    source = open_source(folder(tmp_path))
    assert source[0].question == "a, b\r\nor c?"
    assert source[1].images == (tmp_path / "b.png",)
    assert source[1].id == f"{tmp_path.name}-4"  # its line in the file
    (tmp_path / "semi.csv").write_text("image;question;answer\na.png;q;1\n")
    (tmp_path / "tab.tsv").write_text("image\tquestion\tanswer\na.png\tq\t1\n")
    for name in ("semi.csv", "tab.tsv"):
        assert open_source(folder(tmp_path, index=name))[0].answer == "1"


def test_a_csv_row_with_too_many_cells_is_named(tmp_path: Path) -> None:
    (tmp_path / "index.csv").write_text("image,question,answer\na.png,what, why?,red\n")
    with pytest.raises(DataError, match="line 2: 4 cells, but the header names 3 columns"):
        open_source(folder(tmp_path))[0]


def test_the_fingerprint_follows_content_and_reading_and_not_place_or_time(
    tmp_path: Path,
) -> None:
    (tmp_path / "other").mkdir()
    first = write(tmp_path / "rows.jsonl", GOOD, GOOD)
    copy = write(tmp_path / "other" / "rows.jsonl", GOOD, GOOD)
    changed = write(tmp_path / "changed.jsonl", GOOD, {**GOOD, "answer": "blue"})
    fingerprint = open_source(jsonl(first)).fingerprint()
    assert open_source(jsonl(copy)).fingerprint() == fingerprint
    assert open_source(jsonl(changed)).fingerprint() != fingerprint
    assert open_source(jsonl(first, limit=1)).fingerprint() != fingerprint
    assert open_source(jsonl(first, columns={"image": ""})).fingerprint() != fingerprint


def test_limit_keeps_the_first_rows_and_positions_outside_are_refused(tmp_path: Path) -> None:
    source = open_source(jsonl(write(tmp_path / "rows.jsonl", GOOD, GOOD, GOOD), limit=2))
    assert len(source) == 2
    assert source.groups() == [[0, 1]]
    for position in (2, -1):
        with pytest.raises(IndexError):
            source[position]


def test_an_image_format_without_a_place_for_the_name_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", GOOD)
    for wrong in ("images/.png", "{} {}", "{name}", "{"):
        with pytest.raises(InputError, match=r"needs one \{\}"):
            open_source(jsonl(path, image_format=wrong))


def test_image_marks_of_other_trainers_are_removed_where_there_is_an_image(
    tmp_path: Path,
) -> None:
    row = {**GOOD, "question": "<image>\nwhat color?"}
    assert open_source(jsonl(write(tmp_path / "rows.jsonl", row)))[0].question == "what color?"


def test_a_source_can_be_sent_to_a_data_loading_process(tmp_path: Path) -> None:
    source = open_source(jsonl(write(tmp_path / "rows.jsonl", GOOD)))
    assert pickle.loads(pickle.dumps(source))[0] == source[0]


def test_the_source_is_inferred_from_the_path(tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", GOOD)
    assert infer_source(tmp_path / "rows.jsonl").type == "jsonl"
    (tmp_path / "table.csv").write_text("question,answer\nq,a\n")
    assert open_source(infer_source(tmp_path / "table.csv"))[0].answer == "a"
    with pytest.raises(InputError, match="holds no index"):
        infer_source(tmp_path)
    (tmp_path / "index.jsonl").write_text(json.dumps(GOOD))
    assert infer_source(tmp_path).type == "folder"
    for wrong in ("x.txt", "missing.jsonl", "missing"):
        with pytest.raises(InputError, match="no such"):
            infer_source(tmp_path / wrong)


def test_generated_scenes_open_through_the_same_function() -> None:
    source = open_source(ScenesSource(scenes=2, questions=2))
    assert len(source) == 4
    assert source.groups() == [[0, 1], [2, 3]]
    drawn = source[0].images[0]
    assert callable(drawn)
    assert isinstance(drawn(), Image.Image)

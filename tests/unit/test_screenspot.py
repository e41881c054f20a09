"""ScreenSpot v1, v2, Pro and click points: what is read, what is refused."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from saccade.cli_inputs import resolve_words, source_words
from saccade.config.errors import InputError
from saccade.config.screens import ScreenSpotSource
from saccade.data.boxes import Box
from saccade.data.check import check_source
from saccade.data.samples import DataError
from saccade.data.screens.chance import random_click
from saccade.data.screens.conventions import Noted, contradiction
from saccade.data.show import show_samples
from saccade.data.sources import infer_source, open_source
from tests.screen_files import SIZE, folder, opened, picture, v1_row
from tests.unit.test_sources_real import SHARED

PRO = {
    "img_filename": "vscode_mac/a.png", "bbox": [20, 10, 60, 40], "img_size": [200, 100],
    "instruction": "press it", "ui_type": "text", "platform": "macos", "application": "vscode",
    "group": "Dev", "id": "vscode_mac_0",
}  # fmt: skip
HUB = {
    "file_name": "a.png", "bbox": [0.1, 0.1, 0.3, 0.4], "instruction": "press it",
    "data_type": "text", "data_source": "web",
}  # fmt: skip


def test_version_one_is_read_as_corner_and_size(tmp_path: Path) -> None:
    rows = opened(folder(tmp_path / "mine", [v1_row()]))
    sample = rows[0]
    assert (sample.kind, sample.question, sample.answers) == ("point", "press it", ())
    assert sample.facts["box"] == (20 / 200, 10 / 100, 60 / 200, 40 / 100)
    assert sample.facts["size"] == SIZE
    assert (sample.facts["platform"], sample.facts["element"]) == ("web", "icon")
    assert sample.images == (tmp_path / "mine" / "images" / "a.png",)
    assert sample.id == "mine-1"


def test_the_hubs_layout_of_version_one_is_in_shares(tmp_path: Path) -> None:
    rows = opened(folder(tmp_path, [HUB], file="metadata.jsonl"))
    assert rows[0].facts["box"] == (0.1, 0.1, 0.3, 0.4)
    assert rows.files[0].layout.shares


def test_a_parquet_file_of_the_hub_holds_its_pictures(tmp_path: Path) -> None:
    from datasets import Dataset

    stream = io.BytesIO()
    Image.new("RGB", SIZE, "red").save(stream, format="PNG")
    row = {**HUB, "image": {"bytes": stream.getvalue(), "path": "a.png"}}
    file = tmp_path / "data" / "test-00000-of-00001.parquet"
    file.parent.mkdir()
    Dataset.from_list([row, row]).to_parquet(str(file))
    rows = opened(tmp_path)
    assert len(rows) == 2 and rows[1].facts["size"] == SIZE
    assert rows[1].facts["box"] == (0.1, 0.1, 0.3, 0.4)
    assert rows.groups() == [[0, 1]]
    assert rows.benchmarks == ["ScreenSpot"]


def test_pro_is_read_as_two_corners_in_folders_per_application(tmp_path: Path) -> None:
    place = folder(tmp_path, [PRO], file="annotations/vscode_mac.json", pictures=[])
    picture(place / "images" / "vscode_mac" / "a.png")
    sample = opened(place)[0]
    assert sample.facts["box"] == (0.1, 0.1, 0.3, 0.4)
    assert sample.id == "vscode_mac_0"
    assert {sample.facts[name] for name in ("application", "group")} == {"vscode", "Dev"}
    assert opened(place / "annotations" / "vscode_mac.json")[0].images == sample.images


def test_click_points_in_shares_are_known_by_the_file(tmp_path: Path) -> None:
    points = ([0.5, 0.25], [0.9, 0.9], [0.0, 0.5])
    rows = [{"image": "images/a.png", "instruction": "press", "point": one} for one in points]
    found = opened(folder(tmp_path / "shares", rows, file="pairs.jsonl"))
    assert [found[k].facts["point"] for k in range(3)] == [tuple(one) for one in points]
    # one click in the corner is a slip, or a corner: the others are of pixels
    rows = [{**rows[0], "point": one} for one in ([1, 1], [20, 10], [100, 50])]
    found = opened(folder(tmp_path / "pixels", rows, file="pairs.jsonl"))
    assert [found[k].facts["point"] for k in range(2)] == [(0.005, 0.01), (0.1, 0.1)]
    outside = [{**rows[0], "point": one} for one in ([0.5, 0.5], [0.2, 0.2], [1.4, 0.5])]
    found = opened(folder(tmp_path / "outside", outside, file="pairs.jsonl"))
    with pytest.raises(DataError, match="outside its picture of 1 x 1"):
        _ = found[2]


def test_rows_that_share_an_id_get_names_of_their_own(tmp_path: Path) -> None:
    names = ["a", "a", "a-2", "a", ""]
    found = opened(folder(tmp_path, [v1_row(id=name) for name in names]))
    ids = [found[k].id for k in range(5)]
    assert ids[:2] == ["a", "a-2"] and len(set(ids)) == 5


def test_click_points_have_no_box(tmp_path: Path) -> None:
    row = {"image": "images/a.png", "size": [200, 100], "instruction": "press", "point": [50, 25]}
    rows = opened(folder(tmp_path, [row], file="pairs.jsonl"))
    assert rows[0].facts["box"] is None and rows[0].facts["point"] == (0.25, 0.25)
    outside = {**row, "point": [200, 25]}
    with pytest.raises(DataError, match=r"pairs\.jsonl, line 1 .*outside its picture of 200 x 100"):
        opened(folder(tmp_path / "b", [outside], file="pairs.jsonl"))[0]


def test_fractions_of_pixels_are_kept(tmp_path: Path) -> None:
    rows = opened(folder(tmp_path, [v1_row(bbox=(987.6 / 8, 8.25, 48, 40.5))]))
    assert rows[0].facts["box"] == (123.45 / 200, 8.25 / 100, (123.45 + 48) / 200, 48.75 / 100)


@pytest.mark.parametrize(
    ("boxes", "declared", "fix"),
    [([[150, 60, 190, 90], [10, 10, 15, 15]], "xywh", "xyxy"),
     ([[150, 60, 20, 20], [10, 10, 15, 15]], "xyxy", "xywh")],
)  # fmt: skip
def test_a_file_that_contradicts_its_convention_is_refused_once(
    tmp_path: Path, boxes: list[Any], declared: str, fix: str
) -> None:
    place = folder(tmp_path, [v1_row(bbox=box) for box in boxes])
    with pytest.raises(InputError) as caught:
        opened(place, boxes=declared)
    message = str(caught.value)
    assert "screenspot.json, row 1" in message and "bbox [150, 60," in message
    assert message.endswith(f"fix: boxes={fix}; on the command line --boxes {fix}")
    assert "all fit" in message
    assert len(opened(place, boxes=fix)) == 2


def test_where_both_conventions_fit_the_declared_one_holds(tmp_path: Path) -> None:
    place = folder(tmp_path, [v1_row(bbox=(10, 10, 60, 40))])
    assert opened(place)[0].facts["box"] == (0.05, 0.1, 0.35, 0.5)
    assert opened(place, boxes="xyxy")[0].facts["box"] == (0.05, 0.1, 0.3, 0.4)


def test_sizes_for_the_comparison_come_from_the_pictures_where_the_file_has_none() -> None:
    known = Noted((150.0, 60.0, 190.0, 90.0), (200.0, 100.0), "here")
    assert "boxes=xyxy" in contradiction([known], meaning="xywh")
    unknown = Noted((150.0, 60.0, 190.0, 90.0), None, "here")
    assert contradiction([unknown], meaning="xywh") == ""
    assert contradiction([], meaning="xywh") == ""


def test_one_broken_box_among_sound_ones_is_the_rows_fault(tmp_path: Path) -> None:
    sound = [v1_row(bbox=(100, 50, 20, 20)) for _ in range(3)]
    rows = opened(folder(tmp_path, [*sound, v1_row(bbox=(190, 50, 20, 20), id="odd")]))
    assert rows[0].facts["box"] is not None
    with pytest.raises(DataError) as caught:
        rows[3]
    assert "row 4 (id odd)" in str(caught.value)
    assert "leaves its picture of 200 x 100" in str(caught.value)


def test_an_edge_that_rounding_put_a_pixel_outside_is_put_on_the_border(tmp_path: Path) -> None:
    rows = opened(folder(tmp_path, [v1_row(bbox=(180, 50, 21, 50.5))]))
    assert rows[0].facts["box"] == (0.9, 0.5, 1.0, 1.0)


@pytest.mark.parametrize(
    ("bbox", "problem"),
    [([1, 2, 3], "four finite numbers"), ("1,2,3,4", "four finite numbers"),
     ([1, 2, float("nan"), 4], "four finite numbers"), (None, "four finite numbers"),
     ([1, 2, True, 4], "four finite numbers"), ([10, 10, 0, 5], "has no inside")],
)  # fmt: skip
def test_boxes_that_are_none_are_named(tmp_path: Path, bbox: Any, problem: str) -> None:
    place = folder(tmp_path, [v1_row(), v1_row(bbox=(100, 50, 20, 20)), v1_row(bbox=bbox)])
    with pytest.raises(DataError, match=problem):
        opened(place)[2]


def test_a_picture_of_another_shape_than_stated_is_refused_and_a_scaled_one_is_not(
    tmp_path: Path,
) -> None:
    scaled = v1_row(bbox=(40, 20, 80, 60), img_size=[400, 200])
    rows = opened(folder(tmp_path, [scaled, v1_row(img_size=[100, 200])]))
    assert rows[0].facts["box"] == (0.1, 0.1, 0.3, 0.4) and rows[0].facts["size"] == SIZE
    with pytest.raises(DataError, match="200 x 100 pixels, the row says 100 x 200"):
        rows[1]


def test_missing_and_damaged_pictures_name_their_row(tmp_path: Path) -> None:
    place = folder(tmp_path, [v1_row(), v1_row("gone.png"), v1_row("bad.png"), v1_row("cut.png")])
    (place / "images" / "bad.png").write_bytes(b"no picture")
    whole = picture(place / "images" / "cut.png", size=(800, 400)).read_bytes()
    (place / "images" / "cut.png").write_bytes(whole[: len(whole) // 2])
    rows = opened(place)
    for position, problem in ((1, "does not exist"), (2, "not an image")):
        with pytest.raises(DataError, match=f"row {position + 1} .*{problem}"):
            rows[position]
    source = infer_source(place)
    report = check_source(source)
    assert (report.rows, report.rows_ok, len(report.problems)) == (4, 1, 3)
    assert "truncated or damaged" in report.problems[2].problem


def test_empty_instructions_and_marks_of_the_template_are_refused(tmp_path: Path) -> None:
    rows = opened(
        folder(tmp_path, [v1_row(instruction=" "), v1_row(instruction="press <|image_pad|>")])
    )
    with pytest.raises(DataError, match="instruction is empty"):
        rows[0]
    with pytest.raises(DataError, match="mark of the chat template"):
        rows[1]


def test_platforms_limit_and_groups(tmp_path: Path) -> None:
    rows = [v1_row(), v1_row("b.png", data_source="ios"), v1_row("b.png", data_source="ios")]
    place = folder(tmp_path, rows, pictures=["a.png", "b.png"])
    assert opened(place).groups() == [[0], [1, 2]]
    assert len(opened(place, platforms=["ios"])) == 2
    assert len(opened(place, platforms=["ios"], limit=1)) == 1
    with pytest.raises(InputError, match=r"platforms=mac: .*\n  fix: choose of ios, web"):
        opened(place, platforms=["mac"])


def test_a_fingerprint_follows_what_is_read_and_not_where_it_lies(tmp_path: Path) -> None:
    one, two = folder(tmp_path / "x", [v1_row()]), folder(tmp_path / "y", [v1_row()])
    assert opened(one).fingerprint() == opened(two).fingerprint()
    assert opened(one).fingerprint() != opened(two, boxes="xyxy").fingerprint()
    assert opened(one).pictures_digest() == opened(two).pictures_digest()
    picture(two / "images" / "a.png", color="blue")
    assert opened(one).pictures_digest() != opened(two).pictures_digest()


def test_folders_without_annotations_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file or folder"):
        opened(tmp_path / "none")
    (tmp_path / "settings.json").write_text('{"a": 1}')
    with pytest.raises(InputError, match="no annotations of the ScreenSpot family"):
        opened(tmp_path)
    with pytest.raises(InputError, match="columns instruction and bbox"):
        opened(tmp_path / "settings.json")
    with pytest.raises(InputError, match="nowhere: no such folder"):
        opened(folder(tmp_path / "b", [v1_row()]), images=Path("nowhere"))


@pytest.mark.parametrize(
    ("rows", "file", "name"),
    [
        ([v1_row()], "screenspot_web.json", "ScreenSpot"),
        ([v1_row()], "screenspot_mobile_v2.json", "ScreenSpot-v2"),
        ([v1_row("web_213f816e-8e80-4d13-970d-1347bbc7a2a8.png")], "copy.json", "ScreenSpot"),
        ([v1_row(data_source="gitlab"), v1_row(data_source="ios")], "copy.json", "ScreenSpot"),
        ([PRO], "copy.json", "ScreenSpot-Pro"),
        ([v1_row()], "screenspot.json", ""),
    ],
)
def test_benchmarks_are_known_by_layout_and_names(
    tmp_path: Path, rows: list[dict[str, Any]], file: str, name: str
) -> None:
    assert opened(folder(tmp_path, rows, file=file)).benchmarks == ([name] if name else [])


def test_random_click_is_the_mean_area(tmp_path: Path) -> None:
    boxes = [(0, 0, 100, 50), (0, 0, 20, 10), (0, 0, 20, 20)]
    kinds = ["icon", "text", "text"]
    rows = [v1_row(bbox=box, data_type=kind) for box, kind in zip(boxes, kinds, strict=True)]
    source = opened(folder(tmp_path, rows))
    found = random_click(map(source.__getitem__, range(3)))
    assert found.accuracy == pytest.approx((0.25 + 0.01 + 0.02) / 3, rel=1e-12)
    assert found.by["element"] == {"icon": 0.25, "text": pytest.approx(0.015)}
    assert found.by["platform"] == {"web": pytest.approx(found.accuracy)}


def test_the_contact_sheet_frames_the_target_outside_its_box(tmp_path: Path) -> None:
    place = folder(tmp_path, [v1_row(bbox=(80, 40, 20, 20))])
    rows = show_samples(infer_source(place), out=tmp_path / "sheet.png")
    assert rows[0]["answers"] == ["[80, 40, 100, 60] web icon"]
    sheet = Image.open(tmp_path / "sheet.png").convert("RGB")
    # the tile is 300 pixels wide: 1.5 pixels per pixel, 75 above the picture, 12 around the tile
    found = [
        (x, y) for x in range(324) for y in range(320) if sheet.getpixel((x, y)) == (230, 0, 90)
    ]
    left, top = min(x for x, _ in found), min(y for _, y in found)
    assert abs(left - (12 + 79 * 1.5)) <= 2 and abs(top - (12 + 75 + 39 * 1.5)) <= 2
    inside = sheet.getpixel((12 + 135, 12 + 75 + 75))
    assert inside != (230, 0, 90)


# -- the public data -----------------------------------------------------------------------------


@pytest.fixture
def gui() -> Path:
    place = SHARED / "gui"
    if not place.is_dir():
        pytest.skip(f"no public screenshots in {place}; set SACCADE_SHARED_DATA to their folder")
    return place


@pytest.mark.parametrize(
    ("name", "rows", "pictures"),
    [("miniwob", 279, 279), ("adminlte", 717, 68), ("screenagent", 81, 81)],
)
def test_public_screens_open_by_their_path_alone(
    gui: Path, name: str, rows: int, pictures: int
) -> None:
    source = open_source(ScreenSpotSource(type="screenspot", path=gui / name))
    samples = [source[position] for position in range(len(source))]
    assert (len(samples), len(source.groups())) == (rows, pictures)
    assert len({sample.id for sample in samples}) == rows
    found = random_click(samples)
    assert found.without_box == (rows if name == "screenagent" else 0)
    if name == "screenagent":
        return
    raw = json.loads((gui / name / "screenspot.json").read_text())
    areas = [
        one["bbox"][2] * one["bbox"][3] / (one["img_size"][0] * one["img_size"][1]) for one in raw
    ]
    assert found.accuracy == pytest.approx(sum(areas) / len(areas), rel=1e-9)


def test_the_annotations_with_corners_are_refused_until_that_is_declared(gui: Path) -> None:
    place = gui / "screenspot-v2-annotations"
    with pytest.raises(InputError, match=r"_desktop_v2\.json, row 1.*\n  fix: boxes=xyxy"):
        opened(place)
    rows = opened(place, boxes="xyxy")
    assert len(rows) == 1272 and rows.benchmarks == ["ScreenSpot-v2"]
    raw = json.loads((place / "screenspot_desktop_v2.json").read_text())[0]
    assert rows[0].facts["box"] == tuple(Box.from_pixels(*raw["bbox"], size=tuple(raw["img_size"])))
    assert all(rows[position].facts["box"] is not None for position in range(len(rows)))


def test_a_folder_is_known_by_its_annotations_wherever_they_lie(tmp_path: Path) -> None:
    clicks = tmp_path / "clicks"
    clicks.mkdir()
    row = {"instruction": "press", "point": [3, 4], "img_filename": "a.png", "img_size": [9, 9]}
    (clicks / "pairs.jsonl").write_text(json.dumps(row) + "\n", "utf-8")
    (clicks / "settings.json").write_text('{"a": 1}', "utf-8")
    assert infer_source(clicks).type == "screenspot"
    pro = tmp_path / "pro"
    (pro / "annotations").mkdir(parents=True)
    (pro / "README.md").write_text("# rows", "utf-8")
    (pro / "annotations" / "cad.json").write_text(json.dumps([row]), "utf-8")
    assert infer_source(pro).type == "screenspot"
    words, known = source_words([str(pro), "data.train.limit=1"])
    assert known and words == [
        "data.train.type=screenspot", f"data.train.path={pro}", "data.train.limit=1",
    ]  # fmt: skip
    assert resolve_words(words).config.data.train.type == "screenspot"


def test_a_folder_that_nothing_is_known_of_is_still_one(tmp_path: Path) -> None:
    words, known = source_words([str(tmp_path), "data.train.index=mine.csv"])
    assert known and words[0] == "data.train.type=folder"
    assert source_words(["scenes"]) == (["scenes"], False)
    with pytest.raises(InputError, match="no such file or folder"):
        source_words([str(tmp_path / "none.json")])

"""Building grounding rows: splits, copies, what is refused, and that a kill leaves nothing half."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from PIL import Image

from saccade.config.errors import InputError
from saccade.config.schema import ScenesSource
from saccade.config.screens import GroundingFilesSource, ScreenSpotSource, ScreensSource
from saccade.data.boxes import Box
from saccade.data.images import load_image
from saccade.data.samples import DataError
from saccade.data.screens.built import BuiltRows
from saccade.data.screens.prepare import FirstLook, Wanted, build_grounding, shared_out
from saccade.data.screens.splits import SPLITS, Shares, pixels_hash, split_of
from saccade.data.sources import infer_source, open_source
from tests.screen_files import folder, picture, v1_row

LOOK = FirstLook(min_pixels=1024, max_pixels=12_288, cell_pixels=16)
NAMES = [f"{number}.png" for number in range(24)]


def many(path: Path, *, per_picture: int = 2) -> Path:
    """24 pictures with odd boxes, whose shares need every digit of a float."""
    rows = [
        v1_row(name, bbox=(place + 1 / 3, 7.1 * place, 10.7 + number / 7, 9.3), data_type="text")
        for number, name in enumerate(NAMES)
        for place in range(per_picture)
    ]
    return folder(path, rows, pictures=NAMES)


def build(*paths: Path, out: Path, **wanted: Any) -> dict[str, Any]:
    sources = [ScreenSpotSource(type="screenspot", path=path) for path in paths]
    return build_grounding(sources, out=out, wanted=Wanted(look=LOOK, **wanted))


def rows_of(out: Path, *, splits: Sequence[str] = SPLITS) -> list[dict[str, Any]]:
    return [
        row for split in splits
        for row in pyarrow.parquet.read_table(out / f"{split}.parquet").to_pylist()
    ]  # fmt: skip


def content(path: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in sorted(path.rglob("*")) if file.is_file()
    }  # fmt: skip


def test_rows_come_back_bit_by_bit(tmp_path: Path) -> None:
    place = many(tmp_path / "in")
    build(place, out=tmp_path / "out", shares=Shares(50, 20, 30))
    before = {one.id: one for one in map(open_source(infer_source(place)).__getitem__, range(48))}
    seen = 0
    for split in SPLITS:
        rows = BuiltRows(GroundingFilesSource(type="grounding", path=tmp_path / "out", split=split))
        for position in range(len(rows)):
            sample = rows[position]
            source = before[sample.id]
            assert sample.facts["box"] == source.facts["box"]  # every bit of every float
            for name in ("platform", "element", "size", "source"):
                assert sample.facts[name] == source.facts[name]
            assert (sample.question, sample.kind) == (source.question, "point")
            one, two = (
                load_image(sample.images[0], where=""),
                load_image(source.images[0], where=""),
            )
            assert one.tobytes() == two.tobytes()
            seen += 1
        assert len(rows.groups()) * 2 == len(rows)
    assert seen == 48


def test_rows_hold_prompts_as_chat_and_paths_that_travel(tmp_path: Path) -> None:
    place = many(tmp_path / "in")
    build(place, out=tmp_path / "out")
    for row in rows_of(tmp_path / "out"):
        message = json.loads(row["prompt"])[0]
        assert message["role"] == "user"
        assert [part["type"] for part in message["content"]] == ["image", "text"]
        assert message["content"][1]["text"] == row["instruction"]
        assert not Path(row["image"]).is_absolute() and (tmp_path / "out" / row["image"]).is_file()
    assert str(tmp_path) not in (tmp_path / "out" / "manifest.json").read_text()
    moved = tmp_path / "elsewhere"
    (tmp_path / "out").rename(moved)
    rows = BuiltRows(GroundingFilesSource(type="grounding", path=moved / "test.parquet"))
    assert load_image(rows[0].images[0], where="").size == (200, 100)


def test_difficulty_is_the_targets_size_at_the_first_look() -> None:
    # 768 x 576 pixels are shown as 128 x 96: a sixth of each side
    box = Box.from_pixels(0, 0, 24, 54, size=(768, 576))
    assert LOOK.difficulty(box, size=(768, 576)) == pytest.approx((24 * 54) ** 0.5 / 6)


def test_a_screenshot_is_in_one_split_whatever_its_file_is_called(tmp_path: Path) -> None:
    place = many(tmp_path / "in")
    again = folder(tmp_path / "again", [v1_row(name) for name in NAMES], pictures=[])
    for number, name in enumerate(NAMES):  # the same pixels in other files and another format
        with Image.open(place / "images" / name) as one:
            picture(again / "images" / name).write_bytes(b"")
            one.save(again / "images" / name, format="BMP" if number % 2 else "PNG")
    build(place, again, out=tmp_path / "out", shares=Shares(50, 20, 30))
    rows = rows_of(tmp_path / "out")
    assert len(rows) == 72 and len({row["pixels_sha256"] for row in rows}) == 24
    places = {(row["pixels_sha256"], row["split"]) for row in rows}
    assert len(places) == 24
    assert {row["split"] for row in rows} == set(SPLITS)
    assert len({row["image"] for row in rows}) == 24
    assert len({row["id"] for row in rows}) == 72


def test_splits_follow_their_shares_and_nothing_else(tmp_path: Path) -> None:
    hashes = [pixels_hash(Image.new("RGB", (8, 8), (n % 256, n // 256, 0))) for n in range(4000)]
    found = [split_of(one, shares=Shares()) for one in hashes]
    for split, share in zip(SPLITS, (0.75, 0.05, 0.2), strict=True):
        assert found.count(split) / 4000 == pytest.approx(share, abs=0.02)
    everything = [split_of(one, shares=Shares(0, 0, 1)) for one in hashes]
    assert set(everything) == {"test"}
    place = many(tmp_path / "in")
    build(place, out=tmp_path / "a")
    build(place, out=tmp_path / "b", max_samples=10)
    assert {(row["id"], row["split"]) for row in rows_of(tmp_path / "b")} <= {
        (row["id"], row["split"]) for row in rows_of(tmp_path / "a")
    }


@pytest.mark.parametrize("text", ["75/25", "a/b/c", "1/-1/1", "0/0/0", "", "1/2/nan"])
def test_shares_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="--shares"):
        Shares.read(text)


def test_sources_share_the_rows_and_leave_what_they_have_not() -> None:
    assert shared_out([10, 10, 10], most=9) == [3, 3, 3]
    assert shared_out([1, 10, 10], most=9) == [1, 4, 4]
    assert shared_out([1, 2], most=9) == [1, 2]
    assert shared_out([5, 5], most=1) == [1, 0]


def test_no_more_rows_than_wanted_are_built(tmp_path: Path) -> None:
    build(many(tmp_path / "in"), out=tmp_path / "out", max_samples=7)
    rows = rows_of(tmp_path / "out")
    assert len(rows) == 7
    assert len(list((tmp_path / "out" / "images").iterdir())) == 4


def test_a_second_build_of_the_same_changes_nothing(tmp_path: Path) -> None:
    place = many(tmp_path / "in")
    first = build(place, out=tmp_path / "out")
    before = content(tmp_path / "out")
    second = build(place, out=tmp_path / "out")
    assert (first["built"], second["built"]) == (True, False)
    assert content(tmp_path / "out") == before
    build(place, out=tmp_path / "other")
    assert content(tmp_path / "other") == before
    assert not list(tmp_path.glob(".*"))


def test_another_build_at_the_same_place_is_refused(tmp_path: Path) -> None:
    place = many(tmp_path / "in")
    build(place, out=tmp_path / "out", shares=Shares(50, 20, 30))
    before = content(tmp_path / "out")
    with pytest.raises(InputError, match="built otherwise; different: max_samples, shares"):
        build(place, out=tmp_path / "out", max_samples=3, shares=Shares(1, 1, 1))
    picture(place / "images" / NAMES[0], color="red")
    with pytest.raises(InputError, match="different: sources"):
        build(place, out=tmp_path / "out")
    assert content(tmp_path / "out") == before


def test_a_folder_of_something_else_is_refused_and_not_touched(tmp_path: Path) -> None:
    place = many(tmp_path / "in")
    (tmp_path / "out").mkdir()
    build(place, out=tmp_path / "out")  # an empty folder is fine
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(InputError, match=r"holds notes\.txt, which this command did not write"):
        build(place, out=tmp_path / "mine")
    with pytest.raises(InputError, match="this is a file"):
        build(place, out=tmp_path / "mine" / "notes.txt")
    (tmp_path / "out" / "train.parquet").write_bytes(b"x")
    with pytest.raises(InputError, match=r"train\.parquet: missing or not as it was written"):
        build(place, out=tmp_path / "out")


@pytest.mark.parametrize("layout", ["v1", "v2", "pro"])
def test_a_benchmark_is_refused_unless_insisted_on(tmp_path: Path, layout: str) -> None:
    row = v1_row("web_213f816e-8e80-4d13-970d-1347bbc7a2a8.png")
    names = {"v1": "x.json", "v2": "screenspot_web_v2.json", "pro": "x.json"}
    if layout == "pro":
        row |= {"application": "vscode", "ui_type": "icon", "bbox": [10, 10, 20, 20]}
    place = folder(tmp_path / "b", [row], file=names[layout], pictures=[row["img_filename"]])
    with pytest.raises(InputError, match=r"public benchmark.*\n  fix: .*--allow-benchmark"):
        build(place, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    result = build(place, out=tmp_path / "out", allow_benchmark=True)
    name = {"v1": "ScreenSpot", "v2": "ScreenSpot-v2", "pro": "ScreenSpot-Pro"}[layout]
    assert result["benchmarks"] == [name]
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["benchmarks"] == [name]
    again = GroundingFilesSource(type="grounding", path=tmp_path / "out", split=only(tmp_path))
    with pytest.raises(InputError, match="public benchmark"):  # laundered through a build
        build_grounding([again], out=tmp_path / "third", wanted=Wanted(look=LOOK))


def only(tmp_path: Path) -> Any:
    (row,) = rows_of(tmp_path / "out")
    return row["split"]


def test_broken_rows_stop_the_build_or_are_left_out_and_counted(tmp_path: Path) -> None:
    place = many(tmp_path / "in")
    (place / "images" / NAMES[3]).write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"screenspot\.json, row .*\n  fix: .*data\.on_error=skip"):
        build(place, out=tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))
    result = build(place, out=tmp_path / "out", skip_broken=True)
    assert result["left_out"] == len(result["broken"]) == 2
    assert "not an image" in result["broken"][0]
    assert len(rows_of(tmp_path / "out")) == 46


def test_sources_without_places_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data\.train\.type=scenes: its rows name no place"):
        build_grounding([ScenesSource()], out=tmp_path / "out", wanted=Wanted(look=LOOK))


def test_click_points_are_kept_without_a_box(tmp_path: Path) -> None:
    row = {"image": "images/a.png", "size": [200, 100], "instruction": "press", "point": [50, 25]}
    place = folder(tmp_path / "in", [row], file="pairs.jsonl")
    build(place, out=tmp_path / "out", shares=Shares(1, 0, 0))
    rows = BuiltRows(GroundingFilesSource(type="grounding", path=tmp_path / "out"))
    assert rows[0].facts["box"] is None and rows[0].facts["point"] == (0.25, 0.25)
    with pytest.raises(InputError, match=r"test\.parquet: there are no rows"):
        BuiltRows(GroundingFilesSource(type="grounding", path=tmp_path / "out", split="test"))


def test_generated_pages_keep_tree_and_loading_picture(tmp_path: Path) -> None:
    source = ScreensSource(
        type="screens", screens=3, targets=2, renderer="drawn", loading_share=1.0,
        cache=tmp_path / "cache",
    )  # fmt: skip
    wanted = Wanted(look=LOOK, shares=Shares(1, 0, 0))
    build_grounding([source], out=tmp_path / "out", wanted=wanted)
    before = open_source(source)
    rows = open_source(GroundingFilesSource(type="grounding", path=tmp_path / "out"))
    known = {one.id: one for one in map(before.__getitem__, range(len(before)))}
    assert len(rows) == len(known) > 3
    for position in range(len(rows)):
        sample = rows[position]
        source_facts = known[sample.id].facts
        for name in ("box", "tree", "loading_tree", "platform", "element", "size"):
            assert sample.facts[name] == source_facts[name]
        one, two = sample.facts["loading"], source_facts["loading"]
        assert load_image(one, where="").tobytes() == load_image(two, where="").tobytes()


def test_no_built_page_is_a_page_of_another_splits_stream(tmp_path: Path) -> None:
    source = ScreensSource(
        type="screens", screens=12, targets=2, renderer="drawn", cache=tmp_path / "cache"
    )
    wanted = Wanted(look=LOOK, shares=Shares(50, 25, 25), max_samples=24)
    build_grounding([source], out=tmp_path / "out", wanted=wanted)
    pixels: dict[str, set[str]] = {}
    for split in SPLITS:
        stream = open_source(source.model_copy(update={"split": split}))
        pages = [stream[group[0]].images[0] for group in stream.groups()]
        pixels[split] = {pixels_hash(load_image(page, where="")) for page in pages}
    for split in SPLITS:
        rows = rows_of(tmp_path / "out", splits=[split])
        assert rows and {row["split"] for row in rows} == {split}
        assert {row["pixels_sha256"] for row in rows} <= pixels[split]
        for other in set(SPLITS) - {split}:
            assert not {row["pixels_sha256"] for row in rows} & pixels[other]
    assert len(rows_of(tmp_path / "out")) <= 24


def test_things_are_shared_out_by_shares_without_loss() -> None:
    assert Shares().counts(800) == {"train": 600, "validation": 40, "test": 160}
    for total in range(30):
        assert sum(Shares(1, 1, 1).counts(total).values()) == total
    assert Shares(1, 0, 0).counts(7) == {"train": 7, "validation": 0, "test": 0}


def test_rows_say_who_needs_a_zoom_where_the_column_was_added(tmp_path: Path) -> None:
    build(many(tmp_path / "in"), out=tmp_path / "out", shares=Shares(100, 0, 0))
    file = tmp_path / "out" / "train.parquet"
    source = GroundingFilesSource(type="grounding", path=file)
    assert "needs_zoom" not in BuiltRows(source)[0].facts
    table = pyarrow.parquet.read_table(file)

    def added(values: list[Any]) -> None:
        told = (values * table.num_rows)[: table.num_rows]
        pyarrow.parquet.write_table(table.append_column("needs_zoom", [told]), file)

    added([True, None, False])
    rows = BuiltRows(source)
    assert [rows[i].facts.get("needs_zoom") for i in range(3)] == [True, None, False]
    added(["yes"])
    with pytest.raises(InputError, match="write it as booleans"):
        BuiltRows(source)


def test_a_built_picture_that_changed_is_named(tmp_path: Path) -> None:
    place = many(tmp_path / "in")
    build(place, out=tmp_path / "out")
    one = min((tmp_path / "out" / "images").iterdir())
    whole = one.read_bytes()
    one.write_bytes(whole[:-20])
    with pytest.raises(InputError, match=f"{one.name}: missing or not as it was written"):
        build(place, out=tmp_path / "out")
    one.unlink()
    with pytest.raises(InputError, match=f"{one.name}: missing or not as it was written"):
        build(place, out=tmp_path / "out")


def test_a_place_where_no_folder_can_be_put_is_refused_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = many(tmp_path / "in")
    (tmp_path / "here").mkdir()
    (tmp_path / "file").write_text("x")
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(InputError, match=r"here: the command runs in this folder.*\n  fix: "):
        build(place, out=Path())
    with pytest.raises(InputError, match=r"sub: cannot be written \(.*\)\n  fix: "):
        build(place, out=tmp_path / "file" / "sub")
    build(place, out=Path("sub"))
    assert (tmp_path / "here" / "sub" / "manifest.json").is_file()


def test_files_that_were_not_built_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"train\.parquet: no such file\n  fix: build it with"):
        BuiltRows(GroundingFilesSource(type="grounding", path=tmp_path))
    (tmp_path / "train.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="not a readable parquet file"):
        BuiltRows(GroundingFilesSource(type="grounding", path=tmp_path))
    pyarrow.parquet.write_table(pyarrow.table({"id": ["a"]}), tmp_path / "train.parquet")
    with pytest.raises(InputError, match="no column 'prompt'"):
        BuiltRows(GroundingFilesSource(type="grounding", path=tmp_path))


KILLED = """
import sys, time
from pathlib import Path
from saccade.config.screens import ScreenSpotSource
from saccade.data.screens import prepare
keep = prepare._keep
def slow(*args, **keys):
    print("kept", flush=True)
    time.sleep(0.05)
    return keep(*args, **keys)
prepare._keep = slow
look = prepare.FirstLook(min_pixels=1024, max_pixels=12288, cell_pixels=16)
source = ScreenSpotSource(type="screenspot", path=Path(sys.argv[1]))
prepare.build_grounding([source], out=Path(sys.argv[2]), wanted=prepare.Wanted(look=look))
"""


def test_a_killed_build_leaves_nothing_at_the_place_and_the_next_one_is_whole(
    tmp_path: Path,
) -> None:
    place = many(tmp_path / "in")
    command = [sys.executable, "-c", KILLED, str(place), str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ}) as process:
        assert process.stdout is not None
        for _ in range(4):
            assert process.stdout.readline()
        with pytest.raises(InputError, match="another process is building here"):
            build(place, out=tmp_path / "out")
        process.send_signal(signal.SIGKILL)
    time.sleep(0.05)
    assert not (tmp_path / "out").exists()
    assert (tmp_path / ".out.building").is_dir()
    build(place, out=tmp_path / "out")
    assert not (tmp_path / ".out.building").exists()
    build(place, out=tmp_path / "unbroken")
    assert content(tmp_path / "out") == content(tmp_path / "unbroken")

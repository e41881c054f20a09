"""The check names every broken row and goes on; the figures are those one counts by hand."""

from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from saccade.config.errors import InputError, OutsideError
from saccade.config.schema import FolderSource, JsonlSource, ScenesSource
from saccade.data.check import check_source, render_report, show_samples
from saccade.data.statistics import visual_tokens


def huge_png() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IEND", b"")


def noise_png(*, width: int = 64, height: int = 48) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def row(image: object, *, question: object = "what?", answer: object = "x", **more: object) -> dict:
    return {"image": image, "question": question, "answer": answer, **more}


@pytest.fixture
def broken(tmp_path: Path) -> JsonlSource:
    """Ten rows, nine of them broken, each in its own way."""
    (tmp_path / "good.png").write_bytes(noise_png())
    (tmp_path / "cut.png").write_bytes(noise_png()[:3000])
    (tmp_path / "huge.png").write_bytes(huge_png())
    (tmp_path / "long.png").write_bytes(noise_png(width=804, height=4))
    rows = [
        row("good.png", id="a"),
        row("cut.png", id="b"),
        row("lost.png", id="c"),
        row("huge.png", id="d"),
        row("good.png", id="e", question=" "),
        row("good.png", id="f", answer=""),
        row("good.png", id="a"),
        row("long.png", id="h"),
        row("good.png", id="i", question=3),
    ]
    lines = [*map(json.dumps, rows), '{"image": ']
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    return JsonlSource(type="jsonl", path=tmp_path / "rows.jsonl")


def test_every_broken_row_is_named_and_the_check_goes_on(broken: JsonlSource) -> None:
    seen: list[tuple[int, int]] = []
    report = check_source(broken, progress=lambda done, rows: seen.append((done, rows)))
    expected = [
        (2, "b", "truncated or damaged"),
        (3, "c", "does not exist"),
        (4, "d", "20000 x 20000"),
        (5, "e", "the question is empty"),
        (6, "f", "the answer is empty"),
        (7, "a", "the id 'a' is also that of row 1"),
        (8, "h", "804 x 4"),
        (9, "i", "the question is a number"),
        (10, "", "JSON syntax error"),
    ]
    for problem, (number, name, words) in zip(report.problems, expected, strict=True):
        assert (problem.row, problem.id) == (number, name)
        assert words in problem.problem
        assert problem.fix
    assert not report.ok
    assert (report.rows, report.rows_ok) == (10, 1)
    assert seen == [(n, 10) for n in range(1, 11)]


def test_one_row_may_have_several_problems_and_a_shared_image_breaks_each_of_its_rows(
    tmp_path: Path,
) -> None:
    rows = [row(["no.png", "nor.png"], id=1), row("no.png", id=1)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    report = check_source(JsonlSource(type="jsonl", path=tmp_path / "rows.json"))
    assert [problem.row for problem in report.problems] == [1, 1, 2, 2]
    assert report.rows_ok == 0


def test_a_file_of_broken_lines_only_is_reported_line_by_line(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("{\n{\n")
    report = check_source(JsonlSource(type="jsonl", path=tmp_path / "rows.jsonl"))
    assert [problem.row for problem in report.problems] == [1, 2]


def test_the_report_prints_and_turns_into_json(broken: JsonlSource) -> None:
    report = check_source(broken)
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(render_report(report, most=2))
    text = console.export_text()
    assert "10 rows, 1 sound, 9 problems" in text
    assert "and 7 more" in text
    data = json.loads(json.dumps(report.to_json()))
    assert data["ok"] is False
    assert data["problems"][0]["id"] == "b"
    assert data["statistics"]["distinct_images"] == 1


def test_statistics_are_those_counted_by_hand(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(noise_png(width=64, height=64))
    (tmp_path / "b.png").write_bytes(noise_png(width=128, height=64))
    rows = [
        row("a.png", answer="Red", kind="color"),
        row("a.png", answer="red", kind="color"),
        row("b.png", answer="blue", kind="color"),
        row(None, answer="3", kind="count"),
    ]
    (tmp_path / "index.json").write_text(json.dumps(rows))
    report = check_source(
        FolderSource(type="folder", path=tmp_path),
        min_pixels=16 * 16,
        max_pixels=512 * 512,
        cell_pixels=16,
    )
    assert report.ok
    found = report.statistics
    assert found["kinds"] == {"color": 3, "count": 1}
    assert found["majority"]["color"] == {"answer": "red", "share": 0.6667}
    assert found["majority_share"] == 0.75
    assert found["top_answers"] == {"red": 2, "blue": 1, "3": 1}
    assert found["images_per_row"] == {"0": 1, "1": 3}
    assert found["distinct_images"] == 2
    assert found["visual_tokens_per_image"]["p0"] == 16
    assert found["visual_tokens_per_image"]["p100"] == 32


def test_visual_tokens_equal_the_processors_own_resize_rule() -> None:
    resize = pytest.importorskip(
        "transformers.models.qwen2_vl.image_processing_pil_qwen2_vl"
    ).smart_resize
    rng = np.random.default_rng(0)
    for _ in range(300):
        width, height = (int(side) for side in rng.integers(9, 1700, 2))
        if max(width, height) > 200 * min(width, height):
            continue
        cell = int(rng.choice([16, 28, 32]))
        low, high = cell * cell * 4, cell * cell * int(rng.integers(8, 2000))
        rows_px, columns_px = resize(height, width, factor=cell, min_pixels=low, max_pixels=high)
        tokens = visual_tokens((width, height), cell_pixels=cell, min_pixels=low, max_pixels=high)
        assert tokens == (rows_px // cell) * (columns_px // cell)


def test_generated_scenes_pass_the_check_and_limit_stops_early() -> None:
    report = check_source(ScenesSource(scenes=5, questions=4), limit=6, cell_pixels=16)
    assert report.ok
    assert report.rows == 6
    assert report.statistics["distinct_images"] == 2


def test_one_thread_and_four_give_the_same_report(broken: JsonlSource) -> None:
    assert check_source(broken, threads=1) == check_source(broken, threads=4)


def test_samples_are_shown_as_rows_and_as_a_picture(tmp_path: Path) -> None:
    out = tmp_path / "new" / "sheet.png"
    rows = show_samples(ScenesSource(scenes=3, questions=2), indices=[0, 5], out=out)
    assert [item["index"] for item in rows] == [0, 5]
    assert rows[0]["question"].endswith("?")
    with Image.open(out) as sheet:
        outline = (np.asarray(sheet.convert("RGB")) == (230, 0, 90)).all(-1)
    assert outline.any()  # the cells that carry the answer


def test_a_broken_row_is_shown_as_such(broken: JsonlSource, tmp_path: Path) -> None:
    rows = show_samples(broken, limit=10, out=tmp_path / "sheet.png")
    assert [item["index"] for item in rows] == list(range(10))
    assert "truncated" in rows[1]["problem"]
    assert "problem" not in rows[0]


def test_an_index_outside_and_a_folder_that_cannot_be_written_are_named(
    broken: JsonlSource, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="use 0 to 9"):
        show_samples(broken, indices=[10])
    with pytest.raises(OutsideError, match="cannot be written"):
        show_samples(broken, limit=1, out=tmp_path / "rows.jsonl" / "sheet.png")

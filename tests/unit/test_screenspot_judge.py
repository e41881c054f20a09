"""The public judge of ScreenSpot-Pro: its verdicts, its accuracies, and what it must not score."""

from __future__ import annotations

import copy
import io
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from saccade.cli_eval import evaluate
from saccade.config.errors import InputError
from saccade.data.samples import DataError
from saccade.scoring.screenspot import judge_screenspot_file, public_verdict, screenspot_table


def row(
    verdict: str, *, pred: Any, bbox: Any = (100, 200, 140, 220), **more: Any
) -> dict[str, Any]:
    """A prediction as the public script writes it."""
    return {
        "img_path": "images/vscode_macos/a.png", "group": "Dev", "platform": "macos",
        "application": "vscode", "lang": "en", "instruction_style": "instruction",
        "prompt_to_evaluate": "press it", "gt_type": "positive", "ui_type": "text",
        "task_filename": "vscode_macos", "pred": pred, "raw_response": "(0.1, 0.2)",
        "bbox": list(bbox), "correctness": verdict, **more,
    }  # fmt: skip


def published() -> dict[str, Any]:
    """A hand-made file with every kind of verdict; its accuracies are counted by hand."""
    blender = {"application": "blender", "platform": "windows", "group": "Creative",
               "ui_type": "icon"}  # fmt: skip
    details = [
        row("correct", pred=[120.0, 210.0]),
        row("correct", pred=[100.0, 200.0]),  # left upper corner
        row("correct", pred=[140.0, 220.0]),  # right lower corner: the judge is closed there
        row("wrong", pred=[140.5, 210.0]),
        row("wrong_format", pred=None, raw_response="I cannot see it"),
        row("correct", pred=[51.0, 11.0], bbox=[50, 10, 52, 12], **blender),
        row("wrong", pred=[2000.0, 11.0], bbox=[50, 10, 52, 12], **blender),
        row("wrong", pred=[49.9, 11.0], bbox=[50, 10, 52, 12], **blender),
    ]
    code = {"num_correct_action": 3, "num_total": 5, "wrong_format_num": 1, "action_acc": 0.6,
            "text_acc": 0.6, "icon_acc": 0}  # fmt: skip
    art = {"num_correct_action": 1, "num_total": 3, "wrong_format_num": 0, "action_acc": 1 / 3,
           "text_acc": 0, "icon_acc": 1 / 3}  # fmt: skip
    both = {"num_correct_action": 4, "num_total": 8, "wrong_format_num": 1, "action_acc": 0.5,
            "text_acc": 0.6, "icon_acc": 1 / 3}  # fmt: skip
    end = "inst_style:instruction gt_type:positive"
    metrics = {
        "fine_grained": {
            f"plat:macos app:vscode {end}": code, f"plat:windows app:blender {end}": art,
        },
        "seeclick_style": {f"plat:macos {end}": code, f"plat:windows {end}": art},
        "leaderboard_simple_style": {"group:Dev": code, "group:Creative": art},
        "leaderboard_detailed_style": {"app:vscode": code, "app:blender": art},
        "overall": both,
    }  # fmt: skip
    return {"details": details, "metrics": metrics}


def written(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_verdicts_and_accuracies_of_a_published_file_are_reproduced(tmp_path: Path) -> None:
    content = published()
    result = judge_screenspot_file(written(tmp_path / "p.json", content))
    assert result["verdicts"] == {"correct": 4, "wrong": 3, "wrong_format": 1}
    assert result["differences"] == [] and result["stored_verdicts"] == 8
    assert result["metrics"] == content["metrics"]
    assert result["metrics_equal"] is True
    assert result["edge_only"] == 1
    assert result["by"]["platform"]["windows"] == {"rows": 3, "accuracy": 1 / 3}
    assert set(result["by"]) == {"ui_type", "platform", "group", "application"}


def test_a_bare_list_of_predictions_is_judged_too(tmp_path: Path) -> None:
    rows = [{k: v for k, v in one.items() if k != "correctness"} for one in published()["details"]]
    result = judge_screenspot_file(written(tmp_path / "p.json", rows))
    assert result["accuracy"] == 0.5
    assert (result["stored_verdicts"], result["metrics_equal"]) == (0, None)


def test_another_verdict_in_the_file_is_told(tmp_path: Path) -> None:
    content = published()
    content["details"][7]["correctness"] = "correct"
    result = judge_screenspot_file(written(tmp_path / "p.json", content))
    where = f"{tmp_path / 'p.json'}, row 8 of details"
    assert result["differences"] == [{"where": where, "stored": "correct", "ours": "wrong"}]
    content["metrics"]["overall"]["action_acc"] = 0.625
    result = judge_screenspot_file(written(tmp_path / "p.json", content))
    assert result["metrics_equal"] is False
    console = Console(record=True, width=300, file=io.StringIO())
    console.print(screenspot_table(result))
    text = console.export_text()
    assert "the file says correct, we say wrong" in text and "NOT those in the file" in text


def reference(point: list[float] | None, bbox: Sequence[float], size: tuple[int, int]) -> str:
    """The public rule, told apart from our code: shares of the picture, all edges included."""
    if point is None:
        return "wrong_format"
    x1, y1, x2, y2 = (edge / size[axis % 2] for axis, edge in enumerate(bbox))
    return "correct" if x1 <= point[0] <= x2 and y1 <= point[1] <= y2 else "wrong"


def test_many_verdicts_equal_those_made_from_shares_even_on_the_edges(tmp_path: Path) -> None:
    draw = random.Random(0)
    details = []
    for _ in range(4000):
        size = (draw.randint(900, 6016), draw.randint(700, 3384))
        x, y = draw.randint(0, size[0] - 80), draw.randint(0, size[1] - 80)
        bbox = [x, y, x + draw.randint(1, 79), y + draw.randint(1, 79)]
        pixel = (draw.choice([bbox[0], bbox[2], x + 1, x - 1]), draw.choice([bbox[1], bbox[3]]))
        if draw.random() < 0.5:  # 0-1000, moved onto what the box's edge can be written as
            point = [
                round(1000 * pixel[0] / size[0]) / 1000,
                round(1000 * pixel[1] / size[1]) / 1000,
            ]
        else:
            point = [pixel[0] / size[0], pixel[1] / size[1]]
        shares = None if draw.random() < 0.05 else point
        pred = None if shares is None else [shares[0] * size[0], shares[1] * size[1]]
        details.append(row(reference(shares, bbox, size), pred=pred, bbox=bbox))
    result = judge_screenspot_file(written(tmp_path / "p.json", {"details": details}))
    assert result["differences"] == [] and result["stored_verdicts"] == 4000
    assert result["edge_only"] > 500
    assert min(result["verdicts"].values()) > 100


def test_a_group_without_a_name_holds_all_rows_as_in_the_public_script(tmp_path: Path) -> None:
    content = published()
    content["details"][0]["group"] = None
    groups = judge_screenspot_file(written(tmp_path / "p.json", content))["metrics"]
    assert groups["leaderboard_simple_style"]["group:None"] == groups["overall"]
    assert groups["leaderboard_simple_style"]["group:Dev"]["num_total"] == 4


def test_boxes_of_the_other_convention_are_refused_by_their_shape(tmp_path: Path) -> None:
    content = published()
    for one in content["details"]:
        x1, y1, x2, y2 = one["bbox"]
        one["bbox"] = [x1, y1, x2 - x1, y2 - y1]
    file = written(tmp_path / "p.json", content)
    with pytest.raises(InputError, match=r"row 1 of details: read as \[x1.*\n  fix: boxes=xywh"):
        judge_screenspot_file(file)
    result = judge_screenspot_file(file, boxes="xywh")
    assert result["differences"] == [] and result["metrics_equal"] is True


def test_boxes_of_the_other_convention_are_refused_by_the_files_verdicts(tmp_path: Path) -> None:
    file = written(tmp_path / "p.json", published())
    with pytest.raises(InputError, match=r"are not those of the file.*\n  fix: boxes=xyxy"):
        judge_screenspot_file(file, boxes="xywh")
    near = [row("wrong", pred=[95.0, 30.0], bbox=[10, 10, 90, 40]),
            row("correct", pred=[95.0, 45.0], bbox=[10, 10, 90, 40])]  # fmt: skip
    with pytest.raises(InputError, match=r"fix: boxes=xywh"):
        judge_screenspot_file(written(tmp_path / "q.json", [near[1]]))
    assert judge_screenspot_file(written(tmp_path / "q.json", [near[0]]))["differences"] == []


def test_sizes_of_screens_in_the_rows_tell_the_convention(tmp_path: Path) -> None:
    plain = copy.deepcopy(published()["details"][:1])
    plain[0].update(img_size=[200, 300], correctness=None)
    with pytest.raises(InputError, match=r"leaves its picture of 200 x 300.*\n  fix: boxes=xyxy"):
        judge_screenspot_file(written(tmp_path / "p.json", plain), boxes="xywh")


def test_points_in_shares_are_not_scored_as_pixels(tmp_path: Path) -> None:
    rows = [row("correct", pred=[0.1, 0.2]), row("wrong", pred=[0.9, 0.2])]
    with pytest.raises(InputError, match="pred are shares of the screenshot"):
        judge_screenspot_file(written(tmp_path / "p.json", rows))


@pytest.mark.parametrize("pred", ["[1, 2]", [1, 2, 3], [1, None], [True, 2], {"x": 1}])
def test_predictions_that_are_no_point_are_named(tmp_path: Path, pred: Any) -> None:
    with pytest.raises(DataError, match="row 1 of details: pred is"):
        judge_screenspot_file(written(tmp_path / "p.json", [row("wrong", pred=pred)]))


def test_other_files_are_refused(tmp_path: Path) -> None:
    for content, problem in (({"a": 1}, "no list of predictions"), ([], "no list of predictions"),
                             ([{"bbox": [1, 2, 3, 4]}], "with the key pred"),
                             ([row("wrong", pred=None, bbox=[1, 2])], "four numbers")):  # fmt: skip
        with pytest.raises(InputError, match=problem):
            judge_screenspot_file(written(tmp_path / "p.json", content))
    (tmp_path / "p.json").write_text("{")
    with pytest.raises(InputError, match="JSON syntax error"):
        judge_screenspot_file(tmp_path / "p.json")
    with pytest.raises(InputError, match="no such file"):
        judge_screenspot_file(tmp_path / "none.json")


def test_rows_where_nothing_is_to_be_found_keep_their_verdict(tmp_path: Path) -> None:
    negative = {k: v for k, v in row("correct", pred=None).items() if k != "bbox"}
    negative["gt_type"] = "negative"
    file = written(tmp_path / "p.json", [row("wrong", pred=[1.0, 1.0]), negative])
    assert judge_screenspot_file(file)["verdicts"] == {"correct": 1, "wrong": 1, "wrong_format": 0}


def test_numbers_that_are_none_never_hit() -> None:
    for point in ([float("nan"), 210.0], [120.0, float("inf")]):
        assert public_verdict(point=point, edges=(100, 200, 140, 220)) == ("wrong", False)


@pytest.mark.parametrize(
    "beside", [{"limit": 3}, {"overrides": ["eval.samples=3"]}, {"rejudge": True},
               {"screens": Path("screens")}, {"arm": "full"}],
)  # fmt: skip
def test_options_that_the_judge_does_not_heed_are_refused(beside: dict[str, Any]) -> None:
    name = next(iter(beside))
    with pytest.raises(InputError, match=rf"--judge: (--)?{name} would change nothing"):
        evaluate("predictions.json", judge="screenspot-pro", **beside)


def test_the_meaning_of_boxes_is_refused_where_no_boxes_are_read() -> None:
    with pytest.raises(InputError, match="--boxes belongs to --judge or --screens"):
        evaluate("runs/toy", boxes="xyxy")

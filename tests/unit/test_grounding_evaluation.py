"""Scoring a grounding run: stored episodes are judged from what they wrote, arms are compared on
the same targets, and a run is evaluated, compared and judged again end to end."""

from __future__ import annotations

import functools
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from saccade.config.errors import InputError
from saccade.config.screens import ScreensSource
from saccade.data.boxes import Box
from saccade.data.samples import DataError
from saccade.data.sources import open_source
from saccade.evaluation import grounding_compare
from saccade.evaluation.compare import compare_run
from saccade.evaluation.grounding import (
    evaluate_grounding,
    load_policy,
    read_rows,
    row_of_episode,
    screens_name,
)
from saccade.evaluation.grounding_arms import Rolled, compare_arms, gates_of
from saccade.evaluation.grounding_compare import Rollouts, episodes_key, small_side, two_sources
from saccade.evaluation.grounding_rows import Scored, chance_near, scored, summarise
from saccade.evaluation.load import no_progress
from saccade.evaluation.records import write_json
from saccade.evaluation.run import evaluate_run, rejudge
from saccade.evaluation.table import compared, scores
from saccade.grounding.confidence import brier, ece
from saccade.grounding.episodes import task_of
from saccade.grounding.rollouts import first_answers
from saccade.training.recipes.grounding_demos import drawn_window
from saccade.training.rundir import RunDir
from tests.grounding_example import TARGET, rolled, row
from tests.grounding_policy import untrained_run
from tests.screen_files import folder as screen_folder
from tests.screen_files import v1_row

BESIDE = Path(__file__).resolve().parents[3] / "shared" / "data"
SHARED = Path(os.environ.get("SACCADE_SHARED_DATA", BESIDE)) / "gui"


def compared_arms(*, test: int = 0, small_below: float = 28 / 6) -> dict[str, Any]:
    return compare_arms(rolled(test), rolled(1), small_below=small_below, prices=[0.1])


result = functools.cache(compared_arms)
"""The same, made once: tests only read it."""


# one episode ------------------------------------------------------------------------------------


def test_a_hit_is_judged_from_the_text_and_not_from_what_the_row_claims() -> None:
    assert scored(row(hit=False)).hit is True
    assert scored(row(answered=Box(0.6, 0.6, 0.7, 0.7), hit=True)).hit is False


def test_an_answer_on_a_crop_is_carried_back_to_the_screenshot() -> None:
    found = scored(row(zoomed=True))
    assert found.hit and found.zoomed and found.looks == 2
    assert found.point == pytest.approx(TARGET.center, abs=1e-3)
    assert found.pixels == 128 * 96 + 192 * 128 and found.first_pixels == 128 * 96


def test_an_answer_that_cannot_be_read_is_wrong_and_sure_of_nothing() -> None:
    found = scored(row(answered=None))
    assert found.hit is False and found.confidence is None and found.answer_side is None


def test_sides_are_in_pixels_of_the_first_look() -> None:
    found = scored(row())
    assert found.side == pytest.approx((12.8 * 9.6) ** 0.5)
    assert found.bucket == "8-16"


def test_a_target_known_by_a_point_is_near_or_not_and_never_hit() -> None:
    near = scored(row(target=None, target_point=[0.5, 0.5]))
    assert near.hit is None and near.near is True and near.bucket == "unknown"
    far = scored(row(target=None, target_point=[0.9, 0.9]))
    assert far.near is False


def test_the_chance_to_come_near_is_the_area_of_the_disc_that_lies_on_the_screen() -> None:
    assert chance_near((0.5, 0.5)) == pytest.approx(np.pi * 0.14**2, rel=0.02)
    assert chance_near((0.0, 0.0)) == pytest.approx(np.pi * 0.14**2 / 4, rel=0.05)


def test_a_row_that_lacks_a_field_is_refused() -> None:
    broken = row()
    del broken["views"]
    with pytest.raises(DataError, match="views"):
        scored(broken)


def test_a_summary_counts_ends_and_stands_beside_clicking_at_random() -> None:
    rows = [row("p-0"), row("p-1", zoomed=True), row("p-2", answered=None),
            row("p-3", answered=Box(0.6, 0.6, 0.7, 0.7)),
            row("p-4", target=None, target_point=[0.5, 0.5])]  # fmt: skip
    found = summarise([scored(one) for one in rows])
    assert found["samples"] == 5 and found["accuracy"] == 0.5
    assert found["random"] == pytest.approx(0.01)
    assert found["finishes"] == {"answered": 4, "unreadable": 1}
    assert found["iou"]["share"] == 0.5 and found["iou"]["samples"] == 4
    assert found["zoom_rate"]["share"] == 0.2 and found["looks"] == 1.2
    assert found["points"]["samples"] == 1 and found["points"]["share"] == 1.0
    assert found["kinds"] == {"icon": found["parts"]["element"]["icon"]}
    assert list(found["parts"]["size"]) == ["8-16", "unknown"]
    assert found["parts"]["size"]["unknown"]["accuracy"] is None


# arms -------------------------------------------------------------------------------------------


def test_gates_cost_what_the_learned_policy_costs_where_they_say_so() -> None:
    rows = {one["arm"]: one for one in result()["rows"]}
    for name in ("dispersion_equal", "confidence_equal", "size_equal", "random"):
        assert rows[name]["pixels"] == pytest.approx(rows["learned"]["pixels"])


def test_eight_passes_cost_seven_more_screenshots_and_decide_alike() -> None:
    rows = {one["arm"]: one for one in result()["rows"]}
    once, plain = rows["dispersion"], rows["dispersion_plain"]
    assert plain["pixels"] - once["pixels"] == pytest.approx(7 * 128 * 96)
    assert plain["accuracy"] == once["accuracy"]


def test_never_and_always_are_what_was_rolled_out_and_the_oracle_is_above_all() -> None:
    rows = {one["arm"]: one for one in result()["rows"]}
    test = rolled(0)
    assert rows["never"]["accuracy"] == np.mean([one.right for one in test.never])
    assert rows["always"]["accuracy"] == np.mean([one.right for one in test.always])
    assert rows["learned"]["accuracy"] == np.mean([one.right for one in test.free])
    on_pairs = [one for name, one in rows.items() if name != "learned"]
    assert max(one["accuracy"] for one in on_pairs) == rows["oracle"]["accuracy"]


def test_differences_are_paired_and_the_same_every_time() -> None:
    rows = {one["arm"]: one for one in result()["rows"]}
    gap = rows["learned"]["accuracy"] - rows["never"]["accuracy"]
    found = rows["never"]["difference"]
    assert found["mean"] == pytest.approx(gap) and found["low"] < gap < found["high"]
    assert compared_arms()["rows"] == result()["rows"]
    assert rows["learned"]["difference"]["mean"] == 0.0


def test_thresholds_come_from_validation_alone() -> None:
    again = compared_arms(test=5)
    here = {one["arm"]: one["threshold"] for one in result()["rows"]}
    there = {one["arm"]: one["threshold"] for one in again["rows"]}
    assert here == there and here["confidence"] is not None
    taus = [one["prices"][0]["arms"]["dispersion"]["tau"] for one in (result(), again)]
    assert taus[0] == taus[1]


def test_calibration_is_fitted_on_validation_and_measured_on_test() -> None:
    found = result()["calibration"]
    test = rolled(0)
    sure, hits = [one.confidence or 0 for one in test.never], [one.right for one in test.never]
    assert found["raw"]["brier"] == pytest.approx(brier(sure, hits))
    assert found["raw"]["ece"] == pytest.approx(ece(sure, hits))
    assert found["isotonic"]["brier"] < found["raw"]["brier"]
    assert found["temperature"]["ece"] < found["raw"]["ece"]
    assert sum(one["count"] for one in found["isotonic"]["bins"]) == len(test)


def test_a_calibrated_gate_decides_as_the_raw_one() -> None:
    arms = result()["prices"][0]["arms"]
    for name in ("confidence_temperature", "confidence_isotonic"):
        assert arms[name]["accuracy"] == arms["confidence"]["accuracy"]
        assert arms[name]["worth"] == pytest.approx(arms["confidence"]["worth"])


def test_bars_are_judged_by_value_and_interval() -> None:
    found = {one["name"]: one for one in result()["verdicts"]}
    assert found["better than never looking again"]["standing"] == "clear"
    assert found["against always looking again"]["standing"] == "missed"
    assert found["share of the pixels of always looking"]["standing"] == "met"
    order = found["looks get rarer as targets get larger"]
    assert order["detail"] == "falls" and order["standing"] == "met"
    nothing = compared_arms(small_below=0.0)
    small = {one["name"]: one for one in nothing["verdicts"]}["the same on small targets"]
    assert small["standing"] == "unknown"  # no target is that small


def test_where_answers_are_points_there_is_no_size_gate_and_no_bar_for_it() -> None:
    def pointed(seed: int) -> Rolled:
        found = rolled(seed)
        return replace(found, never=[replace(one, answer_side=None) for one in found.never])

    points = compare_arms(pointed(0), pointed(1), small_below=28 / 6, prices=[0.1])
    assert not [one for one in points["rows"] if one["arm"].startswith("size")]
    assert "size" not in points["curves"] and "size" not in points["prices"][0]["arms"]
    names = [one["name"] for one in points["verdicts"]]
    assert len(names) == len(result()["verdicts"]) - 1
    assert not [name for name in names if "predicted-size" in name]


def test_a_price_is_paid_for_every_view_beside_the_first() -> None:
    test, validation = rolled(0), rolled(1)
    twice = replace(test, free=[replace(one, looks=3 if one.zoomed else 1) for one in test.free])
    told = compare_arms(twice, validation, small_below=28 / 6, prices=[0.1])["prices"][0]["arms"]
    once = result()["prices"][0]["arms"]
    rate = once["learned"]["zoom_rate"]
    assert once["learned"]["worth"] - told["learned"]["worth"] == pytest.approx(0.1 * rate)
    assert told["always"] == once["always"]


def test_few_screenshots_leave_a_bar_open() -> None:
    def crowded(seed: int) -> Rolled:
        found = rolled(seed)
        return replace(
            found, never=[replace(one, screen=one.id[-1:]) for one in found.never],
            free=[replace(one, screen=one.id[-1:]) for one in found.free],
        )  # fmt: skip

    def few(seed: int) -> Rolled:
        found = crowded(seed)
        return replace(
            found, never=[replace(one, screen="one") if one.screen in "45" else one
                          for one in found.never],
        )  # fmt: skip

    for split, standing in ((crowded, "clear"), (few, "unknown")):
        told = compare_arms(split(0), split(1), small_below=28 / 6, prices=[0.1])
        bar = {one["name"]: one for one in told["verdicts"]}["better than never looking again"]
        assert bar["standing"] == standing and bar["value"] is not None


def test_the_comparison_is_plain_json_and_has_a_table() -> None:
    found = {**result(), "recipe": "grounding"}
    assert json.loads(json.dumps(found)) == found
    assert compared(found)


# a whole run ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A grounding run whose model is the tiny base as it is: it answers, and knows nothing."""
    return untrained_run(tmp_path_factory.mktemp("grounding"))


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> RunDir:
    return RunDir(shutil.copytree(trained, tmp_path / "toy"))


def rewrite(run: RunDir, change: Callable[[dict[str, Any]], None]) -> RunDir:
    import yaml

    config = yaml.safe_load(run.config_file.read_text("utf-8"))
    change(config)
    run.config_file.write_text(yaml.safe_dump(config), "utf-8")
    return run


def test_a_run_is_scored_and_judged_again_to_the_same_bytes(run: RunDir) -> None:
    found = evaluate_run(run, limit=4)
    assert found["samples"] == 4 and 0 < found["random"] < 0.1
    assert found["settings"]["temperature"] == 0.0 and found["settings"]["prompt"]
    files = [run.predictions_file, run.path / "evaluation.json"]
    before = [path.read_bytes() for path in files]
    shutil.rmtree(run.path / "model")  # judging needs no model
    assert rejudge(run) == found
    assert [path.read_bytes() for path in files] == before
    assert all(one.row_count >= 4 for one in scores(found).renderables)


def test_a_row_says_what_its_look_changed(run: RunDir) -> None:
    dialogue = load_policy(run)
    task = task_of(open_source(run.config().data.eval)[0])
    assert task.box is not None
    window = drawn_window(task.box, side=0.25, jitter=0, key="")
    looked = dialogue.demonstration(task, looks=[window])
    (first,) = first_answers(dialogue, [task])
    assert first.screen.zooms == 0
    row = row_of_episode(looked, dialogue=dialogue, run="toy", split="eval", first=first)
    assert row["hit"] and row["hit_before"] is False and row["effect"] == "helped"
    alone = row_of_episode(first, dialogue=dialogue, run="toy", split="eval", first=None)
    assert alone["hit_before"] is None and alone["effect"] == "no look"


def test_the_batch_size_changes_no_answer(run: RunDir) -> None:
    evaluate_run(run, limit=4)
    one = read_rows(run.predictions_file)
    rewrite(run, lambda config: config["eval"].update(batch_size=1))
    evaluate_run(run, limit=4)
    for here, there in zip(one, read_rows(run.predictions_file), strict=True):
        assert here["turns"] == there["turns"] and here["views"] == there["views"]
        assert here["log_prob"] == pytest.approx(there["log_prob"], abs=1e-4)


def test_judging_again_before_anything_was_answered_is_refused(run: RunDir) -> None:
    with pytest.raises(InputError, match="no stored answers"):
        rejudge(run)


def folder_of_screens(folder: Path) -> Path:
    """Three rows: a sound one, one without its picture's end, one whose box lies outside."""
    (folder / "images").mkdir(parents=True)
    Image.new("RGB", (320, 240), "white").save(folder / "images" / "page.png")
    (folder / "images" / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    rows = [("page.png", [10, 10, 40, 30]), ("torn.png", [10, 10, 40, 30]),
            ("page.png", [100, 10, 60, 60])]  # fmt: skip
    listed = [
        {"img_filename": name, "bbox": box, "instruction": f"row {k}", "data_type": "icon",
         "data_source": "web", "id": f"row{k}"}
        for k, (name, box) in enumerate(rows)
    ]  # fmt: skip
    (folder / "screenspot.json").write_text(json.dumps(listed), "utf-8")
    return folder


def test_a_folder_of_screens_is_scored_beside_the_run_and_broken_rows_are_named(
    run: RunDir, tmp_path: Path
) -> None:
    rewrite(run, lambda config: config["data"].update(on_error="skip"))
    folder = folder_of_screens(tmp_path / "my-screens")
    found = evaluate_run(run, screens=folder)
    assert found["name"] == "my-screens" and found["samples"] == 2
    assert len(found["skipped"]) == 1 and "torn.png" in found["skipped"][0]
    assert (run.path / "screens" / "my-screens.jsonl").is_file()
    assert not run.predictions_file.exists()
    assert rejudge(run, screens=folder) == found


def test_a_broken_row_stops_the_evaluation_unless_it_may_be_skipped(
    run: RunDir, tmp_path: Path
) -> None:
    rewrite(run, lambda config: config["data"].update(on_error="stop"))
    with pytest.raises(DataError, match=r"torn\.png"):
        evaluate_run(run, screens=folder_of_screens(tmp_path / "my-screens"))


@pytest.mark.parametrize("name", ["adminlte", "miniwob", "screenagent"])
def test_public_screens_are_scored_end_to_end(run: RunDir, name: str) -> None:
    if not (SHARED / name).is_dir():
        pytest.skip(f"{SHARED / name} is not here")
    found = evaluate_grounding(run, limit=2, screens=SHARED / name)
    assert found["samples"] == 2
    assert (found["points"] is None) == (name != "screenagent")


def test_a_comparison_continues_where_it_stopped_and_ends_without_the_model(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = compare_run(run)
    assert found["recipe"] == "grounding" and found["samples"] == 6
    assert {one.name for one in run.figures.iterdir()} == {
        "accuracy_cost.png", "zoom_by_size.png", "calibration.png",
    }  # fmt: skip
    stored = run.path / "comparison" / "test-sampled.jsonl"
    whole = stored.read_text("utf-8")
    lines = whole.split("\n")
    assert len(lines) == 1 + 6 * 8 + 1
    # killed in the middle of a target's samples: they are drawn again, and are the same
    stored.write_text("\n".join(lines[:12]) + "\n" + lines[12][:40], "utf-8")
    assert compare_run(run) == found
    seen: dict[str, list[dict[str, Any]]] = {}
    for one in map(json.loads, stored.read_text("utf-8").split("\n")[1:-1]):
        seen.setdefault(one["id"], []).append(one)
    assert {len(rows) for rows in seen.values()} == {8, 11}  # three of them twice
    written = {one["turns"][0] for rows in seen.values() for one in rows}
    assert written == {json.loads(line)["turns"][0] for line in lines[1:-1]}
    monkeypatch.setattr(grounding_compare, "load_policy", None)  # all is there: nothing is loaded
    assert compare_run(run) == found


def test_a_phase_that_never_looks_again_is_not_compared(run: RunDir) -> None:
    rewrite(run, lambda config: config["grounding"].update(phase="places"))
    with pytest.raises(InputError, match="never looks again"):
        compare_run(run)


def test_small_is_what_the_pages_call_small_in_pixels_of_the_first_look(run: RunDir) -> None:
    first: Scored = scored(row())
    pages = run.config().data.eval
    assert isinstance(pages, ScreensSource)
    shrunk = np.sqrt(128 * 96 / (pages.width * pages.height))
    assert small_side(run.config(), first) == pytest.approx(pages.small_target * shrunk)


def test_screens_without_splits_are_halved_by_screenshot(run: RunDir, tmp_path: Path) -> None:
    folder = folder_of_screens(tmp_path / "my-screens")
    where = {"type": "screenspot", "path": str(folder)}
    rewrite(run, lambda config: config["data"].update(eval=where))
    sources, how = two_sources(run.config())
    assert sources["validation"] is sources["test"] and "halved" in how


def test_halves_share_no_screenshot_and_are_spread_over_the_whole_file(
    run: RunDir, tmp_path: Path
) -> None:
    names = [f"{number:02}.png" for number in range(40)]
    rows = [v1_row(name) for name in names for _ in range(2)]
    place = screen_folder(tmp_path / "many", rows, pictures=names)
    where = {"type": "screenspot", "path": str(place)}
    rewrite(run, lambda config: config["data"].update(eval=where))
    rewrite(run, lambda config: config["eval"].update(samples=1000))
    rollouts = Rollouts(run, progress=no_progress)
    halves = {split: rollouts.indices(split) for split in ("validation", "test")}
    pages = {split: {position // 2 for position in found} for split, found in halves.items()}
    assert min(map(len, pages.values())) > 8 and not pages["validation"] & pages["test"]
    assert sorted(halves["validation"] + halves["test"]) == list(range(80))
    rewrite(run, lambda config: config["eval"].update(samples=8))
    some = Rollouts(run, progress=no_progress)
    for split, whole in halves.items():
        few = some.indices(split)
        assert len(few) == 8 and set(few) < set(whole)
        assert max(few) > 40  # not the file's beginning


def test_episodes_depend_on_the_precision_and_the_attention_of_the_model(run: RunDir) -> None:
    config = run.config()
    known = episodes_key(config, model="m", data="d")
    for change in ({"dtype": "float64"}, {"attention": "eager"}):
        other = config.model_copy(update={"model": config.model.model_copy(update=change)})
        assert episodes_key(other, model="m", data="d") != known


def test_numbers_that_are_none_are_stored_as_nothing(tmp_path: Path) -> None:
    write_json(tmp_path / "c.json", {"mean": float("nan"), "rows": [float("inf"), 0.5]})
    assert json.loads((tmp_path / "c.json").read_text()) == {"mean": None, "rows": [None, 0.5]}


def test_screens_of_one_name_at_two_places_are_not_taken_for_each_other(
    run: RunDir, tmp_path: Path
) -> None:
    rewrite(run, lambda config: config["data"].update(on_error="skip"))
    here, there = (folder_of_screens(tmp_path / part / "web.v2") for part in ("a", "b"))
    found = evaluate_run(run, screens=here, limit=1)
    assert found["name"] == "web.v2" and found["screens"] == str(here)
    with pytest.raises(InputError, match=r"holds answers on .*a/web\.v2, not on .*b/web\.v2"):
        rejudge(run, screens=there)
    file = here / "screenspot.json"
    assert screens_name(file) == "web.v2-screenspot"
    shutil.rmtree(here)  # stored answers are judged without their screens
    assert rejudge(run, screens=here) == found


def test_what_boxes_mean_can_be_said_of_a_folder(run: RunDir, tmp_path: Path) -> None:
    rows = [v1_row(bbox=(150, 60, 190, 90)), v1_row(bbox=(100, 50, 180, 80))]
    place = screen_folder(tmp_path / "corners", rows)
    with pytest.raises(InputError, match="on the command line --boxes xyxy"):
        evaluate_run(run, screens=place)
    evaluate_run(run, screens=place, boxes="xyxy")
    first = read_rows(run.path / "screens" / "corners.jsonl")[0]
    assert first["target_box"] == pytest.approx([0.75, 0.6, 0.95, 0.9])


def test_a_box_among_points_is_a_slip_and_no_other_kind_of_answer() -> None:
    def pointed(made: Rolled, *, slips: bool) -> Rolled:
        def point(one: Scored, number: int) -> Scored:
            return one if slips and number == 0 else replace(one, box=None, answer_side=None)

        return replace(
            made, never=[point(one, n) for n, one in enumerate(made.never)],
            sampled=[[point(one, n) for n, one in enumerate(group)] for group in made.sampled],
        )  # fmt: skip

    plain, slipped = (gates_of(pointed(rolled(0), slips=slips), pointed(rolled(1), slips=slips))
                      for slips in (False, True))  # fmt: skip
    names = ["dispersion", "dispersion_plain", "confidence"]
    assert [one.name for one in plain] == [one.name for one in slipped] == names
    for mine, theirs in zip(plain, slipped, strict=True):
        assert np.allclose(mine.test_N, theirs.test_N)
    assert [one.name for one in gates_of(rolled(0), rolled(1))] == [*names, "size"]

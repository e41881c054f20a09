"""The report of a grounding run: what stands on it, what is left out, and that it needs nothing."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from saccade.config.resolve import resolve
from saccade.data.boxes import Box
from saccade.data.sources import open_source
from saccade.evaluation.grounding import write_rows
from saccade.evaluation.grounding_arms import compare_arms
from saccade.evaluation.grounding_plot import FIGURES, save_grounding
from saccade.evaluation.grounding_rows import scored, summarise
from saccade.evaluation.grounding_table import compared_table, grounding_table, verdict_cells
from saccade.evaluation.records import write_json
from saccade.microscope.grounding_cards import Shown, trajectory_cards
from saccade.microscope.grounding_learning import learning_names, learning_section
from saccade.microscope.report import write_report
from saccade.training.events import EventLog, read_events
from saccade.training.rundir import RunDir
from tests.grounding_example import rolled, row

SETTINGS = {"max_pixels": 12288, "crop_pixels": 24576, "calls": 1, "coordinates": "0-1000",
            "prompt": "screenshot, then instruction", "temperature": 0.0,
            "versions": {"torch": "2"}}  # fmt: skip


def evaluation(rows: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    found = summarise([scored(one) for one in rows])
    return {"recipe": "grounding", "name": None, "skipped": ["row 7: a torn picture"],
            "settings": SETTINGS, **found, **changes}  # fmt: skip


def comparison() -> dict[str, Any]:
    found = compare_arms(rolled(0), rolled(1), small_below=28 / 6, prices=[0.1, 0.2])
    return {**found, "recipe": "grounding", "skipped": []}


def events(run: RunDir) -> None:
    log = EventLog(run.events_file)
    log.append("run_start", recipe="grounding", steps=3, world_size=1, threads=1, device="cpu")
    for step in (1, 2, 3):
        metrics = {"hit": 0.5, "zoomed": 0.4, "reward": 0.6, "reward_hit": 0.5,
                   "reward_call": -0.04, "reward_tool": 0.0}  # fmt: skip
        log.append(
            "step", step=step, loss=0.1, metrics=metrics, learning_rate=1e-3, grad_norm=1.0,
            samples_per_s=1.0, tokens_per_s=1.0, sample_ids=[],
        )  # fmt: skip
    log.append("eval", step=3, metrics={"accuracy": 0.6, "zoom_rate": 0.4})
    log.append("done", step=3, metrics={})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with everything on disk but a model: a report needs none."""
    root = tmp_path_factory.mktemp("report")
    settings = [f"run.root={root}", "run.name=toy", f"data.eval.cache={root / 'cache'}"]
    run = RunDir.create(resolve("smoke/grounding", overrides=settings))
    source = open_source(run.config().data.eval)
    rows = []
    for number in range(6):
        sample = source[number]
        box = Box(*sample.facts["box"])
        answered = box if number % 2 else Box(0.01, 0.01, 0.05, 0.05)
        rows.append(row(sample.id, target=box, answered=answered, instruction="<b>click</b> it"))
    write_rows(run.predictions_file, rows)
    write_json(run.path / "evaluation.json", evaluation(rows))
    write_json(run.path / "comparison.json", comparison())
    (run.path / "screens").mkdir()
    points = [row(target=None, target_point=[0.4, 0.4])]
    write_json(run.path / "screens" / "old.json", evaluation(points, name="old"))
    events(run)
    run.finish(step=3, metrics={"accuracy": 0.6})
    return run.path


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> RunDir:
    return RunDir(shutil.copytree(whole, tmp_path / "toy"))


def test_the_report_says_everything_and_asks_for_nothing(run: RunDir) -> None:
    page = write_report(run, samples_each=2).read_text("utf-8")
    for key in ("comparison", "samples", "accuracy", "screens", "learning", "training", "limits"):
        assert f'<section id="{key}"' in page and f'href="#{key}"' in page
    assert "1 broken rows left out, e.g. row 7: a torn picture" in page
    assert "generated pages of icons" in page
    addresses = re.findall(r'(?:src|href|srcset)="([^"#][^"]*)"|url\("([^"]*)"\)', page)
    assert addresses and all("".join(one).startswith("data:") for one in addresses)


def test_episodes_are_shown_with_what_was_seen_and_written_and_nothing_of_it_is_markup(
    run: RunDir,
) -> None:
    (run.path / "comparison.json").unlink()
    page = write_report(run, samples_each=2).read_text("utf-8")
    assert page.count('<article class="card">') == 4
    assert "&lt;b&gt;click&lt;/b&gt; it" in page and "<b>click</b> it" not in page
    assert page.count("first look</b> 128 x 96, as the model sees it") == 4


def test_parts_without_a_file_say_how_to_get_them_or_are_left_out(run: RunDir) -> None:
    for name in ("comparison.json", "evaluation.json", "predictions.jsonl", "events.jsonl"):
        (run.path / name).unlink()
    shutil.rmtree(run.path / "screens")
    page = write_report(run).read_text("utf-8")
    assert "saccade compare" in page and "saccade eval" in page
    assert 'id="screens"' not in page and 'id="learning"' not in page


def test_rows_of_another_version_cost_the_page_its_episodes_and_nothing_else(run: RunDir) -> None:
    (run.path / "comparison.json").unlink()
    run.predictions_file.write_text('{"id": "old"}\n', "utf-8")
    page = write_report(run).read_text("utf-8")
    assert "No episodes are shown" in page and 'id="accuracy"' in page


def test_a_crop_is_shown_with_its_window_target_and_click() -> None:
    one = Shown(row(zoomed=True), correct=True, image=Image.new("RGB", (768, 576), "white"))
    markup, rules = trajectory_cards([one], prefix="t")
    assert markup.count("<figure>") == 3 and rules.count("data:image") == 3
    window = re.search(r'class="window" d="M([\d.]+) ([\d.]+)H([\d.]+)V([\d.]+)', markup)
    assert window and [float(edge) for edge in window.groups()] == [0.3, 0.3, 0.55, 0.55]
    # the target fills two fifths of the crop, from two fifths on
    assert 'd="M0.40000 0.40000H0.80000V0.80000H0.40000Z"' in markup
    assert markup.count('class="click"') == 2  # on the screenshot and on the last look
    assert "&lt;tool_call&gt;" in markup and ">a picture<" in markup


def test_an_episode_whose_look_was_refused_did_not_answer_at_once() -> None:
    refused = row() | {"calls": [row(zoomed=True)["calls"][0] | {"ok": False}]}
    kinds = [Shown(one, correct=True).kind for one in (row(), row(zoomed=True), refused)]
    assert kinds == ["answered at once", "looked again", "look refused"]


def test_a_target_that_is_a_point_is_shown_as_a_cross() -> None:
    found = row(target=None, target_point=[0.25, 0.5])
    one = Shown(found, correct=False, image=Image.new("RGB", (768, 576)))
    assert (
        'd="M0.23000 0.50000H0.27000M0.25000 0.48000V0.52000"'
        in trajectory_cards([one], prefix="t")[0]
    )


def test_only_reward_parts_that_were_ever_paid_are_drawn(run: RunDir) -> None:
    found = read_events(run.events_file)
    assert learning_names(found) == ["reward_call", "reward_hit"]
    assert learning_section(found) and not learning_section([])


def test_figures_are_the_same_bytes_every_time(tmp_path: Path) -> None:
    found = comparison()
    one, two = (save_grounding(found, folder=tmp_path / name) for name in "ab")
    assert [path.name for path in one] == [f"{name}.png" for name in FIGURES]
    for here, there in zip(one, two, strict=True):
        assert here.read_bytes() == there.read_bytes()


def test_tables_hold_every_arm_and_every_bar() -> None:
    from rich.console import Console

    console = Console(width=200, record=True, file=io.StringIO())
    found = comparison()
    console.print(compared_table(found))
    console.print(grounding_table(evaluation([row(), row("b-1", answered=None)])))
    told = console.export_text()
    assert all(one["title"] in told for one in found["rows"])
    assert all(one["name"] in told for one in found["verdicts"])
    assert "temperature 0 (greedy)" in told and "unreadable 1" in told


def test_at_80_columns_no_table_breaks_a_number_or_a_word() -> None:
    from rich.console import Console

    console = Console(width=80, record=True, file=io.StringIO())
    found = comparison()
    console.print(compared_table(found))
    console.print(grounding_table(evaluation([row(), row("b-1", answered=None)])))
    told = console.export_text()
    assert "\u2026" not in told  # a cell that was cut off ends in three dots
    for one in found["rows"]:
        assert f"{100 * one['low']:.1f} to {100 * one['high']:.1f}" in told
        assert one["title"].split()[0] in told
    assert max(map(len, told.splitlines())) <= 80


def test_verdicts_are_written_in_their_own_unit() -> None:
    cells = {one["name"]: verdict_cells(one) for one in comparison()["verdicts"]}
    assert cells["share of the pixels of always looking"][3] == "<= 60"
    assert re.fullmatch(r"[+-]\d+\.\d", cells["better than never looking again"][1])
    assert re.fullmatch(r"[+-]0\.\d{4}", cells["ECE after calibration (isotonic) minus before"][1])
    assert json.dumps(list(cells.values()))

"""A policy behind a selector is scored and compared at equal compute, and says what it cost."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from rich.console import Console

from saccade.cli_inputs import open_run
from saccade.config.errors import InputError
from saccade.config.resolve import resolve
from saccade.data.sources import open_source
from saccade.evaluation import grounding_selectors
from saccade.evaluation.compare import compare_run
from saccade.evaluation.grounding import load_policy, read_rows
from saccade.evaluation.grounding_costs import COSTS, cost_of
from saccade.evaluation.grounding_selectors import readings_of
from saccade.evaluation.run import evaluate_run, rejudge
from saccade.evaluation.table import compared, compared_plots, scores
from saccade.grounding.episodes import task_of
from saccade.grounding.rollouts import roll
from saccade.microscope.report import write_report
from saccade.models.backbone import Backbone
from saccade.models.flops import count_flops
from saccade.models.relevance import storage
from saccade.models.relevance.model import RelevanceModel
from saccade.training.run import train
from saccade.training.rundir import RunDir
from tests.grounding_policy import untrained_run

ARMS = "eval.arms=[trained,full,grid,random,pool,resize]"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("selectors")
    return untrained_run(root, "model.max_pixels=9216")  # 6 x 6 cells: a quarter is whole cells


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "toy")


def behind(folder: Path, selector: str, keep: float = 0.5, *more: str) -> RunDir:
    return open_run(str(folder), [f"grounding.selector={selector}", f"selector.keep={keep}", *more])


def a_selector(run: RunDir, folder: Path) -> str:
    loaded = load_policy(run)
    base = Backbone(loaded.base, loaded.processor, "toy", "toy")
    storage.save(RelevanceModel(base, run.config().selector), folder, include_base=False)
    return str(folder)


def test_half_of_every_look_costs_half_the_visual_tokens_and_the_score_says_so(
    folder: Path,
) -> None:
    whole = evaluate_run(RunDir(folder), limit=4)
    half = evaluate_run(behind(folder, "grid"), limit=4)
    rows = read_rows(folder / "predictions.jsonl")
    for row in rows:
        cells = sum(view["pixels"] for view in row["views"]) // 16**2
        assert row["tokens_visual"] * 2 == cells
    assert half["costs"]["flops"] < whole["costs"]["flops"]
    assert half["settings"]["selector"] == "grid" and half["settings"]["keep"] == 0.5
    assert rejudge(behind(folder, "grid"))["costs"] == half["costs"]
    caption = str(scores(half).renderables[-1].caption)
    assert "of every look 50% is read, chosen by grid" in caption
    assert f"{half['costs']['tokens_visual']:.1f} visual tokens" in caption


def test_keeping_everything_scores_the_same_episodes(folder: Path) -> None:
    evaluate_run(RunDir(folder), limit=4)
    before = read_rows(folder / "predictions.jsonl")
    evaluate_run(behind(folder, "saliency", 1.0), limit=4)
    for one, other in zip(before, read_rows(folder / "predictions.jsonl"), strict=True):
        assert [one[k] for k in ("turns", "point", "hit", "pixels", *COSTS[:2])] == [
            other[k] for k in ("turns", "point", "hit", "pixels", *COSTS[:2])
        ]
        assert one["log_prob"] == pytest.approx(other["log_prob"], abs=1e-5)


def test_readings_stand_beside_each_other_at_the_same_budget(folder: Path) -> None:
    names = [one.name for one in readings_of(behind(folder, "grid", 0.5, ARMS).config())]
    assert names == ["whole", "grid", "random", "smaller"]


def test_a_comparison_of_readings_continues_and_keeps_away_from_that_of_looks(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    selector = a_selector(RunDir(folder), folder.parent / "chosen")
    run = behind(folder, selector, 0.5, ARMS)
    found = compare_run(run)
    assert not (folder / "comparison.json").exists() and (folder / "selectors.json").is_file()
    whole, ours, *others = found["readings"]
    assert [one["name"] for one in others] == ["grid", "random", "smaller", "as-costly"]
    assert whole["costs"]["tokens_visual"] > ours["costs"]["tokens_visual"]
    costly = others.pop()["costs"]["flops"] / ours["costs"]["flops"]
    assert 0.6 < costly <= 1.02  # of 8 x 6 cells only 7 x 5 are left
    for other in others:
        gap = other["costs"]["tokens_visual"] / ours["costs"]["tokens_visual"]
        # the untrained policy does not look again: a first look rounds to whole cells
        assert 0.8 < gap <= 1.0 + 1e-9
    assert whole["costs"]["flops"] > ours["costs"]["flops"] > others[-1]["costs"]["flops"]
    assert ours["difference"]["mean"] == 0.0
    table = compared(found)
    assert [one.row_count for one in table.renderables] == [6, 6]
    assert "selectors.json" in compared_plots(found, folder=run.figures)
    page = write_report(run).read_text("utf-8")
    assert "Reading less of each look" in page and "chosen, 50% of each look" in page
    monkeypatch.setattr(grounding_selectors, "answer", None)  # all is there
    assert compare_run(behind(folder, selector, 0.5, ARMS)) == found


def test_operations_are_those_that_torch_counts(folder: Path) -> None:
    dialogue = load_policy(behind(folder, "grid"))
    source = open_source(RunDir(folder).config().data.eval)
    task = task_of(source[0])
    ((episode,),) = roll(dialogue, [task], group=1, seeds=[[0]], greedy=True)
    cost = cost_of(episode, dialogue=dialogue)
    ids = dialogue.rows([[episode]])

    def read() -> None:
        states = dialogue.states(ids)
        dialogue.base.lm_head(states[:, : int(episode.written.sum())])

    _, counted = count_flops(read)
    assert cost["flops"] == pytest.approx(counted, rel=0.02)


def test_a_selector_that_is_not_there_stops_before_anything_is_answered(folder: Path) -> None:
    with pytest.raises(InputError, match="no such run"):
        compare_run(behind(folder, "not-there"))


@pytest.mark.filterwarnings("ignore")
def test_a_selector_is_trained_on_screens_and_reads_for_the_policy(
    folder: Path, tmp_path: Path
) -> None:
    made = resolve("smoke/relevance", overrides=[
        f"model.name={folder / 'model'}", "data=screens", "model.max_pixels=12288",
        *(f"data.{part}.{key}" for part in ("train", "eval") for key in (
            "answer=point", "renderer=drawn", f"cache={tmp_path / 'cache'}", "screens=2")),
        "training.steps=2", "training.save_every=2", "selector.distill_steps=1",
        "training.threads=1", "eval.max_new_tokens=24", f"run.root={tmp_path}",
    ])  # fmt: skip
    metrics = train(made, console=Console(quiet=True))
    assert "accuracy_point" in metrics
    found = evaluate_run(behind(folder, str(tmp_path / "smoke-relevance"), 0.25), limit=2)
    rows = read_rows(folder / "predictions.jsonl")
    assert [row["tokens_visual"] * 4 for row in rows] == [
        sum(view["pixels"] for view in row["views"]) // 16**2 for row in rows
    ]
    assert found["settings"]["keep"] == 0.25

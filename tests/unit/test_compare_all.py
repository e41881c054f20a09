"""`compare --all`: the packaged plan is valid, and one command trains, compares and tabulates."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest

from saccade.config.errors import InputError
from saccade.config.resolve import resolve
from saccade.evaluation.load import no_progress
from saccade.pipeline.compare_all import compare_all, every_arm, plan_comparison

SMALL = (
    "training.steps=3", "selector.distill_steps=2", "training.threads=1", "eval.samples=4",
    "eval.keep=[0.25]", "eval.seeds=1", "eval.arms=[trained,full,random,resize]",
)  # fmt: skip


def test_every_variant_of_the_packaged_plan_resolves() -> None:
    plan = plan_comparison(resolve=functools.partial(resolve, "smoke/relevance"), seeds=[0, 1])
    assert [trial.variant.name for trial in plan.trials[:4]] == [
        "features", "glance", "gated", "pixels",
    ]  # fmt: skip
    assert len(plan.trials) == 8 and plan.folder.name == "compare-smoke-relevance"


def test_a_recipe_without_a_plan_says_which_have_one() -> None:
    with pytest.raises(InputError, match="use one of relevance"):
        plan_comparison(resolve=functools.partial(resolve, "smoke/tiny-base"), seeds=[0])


def test_what_learns_nothing_is_measured_once() -> None:
    assert "max_min_diversity" in every_arm(["trained"], learned_only=False)
    later = every_arm(["trained"], learned_only=True)
    assert "participation" in later and "random" not in later and "resize" in later


@pytest.mark.slow
def test_one_command_trains_compares_and_tabulates(tmp_path: Path) -> None:
    overrides = [*SMALL, f"run.root={tmp_path}"]
    plan = plan_comparison(
        resolve=functools.partial(resolve, "smoke/relevance", overrides=overrides), seeds=[0]
    )
    said: list[str] = []
    result = compare_all(plan, say=said.append, progress=no_progress)
    assert {row["variant"] for row in result["rows"] if row["ours"]} == {
        "features", "pixels", "glance",
    }  # fmt: skip
    assert json.loads((plan.folder / "comparison_all.json").read_text())["samples"] == 4
    assert "ours, at a glance" in (plan.folder / "comparison_all.md").read_text()
    again = compare_all(plan, say=said.append, progress=no_progress)
    assert [r["accuracy"] for r in again["rows"]] == [r["accuracy"] for r in result["rows"]]

"""Ablations: what a file may say, what a trial's result depends on, what the table makes of it."""

from __future__ import annotations

import csv
import functools
import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from saccade.config.errors import InputError
from saccade.config.resolve import resolve
from saccade.pipeline.ablate import (
    describe,
    plan_ablation,
    run_ablation,
    seconds_per_trial,
    trial_key,
)
from saccade.pipeline.ablation_table import ablation_table, csv_text, markdown, summarise
from saccade.pipeline.variants import (
    Ablation,
    find_ablation,
    packaged_ablations,
    read_ablation,
)
from saccade.pipeline.worker import _training_facts
from saccade.training.events import EventLog
from saccade.training.rundir import RunDir
from tests.scored_run import OVERRIDES, base_folder

SMALL = """
recipe: relevance
reference: whole
variants:
  whole:
  alone:
    about: One score.
    groups: [scores]
    set:
      selector.scores: [salience]
  noise:
    groups: [learning, extra]
    set:
      selector: {learning: noise}
"""


def small(tmp_path: Path, text: str = SMALL) -> Ablation:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return read_ablation(path)


def resolver(tmp_path: Path, *overrides: str) -> Any:
    return functools.partial(
        resolve, "relevance", overrides=[f"run.root={tmp_path / 'runs'}", *overrides]
    )


@pytest.mark.parametrize("recipe", packaged_ablations())
def test_every_packaged_ablation_resolves_to_different_configurations(
    recipe: str, tmp_path: Path
) -> None:
    overrides = [f"run.root={tmp_path / 'runs'}"]
    own = functools.partial(resolve, recipe, overrides=overrides)
    plan = plan_ablation(find_ablation(recipe), resolve=own, seeds=[0, 1])
    assert len({trial.key for trial in plan.trials}) == len(plan.trials)
    assert all(variant.about for variant in plan.ablation.variants)


def test_the_relevance_ablation_asks_every_question() -> None:
    variants = find_ablation("relevance").variants
    settings = [json.dumps(variant.settings()) for variant in variants]
    assert (
        len({variant.settings().get("selector.scores", "").__str__() for variant in variants}) == 7
    )
    for part in ("thirds", "rgb", "tensions", "noise", "multiply", "distill"):
        assert any(part in text for text in settings)


def test_a_setting_keeps_the_line_it_stands_in(tmp_path: Path) -> None:
    text = SMALL.replace("[salience]", "[saliense]")
    with pytest.raises(InputError, match=r"mine.yaml:10: selector.scores"):
        plan_ablation(small(tmp_path, text), resolve=resolver(tmp_path))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "reference:",
            "referense:",
            r"mine.yaml:3: referense: unknown key; did you mean reference",
        ),
        ("about:", "abuot:", r"mine.yaml:7: variants.alone.abuot: unknown key; did you mean about"),
        ("selector.scores", "selector.scors", r":10: .*did you mean selector.scores\?"),
        ("{learning: noise}", "{lerning: noise}", r":14: .*did you mean selector.learning\?"),
        ("reference: whole", "reference: hole", r":3: .*unknown variant; did you mean whole"),
        ("selector.scores: [salience]", "run.seed: 4", "the ablation decides it"),
        ("selector.scores: [salience]", "data: scenes-smal", "did you mean scenes-small"),
        ("  alone:", "  A b:", "a variant's name is a folder"),
        ("groups: [scores]", "times: 0", r":8: variants.alone.times: expected number > 0"),
        ("groups: [scores]", "groups: {a: b}", "groups.a: expected a list of names"),
        ("recipe: relevance", "", "recipe: required but not given"),
        ("  noise:", "  noise: [", "not YAML"),
    ],
)
def test_a_mistake_in_the_file_is_named_with_its_line_and_the_nearest_word(
    old: str, new: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        small(tmp_path, SMALL.replace(old, new))


def test_only_takes_variants_and_groups_and_a_group_brings_the_reference(tmp_path: Path) -> None:
    ablation = small(tmp_path)
    assert ablation.choose([]) == ["whole", "alone", "noise"]
    assert ablation.choose(["noise"]) == ["noise"]
    assert ablation.choose(["scores"]) == ["whole", "alone"]
    with pytest.raises(InputError, match="did you mean noise"):
        ablation.choose(["nose"])


def test_overrides_that_make_two_variants_equal_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="whole and noise are the same configuration"):
        plan_ablation(small(tmp_path), resolve=resolver(tmp_path, "selector.learning=noise"))


def test_a_grid_loses_the_points_that_come_to_the_same_configuration(tmp_path: Path) -> None:
    text = (
        "recipe: relevance\nreference: whole\nvariants:\n  whole:\n"
        "grid:\n  selector.temperature: [0.3, 0.5]\n  selector.tensions: [true, false, true]\n"
    )
    plan = plan_ablation(small(tmp_path, text), resolve=resolver(tmp_path))
    assert [trial.variant.name for trial in plan.trials] == [
        "whole", "temperature-0-3-tensions-false", "temperature-0-5-tensions-true",
        "temperature-0-5-tensions-false",
    ]  # fmt: skip
    assert plan.ablation.choose(["grid"])[0] == "whole"


def test_a_grid_names_its_mistakes_with_their_lines(tmp_path: Path) -> None:
    text = "recipe: relevance\nreference: whole\nvariants:\n  whole:\ngrid:\n"
    with pytest.raises(InputError, match=r"mine.yaml:6: .*expected a list of values"):
        small(tmp_path, text + "  selector.temperature: 0.3\n")
    with pytest.raises(InputError, match=r"mine.yaml:6: .*did you mean selector.temperature"):
        small(tmp_path, text + "  selector.temprature: [0.3]\n")


def test_another_recipe_than_the_files_is_refused(tmp_path: Path) -> None:
    other = functools.partial(resolve, "tiny-base", overrides=[])
    with pytest.raises(InputError, match="varies the recipe relevance, not tiny-base"):
        plan_ablation(small(tmp_path), resolve=other)
    with pytest.raises(InputError, match="no ablation ships for this recipe"):
        find_ablation("tiny-base")


def test_a_variant_may_train_so_many_times_the_steps_whatever_they_are(tmp_path: Path) -> None:
    ablation = small(tmp_path, SMALL.replace("groups: [scores]", "times: 1.5"))
    plan = plan_ablation(ablation, resolve=resolver(tmp_path, "training.steps=33"))
    steps = {one.variant.name: one.resolved.config.training.steps for one in plan.trials}
    assert steps == {"whole": 33, "alone": 50, "noise": 33}
    # what else it sets stays, and the file's own variant is left as it was
    assert plan.ablation.variants[1].settings() == {
        "selector.scores": ["salience"], "training.steps": 50,
    }  # fmt: skip
    assert "training.steps" not in ablation.variants[1].settings()


def test_seconds_of_training_count_the_steps_that_were_not_logged(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    log = EventLog(run.events_file)
    log.append(
        "plan", samples=9, samples_per_step=4, trainable_parameters=7, parameters={}, groups={},
        tokens={}, memory={},
    )  # fmt: skip
    for step, rate in ((10, 8.0), (20, 4.0), (25, 4.0)):
        log.append(
            "step", step=step, loss=1.0, metrics={}, learning_rate=0.1, grad_norm=1.0,
            samples_per_s=rate, tokens_per_s=rate, sample_ids=[],
        )  # fmt: skip
    assert _training_facts(run) == {"trainable_parameters": 7, "train_seconds": 5 + 10 + 5}


def test_trials_are_ordinary_runs_named_by_variant_and_seed(tmp_path: Path) -> None:
    plan = plan_ablation(
        small(tmp_path), resolve=resolver(tmp_path, "run.name=try"), seeds=[3, 1, 3], only=["noise"]
    )
    folder = tmp_path / "runs" / "ablate-try-mine"
    assert [trial.run.path.relative_to(folder).as_posix() for trial in plan.missing()] == [
        "noise/seed-3", "noise/seed-1",
    ]  # fmt: skip
    trial = plan.missing()[0]
    assert trial.resolved.config.run.seed == 3
    assert trial.resolved.sources["selector.learning"].endswith("mine.yaml:14")


@pytest.mark.parametrize(
    ("override", "same"),
    [
        ("run.root=elsewhere", True),
        ("training.save_every=7", True),
        ("eval.arms=[grid]", True),
        ("training.steps=7", False),
        ("eval.samples=7", False),
        ("selector.temperature=0.7", False),
        ("data.train.seed=7", False),
        ("data.eval.seed=7", False),
        ("training.batch_size=7", False),
    ],
)
def test_a_trial_is_finished_for_this_configuration_and_data_and_no_other(
    override: str, same: bool
) -> None:
    plain, other = resolve("relevance").config, resolve("relevance", overrides=[override]).config
    assert (trial_key(plain) == trial_key(other)) is same


def test_cutting_the_batch_differently_keeps_a_trial_finished() -> None:
    cut = resolve("relevance", overrides=["training.batch_size=8", "training.accumulation=2"])
    assert trial_key(cut.config) == trial_key(resolve("relevance").config)


def test_the_cost_is_told_before_anything_runs(tmp_path: Path) -> None:
    plan = plan_ablation(find_ablation("relevance"), resolve=resolver(tmp_path), seeds=[0, 1])
    seconds = seconds_per_trial(plan)
    assert seconds is not None
    assert 60 < seconds < 600
    assert "= 26 trials, 0 finished" in describe(plan)
    assert "h" in describe(plan).rpartition("each, ")[2]
    unknown = plan_ablation(small(tmp_path), resolve=resolver(tmp_path))
    assert "time is known after the first trial" in describe(unknown)


def result(*verdicts: str, seconds: float = 10.0) -> dict[str, Any]:
    """A trial's result: one string of 0 and 1 per budget, two questions per image."""
    budgets = [
        {"budget": budget, "correct": {f"q{i}": int(c) for i, c in enumerate(text)}}
        for budget, text in zip((0.25, 0.1), verdicts, strict=True)
    ]
    groups = {f"q{i}": f"image{i // 2}" for i in range(len(verdicts[0]))}
    return {
        "budgets": budgets, "groups": groups, "trainable_parameters": 1234,
        "train_seconds": seconds,
    }  # fmt: skip


def summary(tmp_path: Path) -> dict[str, Any]:
    results = {
        ("whole", 0): result("11111111", "11110000"),
        ("whole", 1): result("11111100", "11110000"),
        ("alone", 0): result("00000000", "11110000", seconds=30.0),
    }
    return summarise(small(tmp_path), name="try", seeds=[0, 1], results=results)


def test_accuracies_are_averaged_over_seeds_and_paired_with_the_reference(tmp_path: Path) -> None:
    whole, alone, noise = summary(tmp_path)["variants"]
    assert [entry["accuracy"] for entry in whole["budgets"]] == [0.875, 0.5]
    assert whole["budgets"][0]["sd"] == pytest.approx(0.1768, abs=1e-4)
    assert whole["budgets"][0]["difference"] is None
    # only the seed that both have is compared
    assert alone["budgets"][0]["difference"] == {
        "mean": -1.0, "low": -1.0, "high": -1.0, "clear": True, "seeds": 1,
    }  # fmt: skip
    assert alone["budgets"][1]["difference"]["mean"] == 0.0
    assert (alone["trainable_parameters"], alone["train_seconds"]) == (1234, 30.0)
    assert noise["budgets"] == []


def test_table_page_and_csv_say_the_same(tmp_path: Path) -> None:
    found = summary(tmp_path)
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(ablation_table(found))
    for text in (console.export_text(), markdown(found)):
        assert "87.5 \u00b1 17.7" in text
        assert "-100.0 [-100.0, -100.0]*" in text
        assert "none yet" in text
        assert "1,234" in text
    rows = list(csv.DictReader(io.StringIO(csv_text(found))))
    assert [(row["variant"], row["budget"]) for row in rows] == [
        ("whole", "0.25"), ("whole", "0.1"), ("alone", "0.25"), ("alone", "0.1"),
    ]  # fmt: skip
    assert float(rows[2]["difference"]) == -1.0


def test_a_table_without_results_can_be_shown(tmp_path: Path) -> None:
    empty = summarise(small(tmp_path), name="try", seeds=[0], results={})
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(ablation_table(empty))
    assert "0 of 3 trials" in console.export_text()


def test_a_trial_is_trained_scored_and_then_skipped(tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base")
    settings = resolver(
        tmp_path, *OVERRIDES, f"model.name={base}", "training.steps=2", "training.batch_size=2",
        "selector.width=32", "selector.distill_steps=1", "run.name=try",
    )  # fmt: skip
    said: list[str] = []
    plan = plan_ablation(small(tmp_path), resolve=settings, only=["alone"])
    summary = run_ablation(plan, say=said.append)
    row = summary["variants"][1]
    assert [entry["budget"] for entry in row["budgets"]] == [0.5, 0.2]
    assert row["trainable_parameters"] > 0
    assert said == ["[1/1] alone, seed 0: selector.scores=['salience']"]
    again = plan_ablation(small(tmp_path), resolve=settings, only=["alone"])
    assert again.missing() == []
    run_ablation(again, say=said.append)
    assert len(said) == 1
    folder = tmp_path / "runs" / "ablate-try-mine"
    assert json.loads((folder / "ablation.json").read_text()) == summary
    # the same folder with other training data is not taken for this
    with pytest.raises(InputError, match="the training data changed"):
        changed = functools.partial(settings.func, *settings.args, overrides=[
            *settings.keywords["overrides"], "data.train.seed=9"])  # fmt: skip
        plan_ablation(small(tmp_path), resolve=changed)

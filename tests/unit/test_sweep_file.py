"""Sweep files: W&B's format is understood, and every mistake is named with its line."""

from __future__ import annotations

import functools
import json
import random
from pathlib import Path
from typing import Any

import pytest

from saccade.config.errors import InputError
from saccade.config.resolve import resolve
from saccade.pipeline.sweep_file import SweepFile, find_sweep, packaged_sweeps, read_sweep
from saccade.pipeline.sweep_plan import SweepPlan, plan_sweep

HEAD = "method: random\nmetric: {name: accuracy, goal: maximize}\nrun_cap: 5\n"


def written(folder: Path, text: str) -> Path:
    path = folder / "s.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def read(folder: Path, parameters: str, head: str = HEAD, more: str = "") -> SweepFile:
    return read_sweep(written(folder, f"{head}parameters:\n{parameters}{more}"))


def planned(sweep: SweepFile, **settings: Any) -> SweepPlan:
    return plan_sweep(sweep, resolve=functools.partial(resolve, sweep.recipe), **settings)


def only(sweep: SweepFile, drawn: Any) -> Any:
    (one,) = sweep.parameters
    return one.value(drawn)


def test_names_may_be_dotted_nested_flat_or_a_leaf(tmp_path: Path) -> None:
    text = (
        "  training.learning_rate: {min: 0.001, max: 0.01}\n"
        "  selector: {parameters: {temperature: {values: [0.1, 0.3]}}}\n"
        "  WARMUP_RATIO: {value: 0.1}\n"
        "  weight_decay: {min: 0.0, max: 0.1}\n"
    )
    keys = [one.key for one in read(tmp_path, text).parameters]
    assert keys == [
        "training.learning_rate", "selector.temperature", "training.warmup_ratio",
        "training.weight_decay",
    ]  # fmt: skip


def test_every_mistake_is_named_with_its_line_and_the_nearest_key(tmp_path: Path) -> None:
    text = (
        "method: byes\n"
        "metrc: {name: accuracy}\n"
        "parameters:\n"
        "  training.learning_rte: {min: 0.1, max: 1.0}\n"
        "  selector.temperature: {min: 1.0, max: 0.1}\n"
        "  training.weight_decay: {distribution: log_unifrm, min: 0.1, max: 1}\n"
        "  heads: {values: [1, 2]}\n"
        "early_terminate: {type: hyperband, min_itr: 3}\n"
        "saccade: {recipe: relevance, sett: 1}\n"
    )
    with pytest.raises(InputError) as caught:
        read_sweep(written(tmp_path, text))
    said = str(caught.value)
    for place, words in {
        "s.yaml:1": "byes: unknown; did you mean bayes?",
        "s.yaml:2": "did you mean metric?",
        "s.yaml:4": "did you mean training.learning_rate?",
        "s.yaml:5": "min must be below max",
        "s.yaml:6": "did you mean log_uniform?",
        "s.yaml:7": "write arch.heads or recursion.heads or selector.heads",
        "s.yaml:8": "did you mean min_iter?",
        "s.yaml:9": "did you mean set?",
    }.items():
        assert any(place in line and words in line for line in said.splitlines()), (place, said)


def test_swept_values_are_checked_against_the_schema_with_their_line(tmp_path: Path) -> None:
    sweep = read(tmp_path, "  training.learning_rate: {min: -1.0, max: 1.0}\n")
    with pytest.raises(InputError, match=r"s.yaml:5: training.learning_rate = -1"):
        planned(sweep)


def test_a_metric_the_recipe_does_not_measure_is_refused(tmp_path: Path) -> None:
    head = HEAD.replace("accuracy", "acuracy")
    sweep = read(tmp_path, "  training.learning_rate: {min: 0.1, max: 1.0}\n", head=head)
    with pytest.raises(InputError, match="did you mean accuracy"):
        planned(sweep)


def test_programs_of_the_agent_are_passed_over_with_a_note(tmp_path: Path) -> None:
    more = "program: train.py\ncommand: ['${env}', python, '${program}', '${args}']\n"
    sweep = read(tmp_path, "  training.learning_rate: {min: 0.1, max: 1.0}\n", more=more)
    assert [note.split(": ")[1] for note in sweep.notes] == ["program", "command"]
    assert sweep.command == ()


@pytest.mark.parametrize(
    ("fields", "low", "high"),
    [
        ("{min: 1, max: 5}", 1, 5),
        ("{min: 1.0, max: 5.0}", 1.0, 5.0),
        ("{distribution: log_uniform, min: 0, max: 2}", 1.0, 7.389056),
        ("{distribution: log_uniform_values, min: 0.01, max: 1}", 0.01, 1.0),
        ("{distribution: inv_log_uniform, min: 0, max: 2}", 0.1353353, 1.0),
        ("{distribution: q_uniform, min: 0, max: 1, q: 0.25}", 0.0, 1.0),
        ("{distribution: q_log_uniform_values, min: 2, max: 256, q: 2}", 2, 256),
    ],
)
def test_the_ends_of_every_range(tmp_path: Path, fields: str, low: Any, high: Any) -> None:
    (one,) = read(tmp_path, f"  training.beta2: {fields}\n").parameters
    assert one.probes() == pytest.approx([low, high], rel=1e-6)
    assert [type(end) for end in one.probes()] == [type(low), type(high)]


def test_rounding_goes_to_multiples_of_q(tmp_path: Path) -> None:
    sweep = read(tmp_path, "  training.beta2: {distribution: q_uniform, min: 0, max: 1, q: 0.1}\n")
    assert only(sweep, 0.3333) == 0.3
    assert only(sweep, 0.66) == 0.7


def test_normal_values_and_probabilities_come_from_quantiles(tmp_path: Path) -> None:
    bell = read(tmp_path, "  training.beta2: {distribution: normal, mu: 2, sigma: 3}\n")
    assert only(bell, 0.5) == 2.0
    assert only(bell, 0.8413447) == pytest.approx(5.0, abs=1e-4)
    text = (
        "  training.schedule: {values: [cosine, linear, constant], probabilities: [0.7, 0, 0.3]}\n"
    )
    weighted = read(tmp_path, text)
    chance = random.Random(0)
    drawn = [only(weighted, chance.random()) for _ in range(4000)]
    assert drawn.count("linear") == 0
    assert drawn.count("cosine") / len(drawn) == pytest.approx(0.7, abs=0.02)


def test_a_grid_needs_an_end(tmp_path: Path) -> None:
    head = HEAD.replace("random", "grid")
    with pytest.raises(InputError, match="a grid needs values"):
        read(tmp_path, "  training.learning_rate: {min: 0.1, max: 1.0}\n", head=head)
    text = "  selector.temperature: {values: [0.1, 0.3]}\n  training.batch_size: {min: 1, max: 3}\n"
    assert planned(read(tmp_path, text, head=head.replace("run_cap: 5\n", ""))).trials == 6


def test_random_without_a_cap_is_refused(tmp_path: Path) -> None:
    head = HEAD.replace("run_cap: 5\n", "")
    sweep = read(tmp_path, "  training.learning_rate: {min: 0.1, max: 1.0}\n", head=head)
    with pytest.raises(InputError, match="never ends by itself"):
        planned(sweep)
    assert planned(sweep, trials=3).trials == 3


@pytest.mark.parametrize(
    ("stopping", "every", "words"),
    [
        ("{type: hyperband, min_iter: 3}", 100, "it first looks after 3 reports"),
        ("{type: hyperband, min_iter: 1}", 0, "only at their end"),
        ("{type: hyperband, min_iter: 2}", 100, None),
        ("{type: hyperband, max_iter: 27, s: 2}", 100, "it first looks after 3 reports"),
        ("{type: hyperband, max_iter: 27, s: 3}", 100, None),
    ],
)
def test_early_stopping_that_can_never_trigger_is_warned_about(
    tmp_path: Path, stopping: str, every: int, words: str | None
) -> None:
    more = f"early_terminate: {stopping}\nsaccade: {{set: {{training.steps: 300,"
    more += f" training.eval_every: {every}}}}}\n"
    plan = planned(read(tmp_path, "  selector.temperature: {values: [0.1, 1]}\n", more=more))
    assert [words in one for one in plan.warnings] == [True] if words else plan.warnings == ()


def test_a_trial_gets_its_values_and_its_own_folder(tmp_path: Path) -> None:
    plan = planned(read(tmp_path, "  learning_rate: {min: 0.001, max: 0.01}\n"))
    config = plan.resolved({"training.learning_rate": 0.005}, number=7).config
    assert config.training.learning_rate == 0.005
    assert config.run.root / str(config.run.name) == Path("runs/s/trial-7")


def test_launched_trials_of_two_sweeps_do_not_meet_in_a_bucket(tmp_path: Path) -> None:
    names = set()
    for highest in (0.01, 0.02):
        text = f"  learning_rate: {{min: 0.001, max: {highest}}}\n"
        plan = planned(read(tmp_path, text, more="saccade: {target: fake}\n"))
        name = plan.resolved({"training.learning_rate": 0.005}, number=7).config.run.name
        assert name and name.startswith("s-") and name.endswith("-trial-7")
        assert plan.trial_folder(7) == Path("runs/s/trial-7")
        names.add(name)
    assert len(names) == 2


@pytest.mark.parametrize("name", packaged_sweeps())
def test_sweeps_that_ship_are_sound(name: str) -> None:
    plan = planned(find_sweep(name))
    assert plan.warnings == ()
    assert plan.trials > 1


def test_choices_survive_the_database(tmp_path: Path) -> None:
    sweep = read(tmp_path, "  selector.scores: {values: [[salience], [information, salience]]}\n")
    (one,) = sweep.parameters
    assert [one.value(text) for text in one.texts()] == [["salience"], ["information", "salience"]]
    assert json.loads(one.texts()[0]) == ["salience"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"- one\n", "s.yaml:1: expected `key: value` lines at the top level"),
        (b"method: random\n\tmetric: x\n", "s.yaml:2: not YAML: "),
        (b"\x89PNG\r\n\x1a\n\x00\x00\xff", "s.yaml: cannot be read: not UTF-8 text"),
        (
            f"{HEAD}parameters: &a\n  one: *a\n".encode(),
            "s.yaml:5: parameters.one: stands inside itself",
        ),
    ],
    ids=["a list", "a tab", "binary", "endless"],
)
def test_what_is_no_sweep_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "s.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_sweep(path, shown="s.yaml")
    assert str(caught.value).startswith(message)


def test_an_empty_file_says_what_is_required(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_sweep(written(tmp_path, ""), shown="s.yaml")
    said = str(caught.value)
    for key in ("method", "metric.name", "parameters"):
        assert f"s.yaml: {key}: required but not given" in said


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ("{distribution: log_uniform, min: 1, max: 1000}", "did you mean log_uniform_values?"),
        ("{min: 0.0, max: .inf}", "expected number"),
        ("{distribution: normal, mu: 0, sigma: 0}", "expected number > 0"),
        ("{distribution: q_normal, q: 0}", "expected number > 0"),
        ("{distribution: log_normal, mu: 1000}", "these are too large"),
        ("{values: 3}", "expected a list of values"),
        ("{values: []}", "expected a list of values"),
        ("{min: 1}", "expected value, values, or min and max"),
        ("{values: [1, 2], probabilities: [0.5]}", "summing to 1"),
        ("3", "expected keys below it: {value: 3}, or min and max"),
        ("[1, 2]", "expected keys below it: {values: [1, 2]}, or min and max"),
    ],
)
def test_a_wrong_range_is_one_message_with_its_line(
    tmp_path: Path, fields: str, words: str
) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, f"  training.beta2: {fields}\n")
    assert str(caught.value).startswith(f"{tmp_path}/s.yaml:5: parameters.training.beta2")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("head", "more", "message"),
    [
        (HEAD.replace("run_cap: 5", "# no end"), "", "1: method: random never ends by itself"),
        (HEAD.replace("accuracy", "acuracy"), "", "2: metric.name: acuracy: relevance does not"),
        (HEAD, "saccade: {target: vertx}\n", "6: saccade.target: vertx: unknown target; did you"),
        (HEAD, "saccade: {target: hf-jobs}\n", "6: saccade.target: hf-jobs: its runs stay in"),
        (HEAD, "saccade:\n  command: [x, '${folde}']\n", "7: saccade.command: ${folde}: unknown"),
    ],
)
def test_what_only_planning_can_see_is_named_with_its_line(
    tmp_path: Path, head: str, more: str, message: str
) -> None:
    sweep = read(tmp_path, "  training.beta2: {min: 0.1, max: 0.9}\n", head=head, more=more)
    with pytest.raises(InputError) as caught:
        planned(sweep)
    assert str(caught.value).startswith(f"{tmp_path}/s.yaml:{message}")
    assert not (tmp_path / "runs").exists()


def test_a_key_is_named_with_its_section(tmp_path: Path) -> None:
    more = "early_terminate: {min_iter: x, type: 3}\nsaccade: {parallel: none, recipe: 4}\n"
    head = HEAD.replace("goal: maximize", "goal: up")
    with pytest.raises(InputError) as caught:
        read(tmp_path, "  training.beta2: {min: 0.1, max: 0.9}\n", head=head, more=more)
    keys = ("metric.goal", "early_terminate.min_iter", "saccade.parallel", "saccade.recipe")
    assert all(f": {key}: " in str(caught.value) for key in keys)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("saccade: relevance\n", "6: saccade: expected keys below it: recipe, config"),
        ("saccade: {recipe: relevence}\n", "6: saccade.recipe: relevence: unknown recipe; did you"),
        ("saccade: {config: no.yaml}\n", "6: saccade.config: FOLDER/no.yaml: no such file"),
        ("saccade: {command: x}\n", "6: saccade.command: expected a list of words"),
        (
            "  model: {values: [tiny, nope]}\n",
            "6: parameters.model: nope: unknown option; there is",
        ),
    ],
)
def test_one_mistake_is_one_message(tmp_path: Path, more: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, "  training.beta2: {min: 0.1, max: 0.9}\n", more=more)
    said = str(caught.value).replace(str(tmp_path), "FOLDER")
    assert said.startswith(f"FOLDER/s.yaml:{message}")


def test_a_grid_without_bounds_is_refused_before_it_is_counted_out(tmp_path: Path) -> None:
    head = HEAD.replace("random", "grid")
    with pytest.raises(
        InputError, match=r"5: .*1000000000 values in a grid; it may have 1 to 10000"
    ):
        read(tmp_path, "  training.steps: {min: 1, max: 1000000000}\n", head=head)
    text = "  training.steps: {min: 1, max: 9999}\n  training.batch_size: {min: 1, max: 9999}\n"
    with pytest.raises(InputError, match=r"s.yaml:1: method: a grid of 99980001 points"):
        planned(read(tmp_path, text, head=head))

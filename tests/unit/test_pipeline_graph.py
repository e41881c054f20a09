"""What decides whether a stage runs again: configuration, code, inputs; and what does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from saccade.config.errors import InputError
from saccade.pipeline import plan as planning
from saccade.pipeline.graph import Gate, parse_reference
from saccade.pipeline.pipeline_file import read_pipeline
from saccade.pipeline.plan import Plan, make_plan

TRAIN = """name: p
stages:
  t:
    uses: train
    recipe: smoke/relevance
    set:
      training.steps: 3
"""


def planned(folder: Path, text: str, *words: str) -> Plan:
    path = folder / "p.yaml"
    path.write_text(text)
    return make_plan(read_pipeline(path), overrides=[f"run.root={folder}/runs", *words])


def key(folder: Path, text: str, *words: str) -> str:
    plan = planned(folder, text, *words)
    return plan.key(plan.stage("t"), {})


def test_the_key_follows_the_configuration_wherever_it_is_set(tmp_path: Path) -> None:
    base = key(tmp_path, TRAIN)
    assert key(tmp_path, TRAIN) == base
    assert key(tmp_path, TRAIN.replace("steps: 3", "steps: 4")) != base
    assert key(tmp_path, TRAIN, "training.steps=4") == key(
        tmp_path, TRAIN.replace("steps: 3", "steps: 4")
    )
    assert key(tmp_path, TRAIN, "eval.samples=3") != base


@pytest.mark.parametrize(
    "more",
    [
        "    gates: {min: {accuracy: 0.5}}\n", "    retries: 2\n", "    resources: {cpus: 2}\n",
        "    about: a sentence\n",
    ],
)  # fmt: skip
def test_what_moves_no_result_is_not_in_the_key(tmp_path: Path, more: str) -> None:
    assert key(tmp_path, TRAIN + more) == key(tmp_path, TRAIN)
    assert key(tmp_path, TRAIN, "training.log_every=7") == key(tmp_path, TRAIN)


def test_the_key_follows_the_code_it_stands_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = key(tmp_path, TRAIN)
    monkeypatch.setattr(planning, "code_version", lambda packages: "changed" if packages else "")
    assert key(tmp_path, TRAIN) != base


def test_the_key_follows_the_content_of_inputs_not_their_names(tmp_path: Path) -> None:
    text = "name: p\nstages:\n  t:\n    uses: command\n    command: [cat, '${inputs.x}']\n"
    data = tmp_path / "data.txt"
    data.write_text("one")
    plan = planned(tmp_path, text + f"    inputs: {{x: 'file:{data}'}}\n")
    stage = plan.stage("t")
    assert plan.key(stage, {"x": "1"}) == plan.key(stage, {"x": "1"})
    assert plan.key(stage, {"x": "1"}) != plan.key(stage, {"x": "2"})


def test_an_input_fills_the_configuration_in(tmp_path: Path) -> None:
    text = TRAIN.replace("training.steps: 3", "model.name: ${stages.first.model}")
    first = "  first:\n    uses: train\n    recipe: smoke/tiny-base\n"
    plan = planned(tmp_path, text + first)
    stage = plan.stage("t")
    assert stage.needs() == {"first": f"{tmp_path}/p.yaml:7"}
    resolved = plan.resolved(stage, inputs={"first.model": "/some/where"}, run="t-1")
    assert resolved is not None
    assert resolved.config.model.name == "/some/where"
    assert str(resolved.config.run.root) == f"{tmp_path}/runs/p"
    one = plan.key(stage, {"first.model": "aaa"})
    assert one != plan.key(stage, {"first.model": "bbb"})


def test_what_follows_a_stage_is_found(tmp_path: Path) -> None:
    text = "name: p\nstages:\n"
    for name, needs in {"a": "", "b": "a", "c": "b", "d": "a", "e": ""}.items():
        text += f"  {name}:\n    uses: command\n    command: [x]\n"
        text += f"    depends_on: {needs}\n" if needs else ""
    plan = planned(tmp_path, text)
    assert plan.pipeline.descendants("b") == {"b", "c"}
    assert plan.pipeline.descendants("a") == {"a", "b", "c", "d"}
    order = plan.pipeline.order()
    assert all(order.index(before) < order.index(after) for before, after in ["ab", "bc", "ad"])


def test_other_targets_are_for_training_only(tmp_path: Path) -> None:
    text = "name: p\nstages:\n  t:\n    uses: command\n    command: [x]\n    target: vertex\n"
    with pytest.raises(InputError, match=r"p\.yaml:6: stages\.t\.target: vertex: only stages"):
        planned(tmp_path, text)
    text = (
        "name: p\nstages:\n  a:\n    uses: train\n    target: vertex\n"
        "  b:\n    uses: train\n    set: {model.name: '${stages.a.model}'}\n    target: vertex\n"
    )
    assert planned(tmp_path, text).stage("b").target.value == "vertex"
    with pytest.raises(InputError, match=r"p\.yaml:5: stages\.a\.target: hf-jobs: its runs stay"):
        planned(tmp_path, text.replace("vertex", "hf-jobs"))
    with pytest.raises(
        InputError, match=r"p\.yaml:5: .*vertx: unknown target; did you mean vertex"
    ):
        planned(tmp_path, text.replace("vertex", "vertx"))


@pytest.mark.parametrize(
    ("bound", "value", "metrics", "closed"),
    [
        ("min", 0.5, {"a": 0.5}, False), ("min", 0.5, {"a": 0.49}, True),
        ("max", 0.5, {"a": 0.5}, False), ("max", 0.5, {"a": 0.51}, True),
        ("min", 0.5, {}, True), ("min", 0.5, {"a": float("nan")}, True),
        ("max", 0.5, {"a": float("nan")}, True), ("min", -0.02, {"a": 0.845 - 0.865}, False),
    ],
)  # fmt: skip
def test_a_gate_opens_only_for_what_keeps_its_bound(
    bound: str, value: float, metrics: dict[str, float], closed: bool
) -> None:
    gate = Gate("a", bound, value, "p.yaml:1")  # type: ignore[arg-type]
    assert (gate.fault(metrics) is not None) is closed


def test_references_are_read() -> None:
    made = parse_reference("artifact:model@best", where="x")
    assert made is not None
    assert (made.kind, made.name, made.alias) == ("artifact", "model", "best")
    assert getattr(parse_reference("artifact:model", where="x"), "alias", None) == "latest"
    assert parse_reference("model", where="x") is None

"""Pipeline files: what is read, and every mistake named with file and line before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from saccade.config.errors import InputError
from saccade.pipeline.pipeline_file import (
    find_pipeline,
    packaged_pipelines,
    parse_pipeline,
    read_pipeline,
)
from saccade.pipeline.plan import make_plan


def written(folder: Path, text: str) -> Path:
    path = folder / "p.yaml"
    path.write_text(text)
    return path


def refusal(folder: Path, text: str, *, planned: bool = False) -> str:
    """The message that a file is refused with; lines of `text` count from 1."""
    path = written(folder, text)
    with pytest.raises(InputError) as caught:
        pipeline = read_pipeline(path, shown="p.yaml")
        assert planned, "only resolving it should fail"
        make_plan(pipeline, overrides=[f"run.root={folder}/runs"])
    assert not (folder / "runs").exists(), "something ran"
    return str(caught.value)


COMMAND = """stages:
  one:
    uses: command
    command: [python, x.py, "${outputs.data}"]
    outputs: [data]
    metrics: [score]
"""


def test_a_stage_is_read_with_all_its_keys(tmp_path: Path) -> None:
    pipeline = read_pipeline(
        written(
            tmp_path,
            COMMAND + "  two:\n    uses: command\n    command: [cat, '${stages.one.data}']\n"
            "    depends_on: one\n    outputs: {text: {name: words, best: max score}}\n"
            "    metrics: [score]\n    gates: {min: {score: 0.5}, max: {score: 1}}\n"
            "    resources: {cpus: 2, usd_per_hour: 1.5}\n    retries: 3\n",
        )
    )
    two = pipeline.stages["two"]
    assert pipeline.name == "p"
    assert two.command == ("cat", "${inputs.one.data}")
    assert (two.inputs["one.data"].stage, two.inputs["one.data"].output) == ("one", "data")
    assert two.outputs["text"].name == "words"
    assert [(gate.bound, gate.metric, gate.value) for gate in two.gates] == [
        ("min", "score", 0.5), ("max", "score", 1.0),
    ]  # fmt: skip
    assert (two.resources.cpus, two.resources.usd_per_hour, two.retries) == (2, 1.5, 3)
    assert pipeline.order() == ["one", "two"]


def test_every_shipped_pipeline_is_valid(tmp_path: Path) -> None:
    names = packaged_pipelines()
    assert {"quickstart", "smoke/quickstart"} <= set(names)
    for name in names:
        pipeline, problems = find_pipeline(name)
        make_plan(pipeline, problems=problems, overrides=[f"run.root={tmp_path}"])
    assert find_pipeline("quickstart-smoke")[0].name == "quickstart-smoke"


def test_a_misspelled_pipeline_is_answered_with_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean quickstart"):
        find_pipeline("quickstrat")


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("stages:\n  a:\n    uses: trian\n", 3, "unknown kind trian; did you mean train?"),
        ("stages:\n  a:\n    recipe: relevance\n", 3, "missing: say what the stage does"),
        ("parralel: 2\n" + COMMAND, 1, "did you mean parallel?"),
        ("parallel: none\n" + COMMAND, 1, "expected a whole number"),
        (COMMAND + "    depend_on: [one]\n", 7, "did you mean depends_on?"),
        (COMMAND + "    depends_on: [won]\n", 7, "unknown stage won; did you mean one?"),
        (COMMAND + "    inputs: {x: '${stages.on.data}'}\n", 7, "unknown stage on; did you mean"),
        (COMMAND + "    inputs: {x: '${stages.one.dato}'}\n", 7, "no output dato; did you mean"),
        (COMMAND + "    inputs: {x: somewhere}\n", 7, "expected ${stages.STAGE.OUTPUT}"),
        (COMMAND + "    gates: {min: {scor: 1}}\n", 7, "nothing produces this metric; did you"),
        (COMMAND + "    gates: {min: {score: high}}\n", 7, "expected a number"),
        (COMMAND + "    gates: {least: {score: 1}}\n", 7, "expected `min: {METRIC: NUMBER}`"),
        (COMMAND + "    gates: {score: 1}\n", 7, "expected `min: {METRIC: NUMBER}`"),
        (COMMAND + "    gates: {min: {score: .nan}}\n", 7, "expected a number"),
        (COMMAND + "    min: {score: 0.5}\n", 7, "write gates: {min: {score: 0.5}}"),
        (COMMAND + "    max: 3\n", 7, "write gates: {max: {METRIC: 3}}"),
        (COMMAND + "    resources: {cpus: 1.5}\n", 7, "expected a whole number"),
        (COMMAND + "    resources: {cpus: .inf}\n", 7, "expected a number"),
        (COMMAND + "    outputs: data\n", 7, "expected keys and values below it"),
        ("stages:\n  a:\n    uses: [train]\n    command: x\n", 3, "unknown kind ['train']"),
        ("stages:\n  a:\n    uses: train\n    set: {steps: 3}\n", 4, "unknown key"),
        ("stages:\n  a:\n    uses: train\n    recipe: [sft]\n", 4, "expected text"),
        ("stages:\n  a:\n    uses: train\n    config: no.yaml\n", 4, "no.yaml: no such file"),
        ("stages:\n  a:\n    uses: command\n    command: [x, y: z]\n", 4, "expected a word"),
        ("stages:\n  a: train\n", 2, "expected uses, recipe, set"),
        (COMMAND + "    retries: -1\n", 7, "expected a whole number, 0 or more"),
        (COMMAND + "    resources: {gpu: 1}\n", 7, "did you mean gpus?"),
        (COMMAND + "    recipe: relevance\n", 7, "a stage that uses command has none"),
        (COMMAND + "  one:\n    uses: train\n", 7, "given twice"),
        ("stages:\n  a:\n    uses: command\n    command: [x, '${inputs.y}']\n", 4, "no such thing"),
        ("stages:\n  a:\n    uses: evaluate\n", 3, "needs the input run"),
        ("stages:\n  A b:\n    uses: train\n", 3, "a stage's name is a folder"),
    ],
)
def test_a_mistake_is_named_with_its_line(tmp_path: Path, text: str, line: int, words: str) -> None:
    message = refusal(tmp_path, text)
    assert f"p.yaml:{line}: " in message
    assert words in message


def test_the_four_classic_mistakes_come_in_one_message(tmp_path: Path) -> None:
    text = """stages:
  evaluate:
    uses: evaluate
    inputs: {run: "${stages.trian.run}"}
    gates:
      min: {acuracy: 0.6}
  x:
    uses: command
    command: [cat]
    inputs: {a: "artifact:gone@latest"}
    depends_on: [y]
  y:
    uses: command
    command: [cat]
    depends_on: [x]
"""
    pipeline, problems = parse_pipeline(written(tmp_path, text), shown="p.yaml")
    with pytest.raises(InputError) as caught:
        make_plan(pipeline, problems=problems, overrides=[f"run.root={tmp_path}/runs"])
    first, *lines = str(caught.value).splitlines()
    assert first == "4 mistakes in p.yaml"
    assert [line.split(": ")[0].strip() for line in lines] == [
        f"p.yaml:{number}" for number in (4, 6, 10, 11)
    ]
    words = ("unknown stage trian", "nothing produces", "no artifact gone", "in a circle")
    assert all(word in line for word, line in zip(words, lines, strict=True))


def test_a_circle_is_named_with_the_line_of_every_step(tmp_path: Path) -> None:
    text = """stages:
  a:
    uses: command
    command: [cat, "${stages.c.data}"]
    outputs: [data]
  b:
    uses: command
    command: [cat, "${stages.a.data}"]
    outputs: [data]
  c:
    uses: command
    command: [cat]
    outputs: [data]
    depends_on: [b]
"""
    message = refusal(tmp_path, text)
    assert "in a circle" in message
    for step in ("a needs c (p.yaml:4)", "b needs a (p.yaml:8)", "c needs b (p.yaml:14)"):
        assert step in message


def test_a_gate_on_what_a_recipe_does_not_measure_is_refused(tmp_path: Path) -> None:
    text = "stages:\n  t:\n    uses: train\n    recipe: relevance\n    gates:\n      min:\n"
    message = refusal(tmp_path, text + "        acuracy: 0.6\n")
    assert "p.yaml:7: stages.t.gates.min.acuracy: nothing produces this metric" in message
    assert "did you mean accuracy?" in message
    read_pipeline(written(tmp_path, text + "        accuracy_color: 0.6\n"))


def test_all_mistakes_of_a_file_come_at_once_in_line_order(tmp_path: Path) -> None:
    message = refusal(tmp_path, "paralell: 2\n" + COMMAND + "    retries: x\n    depends_on: [y]\n")
    lines = [line.strip() for line in message.splitlines()]
    assert lines[0] == "3 mistakes in p.yaml"
    assert [line.split(": ")[0] for line in lines[1:]] == ["p.yaml:1", "p.yaml:8", "p.yaml:9"]


def test_a_wrong_value_of_a_recipe_is_named_where_it_stands(tmp_path: Path) -> None:
    text = "stages:\n  t:\n    uses: train\n    set:\n      training.steps: many\n"
    assert "p.yaml:5: training.steps = many" in refusal(tmp_path, text, planned=True)
    assert "did you mean training.steps?" in refusal(tmp_path, text.replace("steps", "stepps"))


def test_mistakes_of_one_stage_all_have_their_lines(tmp_path: Path) -> None:
    text = (
        "stages:\n  t:\n    uses: train\n    recipe: relevence\n    set: {training.steps: many}\n"
    )
    first, *lines = refusal(tmp_path, text, planned=True).splitlines()
    assert first == "2 mistakes in p.yaml"
    assert [line.split(": ")[0].strip() for line in lines] == ["p.yaml:4", "p.yaml:5"]


def test_an_unknown_recipe_is_named_where_it_stands(tmp_path: Path) -> None:
    text = "stages:\n  t:\n    uses: train\n    recipe: relevence\n"
    message = refusal(tmp_path, text, planned=True)
    assert "p.yaml:4: recipe = relevence: unknown recipe; did you mean relevance?" in message


def test_a_key_that_was_fixed_in_training_is_refused_when_measuring(tmp_path: Path) -> None:
    text = (
        "stages:\n  t:\n    uses: train\n  e:\n    uses: evaluate\n    inputs:\n"
        "      run: ${stages.t.run}\n    set:\n      training.steps: 3\n"
    )
    message = refusal(tmp_path, text)
    assert "p.yaml:9: stages.e.set.training.steps: fixed when the run was trained" in message
    measured = text.replace("training.steps: 3", "data.eval.scenes: few")
    assert "p.yaml:9: data.eval.scenes = few" in refusal(tmp_path, measured, planned=True)


def test_a_missing_artifact_or_file_is_named_before_anything_runs(tmp_path: Path) -> None:
    inputs = "    inputs:\n      a: artifact:nothing@latest\n      b: file:not/there.txt\n"
    message = refusal(tmp_path, COMMAND + inputs, planned=True)
    assert "p.yaml:8: stages.one.inputs.a: no artifact nothing in" in message
    assert "p.yaml:9: stages.one.inputs.b: not/there.txt: no such file or folder" in message


def test_an_artifact_of_the_same_file_is_read_from_its_stage(tmp_path: Path) -> None:
    text = COMMAND + "  two:\n    uses: command\n    command: [x]\n    inputs:\n"
    message = refusal(tmp_path, text + "      a: artifact:p-one-data@latest\n")
    assert "made by a stage of this file: write ${stages.one.data}" in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "p.yaml: no stages: expected `stages:` with names"),
        (b"stages:\n", "p.yaml:1: stages: expected names of stages with `uses:` below them"),
        (b"- one\n- two\n", "p.yaml:1: expected `key: value` lines at the top level"),
        (b"stages:\n\tone: {}\n", "p.yaml:2: not YAML: found character '\\t'"),
        (b"stages: {one: [}\n", "p.yaml:1: not YAML: "),
        (b"\x89PNG\r\n\x1a\n\x00\x00\xff", "p.yaml: cannot be read: not UTF-8 text"),
        (b"stages:\n  \x00\n", "p.yaml:2: not YAML: a character that no text has (#x0000)"),
        (b"stages: &a\n  one: *a\n", "p.yaml:2: stages.one: stands inside itself"),
        (b"parralel: 2\n", "2 mistakes in p.yaml"),
        (
            b"stages: {a: &a {uses: command, command: [b]}}\nstages: {b: *a}\n",
            "p.yaml:2: stages: g",
        ),
    ],
    ids=["empty", "no names", "a list", "a tab", "cut", "binary", "nul", "endless", "two", "twice"],
)
def test_what_is_no_pipeline_file_is_one_message(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "p.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_pipeline(path, shown="p.yaml")
    assert str(caught.value).startswith(message)
    assert ("\n" in str(caught.value)) is message.startswith("2 mistakes")


def test_a_folder_and_a_missing_file_are_one_message(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").mkdir()
    for name, message in (("p.yaml", "Is a directory"), ("q.yaml", "No such file or directory")):
        with pytest.raises(InputError) as caught:
            read_pipeline(tmp_path / name, shown=name)
        assert str(caught.value) == f"{name}: cannot be read: {message}"


def test_a_stage_of_a_list_inside_a_setting_is_an_input(tmp_path: Path) -> None:
    """Phases and mixtures are lists of mappings; what they name is read from the stage."""
    text = (
        COMMAND + "  two:\n    uses: train\n    recipe: pretrain\n    set:\n"
        "      pretrain.schedule: [{until: 1.0, task: '${stages.one.dato}'}]\n"
    )
    assert "no output dato; did you mean data?" in refusal(tmp_path, text)
    stage = read_pipeline(written(tmp_path, text.replace("dato", "data"))).stages["two"]
    assert stage.inputs["one.data"].output == "data"
    assert stage.settings()["pretrain.schedule"][0]["task"] == "${inputs.one.data}"

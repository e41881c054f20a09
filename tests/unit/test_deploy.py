"""Deploying: what is in the folder, what the card may say, what is refused, what a kill leaves."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

from saccade.cli import app
from saccade.config.errors import InputError
from saccade.config.resolve import resolve
from saccade.config.schema import ModelConfig
from saccade.evaluation.load import load_run, model_fingerprint
from saccade.models.backbone import load_backbone
from saccade.models.relevance import merge
from saccade.models.relevance.model import RelevanceModel
from saccade.pipeline.deploy import _locked, deploy, refuse_other_folder, refuse_secrets
from saccade.pipeline.deploy_code import needed_code, requirements
from saccade.training.rundir import RunDir
from tests.scored_run import OVERRIDES, base_folder, make_run

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "src" / "saccade" / "assets" / "space" / "app.py"
TOP = {"LICENSE", "README.md", "app.py", "model", "requirements.txt", "saccade", "space.json"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return make_run(tmp_path_factory.mktemp("deploy"))


@pytest.fixture(scope="module")
def space(run: RunDir) -> Path:
    return deploy(run.path, run.path.parent / "demo", run=run, limit=3).folder


@pytest.fixture
def own_run(tmp_path: Path) -> RunDir:
    return make_run(tmp_path)


def head_of(readme: Path) -> dict[str, Any]:
    return yaml.safe_load(readme.read_text().split("---\n")[1])


def eval_config() -> Any:
    return resolve("relevance", overrides=list(OVERRIDES)).config


def test_the_folder_holds_what_a_space_needs_and_nothing_of_this_machine(
    space: Path, run: RunDir
) -> None:
    assert {path.name for path in space.iterdir()} == TOP
    assert (space / "app.py").read_bytes() == PAGE.read_bytes()
    for path in space.rglob("*"):
        if path.is_file() and path.suffix != ".safetensors":
            text = path.read_text("utf-8")
            assert str(run.path.parent.parent) not in text, path
            assert str(ROOT) not in text, path
    assert not [path for path in space.parent.iterdir() if path.name.startswith(".demo")]


def test_the_front_matter_is_what_a_gradio_space_is_built_from(space: Path) -> None:
    head = head_of(space / "README.md")
    pins = (ROOT / "constraints.txt").read_text()
    assert head["sdk"] == "gradio" and head["app_file"] == "app.py"
    assert f"gradio=={head['sdk_version']}\n" in pins
    assert len(head["short_description"]) <= 60
    lines = [
        line for line in (space / "requirements.txt").read_text().splitlines() if line[0] != "#"
    ]
    assert set(lines) <= set(pins.splitlines())
    assert {line.partition("==")[0] for line in lines} >= {"torch", "transformers", "gradio"}
    assert head_of(space / "model" / "README.md")["pipeline_tag"] == "image-text-to-text"


def test_the_model_in_the_folder_is_the_run_bit_for_bit(space: Path, run: RunDir) -> None:
    there = RelevanceModel.from_pretrained(space / "model", model=ModelConfig(device="cpu"))
    here = load_run(run).model.state_dict()
    assert all(torch.equal(value, here[name]) for name, value in there.state_dict().items())


def test_the_code_in_the_folder_loads_and_answers_without_the_checkout(space: Path) -> None:
    program = (
        "import sys; from pathlib import Path; here = Path(sys.argv[1]); sys.path[0] = str(here)\n"
        "import types; sys.modules['gradio'] = types.SimpleNamespace(Error=RuntimeError)\n"
        "import app, saccade; assert Path(saccade.__file__).is_relative_to(here)\n"
        "from PIL import Image; demo = app.Demo(here); file = here.parent / 'gray.png'\n"
        "Image.new('RGB', (96, 96), 'gray').save(file)\n"
        "print(demo.answer(str(file), 'what is it?', 50)[2])\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", program, str(space)], cwd=space.parent, env=environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "18 of 36 visual tokens were read."


def test_the_vendored_modules_import_nothing_that_is_not_there(space: Path) -> None:
    code = needed_code(PAGE)
    assert {f"saccade/{p.relative_to(space / 'saccade').as_posix()}"
            for p in (space / "saccade").rglob("*.py")} == set(code.files)  # fmt: skip
    assert not [name for name in code.files if "training" in name or "cli" in name]
    for content in code.files.values():
        for node in ast.walk(ast.parse(content)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("saccade."):
                place = (node.module or "").replace(".", "/")
                assert {f"{place}.py", f"{place}/__init__.py"} & set(code.files), node.module


def test_a_package_without_a_pin_is_an_error() -> None:
    with pytest.raises(Exception, match="names no version of nowhere"):
        requirements(["torch", "nowhere"], pins=(ROOT / "constraints.txt").read_text())


def test_a_card_without_measurements_says_so(tmp_path: Path) -> None:
    model = base_folder(tmp_path / "plain")
    made = deploy(model, tmp_path / "demo", config=eval_config(), limit=2)
    card = (made.folder / "README.md").read_text()
    assert "No quality of this model was measured" in card
    assert "came as a folder, without a run" in card
    assert "%" not in card.split("## Measured")[1]
    assert not (made.folder / "model" / "relevance.json").exists()
    again = load_backbone(ModelConfig(name=str(made.folder / "model"), device="cpu")).model
    before = load_backbone(ModelConfig(name=str(model), device="cpu")).model.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in again.state_dict().items())


def test_every_number_in_the_card_is_in_a_file_of_the_run_with_its_command(
    own_run: RunDir, tmp_path: Path
) -> None:
    runner = CliRunner()
    for verb in ("eval", "compare"):
        found = runner.invoke(app, [verb, str(own_run.path)], catch_exceptions=False)
        assert found.exit_code == 0
    made = deploy(own_run.path, tmp_path / "demo", run=own_run, limit=2)
    card = (made.folder / "README.md").read_text()
    day = r"`, \d{4}-\d\d-\d\d\."
    for command in ("saccade eval toy --keep 0.25", "saccade compare toy",
                    "saccade train relevance run.name=toy"):  # fmt: skip
        assert re.search(re.escape(f"`{command}") + day, card), command
    evaluation = json.loads((own_run.path / "evaluation.json").read_text())
    comparison = json.loads((own_run.path / "comparison.json").read_text())
    known = {f"{one['accuracy']:.3f}" for one in (*comparison["rows"], evaluation)}
    known |= {f"{one['accuracy']:.3f}" for one in evaluation["kinds"].values()}
    told = card.split("### ")
    for part in told[1:3]:
        rows = [line.split(" | ") for line in part.splitlines() if line.startswith("| ")][2:]
        assert rows and {row[1 if len(row) == 5 else 2] for row in rows} <= known
    assert "accuracy | 0.5 |" in told[3]


def test_numbers_of_other_weights_are_left_out_and_said_so(own_run: RunDir, tmp_path: Path) -> None:
    values = {"model": "other", "accuracy": 0.987, "low": 0.9, "high": 1.0, "samples": 5,
              "data": "x"}  # fmt: skip
    (own_run.path / "evaluation.json").write_text(json.dumps(values))
    made = deploy(own_run.path, tmp_path / "demo", run=own_run, limit=2)
    card = (made.folder / "README.md").read_text()
    assert "0.987" not in card and "`evaluation.json` was made with other weights" in card
    values["model"] = model_fingerprint(own_run)
    (own_run.path / "evaluation.json").write_text(json.dumps(values))
    made = deploy(own_run.path, tmp_path / "demo", run=own_run, limit=2)
    assert "0.987" in (made.folder / "README.md").read_text()


def test_drift_is_refused_and_what_was_there_stays(
    own_run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "demo"
    deploy(own_run.path, folder, run=own_run, limit=2)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def lose(model: RelevanceModel, adapter: Any, *, where: Path) -> None:
        model.base.model.language_model.layers[1].mlp.down_proj.weight.data[0, 0] += 1.0

    monkeypatch.setattr(merge, "_merge", lose)
    with pytest.raises(InputError, match="merging changes the model"):
        deploy(own_run.path, folder, run=own_run, limit=2)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".demo")]


def test_an_adapter_is_merged_and_the_numbers_of_the_run_are_not_its_own(
    own_run: RunDir, tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft", reason="the extra `rl` is not installed")
    adapter = adapter_folder(peft, own_run, tmp_path / "lora")
    made = deploy(own_run.path, tmp_path / "demo", run=own_run, adapter=adapter, limit=3)
    assert made.parity.largest_drift <= made.parity.tolerance
    card = (made.folder / "README.md").read_text()
    assert "The adapter `lora` is merged into the weights" in card
    assert "No quality of this model was measured" in card
    merged = RelevanceModel.from_pretrained(made.folder / "model", model=ModelConfig(device="cpu"))
    plain = load_run(own_run).model
    name = "base.model.language_model.layers.0.self_attn.q_proj.weight"
    change = merged.state_dict()[name] - plain.state_dict()[name]
    assert float(change.abs().max()) > 1e-3


def test_a_folder_with_an_adapter_alone_is_deployed_on_its_base(
    own_run: RunDir, tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft", reason="the extra `rl` is not installed")
    base = load_backbone(own_run.config().model)
    adapter = adapter_folder(peft, own_run, tmp_path / "lora", base=base.model)
    made = deploy(adapter, tmp_path / "demo", config=eval_config(), limit=2)
    written = load_backbone(ModelConfig(name=str(made.folder / "model"), device="cpu")).model
    name = "model.language_model.layers.0.self_attn.q_proj.weight"
    fresh = load_backbone(own_run.config().model).model.state_dict()[name]
    assert float((written.state_dict()[name] - fresh).abs().max()) > 1e-3


@pytest.mark.parametrize("lost", [False, True], ids=["whole", "one weight moved"])
def test_a_run_that_merged_its_adapter_itself_is_compared_with_the_two_pieces(
    own_run: RunDir, tmp_path: Path, lost: bool
) -> None:
    peft = pytest.importorskip("peft", reason="the extra `rl` is not installed")
    run = tuned_run(peft, own_run, tmp_path, lost=lost)
    if lost:
        with pytest.raises(InputError, match="merging changes the model"):
            deploy(run.path, tmp_path / "demo", run=run, limit=3)
        assert not (tmp_path / "demo").exists()
        return
    made = deploy(run.path, tmp_path / "demo", run=run, limit=3)
    assert 0.0 < made.parity.largest_drift <= made.parity.tolerance
    written = (made.folder / "model" / "model.safetensors").read_bytes()
    assert written == (run.path / "model" / "model.safetensors").read_bytes()


def tuned_run(peft: Any, other: RunDir, folder: Path, *, lost: bool) -> RunDir:
    """A finished `sft` run: `adapter/` and, merged, `model/`."""
    base = load_backbone(other.config().model)
    words = [*OVERRIDES, f"model.name={base.name}", f"run.root={folder}", "run.name=tuned"]
    run = RunDir.create(resolve("sft", overrides=words))
    adapter_folder(peft, other, run.path / "adapter", base=base.model)
    again = load_backbone(other.config().model)
    merged = peft.PeftModel.from_pretrained(again.model, str(run.path / "adapter"))
    model = merged.merge_and_unload()
    if lost:
        model.model.language_model.layers[1].mlp.down_proj.weight.data[0, 0] += 1.0
    model.save_pretrained(run.path / "model")
    again.processor.save_pretrained(run.path / "model")
    run.finish(step=4, metrics={"loss": 1.0})
    return run


def test_a_pipeline_ends_with_a_space(own_run: RunDir, empty: Path) -> None:
    stages = {"space": {"uses": "deploy", "inputs": {"run": f"file:{own_run.path}"}}}
    (empty / "mine.yaml").write_text(yaml.safe_dump({"name": "mine", "stages": stages}))
    runner = CliRunner()
    for _ in range(2):  # the second time it is finished already
        found = runner.invoke(app, ["pipeline", "run", "mine.yaml"], catch_exceptions=False)
        assert found.exit_code == 0, found.output
    (page,) = empty.glob("runs/mine/space-*/space/app.py")
    assert page.read_bytes() == PAGE.read_bytes()


def test_a_pipeline_refuses_a_secret_in_the_space_as_the_command_does(
    own_run: RunDir, empty: Path
) -> None:
    stages = {"space": {"uses": "deploy", "inputs": {"run": f"file:{own_run.path}"}}}
    (empty / "mine.yaml").write_text(yaml.safe_dump({"name": "mine", "stages": stages}))
    (empty / ".env").write_text("WANDB_API_KEY='import gradio as gr'\n")  # stands in app.py
    try:
        found = CliRunner().invoke(app, ["pipeline", "run", "mine.yaml"])
    finally:
        os.environ.pop("WANDB_API_KEY", None)  # handed to the libraries, in this process too
    assert isinstance(found.exception, InputError)
    assert "app.py: holds WANDB_API_KEY; nothing was written" in str(found.exception)
    assert not list(empty.glob("runs/mine/space-*/space"))


def adapter_folder(peft: Any, run: RunDir, folder: Path, *, base: Any = None) -> Path:
    """A saved LoRA adapter that does something."""
    config = peft.LoraConfig(r=2, target_modules=r".*language_model.*q_proj")
    made = peft.get_peft_model(base if base is not None else load_run(run).model.base, config)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.05)
    made.save_pretrained(folder)
    return folder


def test_leftovers_of_a_kill_go_and_folders_of_others_stay(own_run: RunDir, tmp_path: Path) -> None:
    names = (".demo-notes", ".demo.deploying-dead", ".demo.deploying-busy", ".demo-2.deploying-x")
    for name in names:
        (tmp_path / name).mkdir()
    with _locked(tmp_path / ".demo.deploying-busy"):
        deploy(own_run.path, tmp_path / "demo", run=own_run, limit=2)
    left = [path.name for path in tmp_path.iterdir() if path.name.startswith(".demo")]
    assert sorted(left) == sorted(name for name in names if not name.endswith("dead"))


@pytest.mark.parametrize("name", [".", ".."])
def test_the_folder_one_stands_in_is_not_replaced(name: str) -> None:
    with pytest.raises(InputError, match="name a folder inside it"):
        refuse_other_folder(Path(name))


def test_a_folder_of_someone_else_is_not_touched(own_run: RunDir, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="not a Space that saccade wrote"):
        deploy(own_run.path, folder, run=own_run, limit=2)
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    "content",
    ["hf_" + "A" * 34, "-----BEGIN PRIVATE KEY-----", "KEY=" + "AKIA" + "A" * 16],
    ids=["hub token", "private key", "cloud key"],
)
def test_something_like_a_key_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "notes.json").write_text(json.dumps({"note": content}))
    with pytest.raises(InputError, match=r"notes\.json: holds something that looks like"):
        refuse_secrets(tmp_path, secrets={})


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    yield tmp_path


def test_the_command_says_what_it_checked_and_refuses_what_is_no_model(
    own_run: RunDir, empty: Path
) -> None:
    runner = CliRunner()
    words = ["deploy", str(own_run.path), "--out", "demo", "--limit", "2", "--json"]
    said = json.loads(runner.invoke(app, words, catch_exceptions=False).stdout)
    assert said["folder"] == "demo" and said["samples"] == 2 and said["largest_drift"] == 0.0
    (empty / "nothing").mkdir()
    refused = runner.invoke(app, ["deploy", "nothing"])
    assert isinstance(refused.exception, InputError)
    assert "not a run directory" in str(refused.exception)


def test_two_deployments_of_one_run_are_equal(own_run: RunDir, tmp_path: Path) -> None:
    made = [deploy(own_run.path, tmp_path / name, run=own_run, limit=2) for name in ("a", "b")]
    files = [
        {path.relative_to(one.folder): path.read_bytes()
         for path in one.folder.rglob("*") if path.is_file()}
        for one in made
    ]  # fmt: skip
    assert files[0] == files[1]

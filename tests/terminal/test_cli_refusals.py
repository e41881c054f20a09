"""What a user can get wrong: one clear message, the right exit code, no traceback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from saccade_cli import refused, saccade


def test_a_typo_in_a_key_names_the_nearest_one(tmp_path: Path) -> None:
    text = refused(saccade("train", "training.lerning_rate=1", folder=tmp_path), code=2)
    assert "did you mean training.learning_rate?" in text


def test_a_value_of_the_wrong_type_names_what_is_expected(tmp_path: Path) -> None:
    text = refused(saccade("train", "training.steps=many", folder=tmp_path), code=2)
    assert "training.steps = many: expected integer >= 1" in text


def test_several_mistakes_come_in_one_message(tmp_path: Path) -> None:
    (tmp_path / ".training").write_text("BATCH_SIZ=2\n")
    outcome = saccade(
        "train", "training.steps=0", "model.nme=x", folder=tmp_path, env={"SACCADE_SED": "1"}
    )
    text = refused(outcome, code=2)
    assert "4 mistakes" in text
    for part in (".training:1: BATCH_SIZ", "SACCADE_SED", "training.steps = 0", "model.name?"):
        assert part in text


@pytest.mark.parametrize("words", [["relevence"], ["absent.yaml"], ["relevance", "stray"]])
def test_a_wrong_recipe_or_stray_word_is_refused(tmp_path: Path, words: list[str]) -> None:
    refused(saccade("train", *words, folder=tmp_path), code=2)


def test_a_missing_model_folder_is_the_users_mistake(tmp_path: Path) -> None:
    outcome = saccade("train", "smoke/relevance", "model.name=./absent", folder=tmp_path)
    assert outcome.code == 2
    assert "Traceback" not in outcome.err
    assert "model.name=./absent: no such model folder" in outcome.err


def test_an_output_folder_that_cannot_be_written_is_an_outside_lack(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    text = refused(saccade("train", "run.root=file", folder=tmp_path), code=3)
    assert "cannot be written" in text
    text = refused(saccade("train", "run.root=/proc/saccade", folder=tmp_path), code=3)
    assert "choose another with run.root=FOLDER" in text


def test_a_run_that_does_not_exist_names_the_nearest_one(tmp_path: Path) -> None:
    text = refused(saccade("eval", "relevance", folder=tmp_path), code=2)
    assert "saccade train" in text
    (tmp_path / "runs" / "relevance").mkdir(parents=True)
    (tmp_path / "runs" / "relevance" / "config.yaml").write_text("recipe: relevance\n")
    for verb in ("eval", "compare", "report"):
        text = refused(saccade(verb, "relevence", folder=tmp_path), code=2)
        assert "did you mean relevance?" in text


def test_a_key_that_training_fixed_cannot_change_when_measuring(tmp_path: Path) -> None:
    (tmp_path / "runs" / "one").mkdir(parents=True)
    (tmp_path / "runs" / "one" / "config.yaml").write_text("recipe: relevance\n")
    outcome = saccade("compare", "one", "selector.width=8", "eval.samples=2", folder=tmp_path)
    text = refused(outcome, code=2)
    assert "selector.width: fixed when runs/one was trained" in text


def test_a_damaged_dotenv_is_refused_without_showing_its_values(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("WANDB_API_KY=sesame\n")
    text = refused(saccade("train", "smoke/tiny-base", folder=tmp_path), code=2)
    assert "did you mean WANDB_API_KEY?" in text
    assert "sesame" not in text


def test_a_wrong_log_level_is_refused(tmp_path: Path) -> None:
    outcome = saccade("config", "show", folder=tmp_path, env={"SACCADE_LOG_LEVEL": "loud"})
    assert "expected debug, info, warning, error" in refused(outcome, code=2)


def test_checking_a_broken_folder_names_each_row_and_leaves_with_2(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.new("RGB", (64, 64), "red").save(photos / "good.png")
    (photos / "cut.png").write_bytes((photos / "good.png").read_bytes()[:40])
    rows = [
        {"id": "a", "image": "good.png", "question": "colour?", "answer": "red"},
        {"id": "b", "image": "cut.png", "question": "colour?", "answer": "red"},
        {"id": "c", "image": "absent.png", "question": "colour?", "answer": "red"},
        {"id": "a", "image": "good.png", "question": "colour?", "answer": "red"},
    ]
    (photos / "index.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    outcome = saccade("data", "check", "photos", "--json", folder=tmp_path)
    assert outcome.code == 2
    report = json.loads(outcome.out)["train"]
    assert [problem["row"] for problem in report["problems"]] == [2, 3, 4]
    assert all(problem["fix"] for problem in report["problems"])
    shown = saccade("data", "show", "photos", "--limit", "4", "--json", folder=tmp_path)
    assert json.loads(shown.out)[0]["question"] == "colour?"
    missing = saccade("data", "check", "absent.jsonl", folder=tmp_path)
    assert "no such file or folder" in refused(missing, code=2)


def test_a_bug_keeps_its_traceback_and_leaves_with_1(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import saccade.cli_inputs as inputs\n"
        "def broken(*args, **kwargs): raise ZeroDivisionError('seeded bug')\n"
        "inputs.resolve_words = broken\n"
    )
    source = Path(__file__).parents[2] / "src"
    outcome = saccade("config", "show", folder=tmp_path, env={"PYTHONPATH": f"{tmp_path}:{source}"})
    assert outcome.code == 1
    assert "Traceback" in outcome.err
    assert "seeded bug" in outcome.err

"""The official harness: its command line, its missing environment, and the import of its files.

The files are the ones lmms-eval 0.7.3 wrote for a run, shortened. The harness itself runs where
SACCADE_LMMS_PYTHON names the Python of an environment that has it.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from pathlib import Path

import pytest

from saccade.config.errors import InputError, OutsideError
from saccade.evaluation.official import (
    check_environment,
    import_results,
    lmms_command,
    official_folder,
    official_table,
    run_official,
    stream,
)
from saccade.evaluation.records import read_predictions
from saccade.evaluation.run import evaluate_run, evaluation_file, read_evaluation, rejudge
from saccade.training.rundir import RunDir
from tests.scored_run import make_run

# read at import: a fixture of conftest.py hides the variables of this name from each test
HARNESS_PYTHON = os.environ.get("SACCADE_LMMS_PYTHON")
RESULTS = {
    "results": {
        "vqav2_val": {
            "alias": "vqav2_val",
            "exact_match,none": 0.65,
            "exact_match_stderr,none": 0.35,
            "exact_match_stderr_clt,none": 0.35,
            "exact_match_stderr_clustered,none": "N/A",
        },
        "docvqa_val": {"alias": "docvqa_val", "anls,none": 0.8, "anls_stderr,none": "N/A"},
    },
    "group_subtasks": {"vqav2_val": [], "docvqa_val": []},
    "configs": {"vqav2_val": {"task": "vqav2_val", "metadata": [{"version": 0.0}]}},
    "versions": {"vqav2_val": "Yaml", "docvqa_val": "Yaml"},
    "n-samples": {"vqav2_val": {"original": 214354, "effective": 2}},
    "config": {"model": "saccade", "model_args": "pretrained=runs/toy"},
    "lmms_eval_version": "unknown@unknown",
    "date": "20261122_000215",
}
SAMPLES = [
    {"doc_id": 0, "target": "net", "filtered_resps": "net", "token_counts": [None],
     "doc_hash": "74234e", "exact_match": 1.0,
     "input": "Through what?\nAnswer the question using a single word or phrase."},
    {"doc_id": 1, "target": "blue", "filtered_resps": ["a line\u2028separator"], "resps": ["x"],
     "doc_hash": "8d1e33", "exact_match": 0.3, "input": "Which color?"},
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return make_run(tmp_path_factory.mktemp("official"))


def harness_files(folder: Path) -> Path:
    """Write what the harness leaves behind; returns the results file."""
    folder.mkdir(parents=True)
    results = folder / "20261122_000215_results.json"
    results.write_text(json.dumps(RESULTS, indent=2))
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in SAMPLES)
    (folder / "20261122_000215_samples_vqav2_val.jsonl").write_text(lines)
    return results


def test_the_command_names_model_run_tasks_and_output(run: RunDir, tmp_path: Path) -> None:
    command = lmms_command(
        run, tasks=["vqav2_val", "gqa"], python=Path("env/bin/python"), folder=tmp_path, limit=5
    )
    assert command[:5] == ["env/bin/python", "-m", "lmms_eval", "--model", "saccade"]
    pairs = dict(itertools.pairwise(command[5:]))
    assert pairs["--tasks"] == "vqav2_val,gqa"
    assert pairs["--limit"] == "5"
    assert pairs["--output_path"] == str(tmp_path)
    assert "--log_samples" in command
    arguments = dict(part.split("=") for part in pairs["--model_args"].split(","))
    assert arguments == {
        "pretrained": str(run.path.resolve()),
        "config": str(tmp_path / "config.yaml"),
        "arm": "trained",
        "counts": str(tmp_path / "tokens.jsonl"),
    }


def test_words_the_harness_would_misread_are_refused(run: RunDir, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--tasks"):
        lmms_command(run, tasks=[], python=Path("p"), folder=tmp_path)
    with pytest.raises(InputError, match="comma"):
        lmms_command(run, tasks=["gqa"], python=Path("p"), folder=tmp_path / "a,b")


def test_a_missing_environment_gives_the_commands_that_make_one(tmp_path: Path) -> None:
    for python in (None, tmp_path / "no" / "python"):
        with pytest.raises(OutsideError) as refused:
            check_environment(python)
        text = str(refused.value)
        assert "    python3 -m venv lmms-eval-env\n" in text
        assert "pip install 'torch==2.13.*' 'transformers==5.23.*' lmms-eval==0.7.3" in text
        assert "pip install --no-deps " in text


def test_a_python_without_the_harness_is_asked_and_refused() -> None:
    """Saccade's own environment never has the harness: their pins contradict each other."""
    with pytest.raises(OutsideError, match="No module named 'lmms_eval'") as refused:
        check_environment(Path(sys.executable))
    assert f"{sys.executable} -m pip" not in str(refused.value)  # it would break saccade's own


def test_a_programs_output_is_passed_on_line_by_line_and_kept(tmp_path: Path) -> None:
    heard: list[str] = []
    script = "import sys; print('one [x]'); print('two', file=sys.stderr, flush=True)"
    stream([sys.executable, "-c", script], log_file=tmp_path / "log.txt", tell=heard.append)
    assert sorted(heard[1:]) == ["one [x]", "two"]
    assert "one [x]\n" in (tmp_path / "log.txt").read_text()


def test_a_program_that_fails_is_quoted(tmp_path: Path) -> None:
    script = "print('out of memory'); raise SystemExit(7)"
    with pytest.raises(OutsideError, match=r"exit code 7(.|\n)*out of memory"):
        stream([sys.executable, "-c", script], log_file=tmp_path / "l", tell=lambda line: None)


def test_results_come_home_under_the_tasks_own_names(run: RunDir, tmp_path: Path) -> None:
    results = harness_files(tmp_path / "runs__toy")
    counts = tmp_path / "tokens.jsonl"
    counts.write_text('{"id": "vqav2_val/0", "full": [64], "kept": [16], "tokens": 30}\n')
    stored = import_results(run, results, counts=counts, installed="0.7.3")
    assert stored["version"] == "0.7.3"
    task = stored["tasks"]["vqav2_val"]
    assert (task["version"], task["samples"]) == ("0.0", 2)
    assert task["metrics"] == {"exact_match": {"value": 0.65, "stderr": 0.35}}
    assert stored["tasks"]["docvqa_val"]["metrics"] == {"anls": {"value": 0.8, "stderr": None}}
    assert stored["tokens"]["visual_tokens_kept"] == 16
    first, second = read_predictions(official_folder(run) / "predictions.jsonl")
    assert (first.id, first.prediction, first.value) == ("vqav2_val/0", "net", 1.0)
    assert (first.kept, first.metric) == ((16,), "lmms-eval: exact_match")
    assert (second.value, second.correct, second.tokens) == (0.3, False, 0)
    assert second.prediction == "a line\u2028separator"
    assert official_table(stored).row_count == 2


def test_the_runs_own_scores_and_the_harnesss_live_side_by_side(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    stored = import_results(run, harness_files(tmp_path / "files"))
    assert read_evaluation(run) is None  # the run itself was not scored yet
    result = evaluate_run(run)
    assert result["official"] == {"lmms-eval": stored}
    assert rejudge(run) == result
    again = import_results(run, tmp_path / "files" / "20261122_000215_results.json", arm="full")
    on_disk = json.loads(evaluation_file(run).read_text())
    assert on_disk["official"]["lmms-eval"] == again
    assert on_disk["accuracy"] == result["accuracy"]


def test_a_file_that_is_no_result_is_refused(run: RunDir, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        import_results(run, tmp_path / "x_results.json")
    for content, message in (("{", "not JSON"), ('{"a": 1}', "no results of lmms-eval")):
        (tmp_path / "x_results.json").write_text(content)
        with pytest.raises(InputError, match=message):
            import_results(run, tmp_path / "x_results.json")


TASK = """
task: tiny_photos
dataset_path: parquet
dataset_kwargs: {{data_files: {{validation: {data}}}}}
test_split: validation
output_type: generate_until
doc_to_visual: !function utils.vqav2_doc_to_visual
doc_to_text: !function utils.vqav2_doc_to_text
doc_to_target: answer
generation_kwargs: {{max_new_tokens: 3}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
process_results: !function utils.vqav2_process_results_val
metadata: [{{version: 0.1}}]
"""


@pytest.mark.slow
@pytest.mark.skipif(
    HARNESS_PYTHON is None, reason="set SACCADE_LMMS_PYTHON to a Python that has lmms-eval"
)
def test_the_real_harness_scores_a_run_on_a_task_of_ones_own(tmp_path: Path) -> None:
    from datasets import Dataset, Features, Image, Value

    from tests.tiny_models import picture

    assert HARNESS_PYTHON is not None
    answer = {"answer": Value("string"), "answer_id": Value("int64")}
    text = {name: Value("string") for name in ("question", "answer")}
    features = Features(
        {**text, "question_id": Value("int64"), "image": Image(), "answers": [answer]}
    )
    rows = [
        {"question_id": n, "question": "what is it?", "answer": "star",
         "image": picture(seed=n, height=64, width=64),
         "answers": [{"answer": "star", "answer_id": i} for i in range(10)]}
        for n in range(3)
    ]  # fmt: skip
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    Dataset.from_list(rows, features=features).to_parquet(str(tasks / "rows.parquet"))
    (tasks / "utils.py").write_text("from lmms_eval.tasks.vqav2.utils import *\n")
    (tasks / "tiny_photos.yaml").write_text(TASK.format(data=tasks / "rows.parquet"))
    run = make_run(tmp_path, "eval.batch_size=2")
    stored = run_official(
        run, tasks=["tiny_photos"], python=Path(HARNESS_PYTHON), include=tasks
    )  # fmt: skip
    assert stored["tasks"]["tiny_photos"]["samples"] == 3
    assert 0.0 <= stored["tasks"]["tiny_photos"]["metrics"]["exact_match"]["value"] <= 1.0
    assert stored["tokens"]["visual_tokens_kept"] < stored["tokens"]["visual_tokens_full"]
    assert len(read_predictions(official_folder(run) / "predictions.jsonl")) == 3

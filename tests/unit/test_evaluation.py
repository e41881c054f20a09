"""Scoring and comparing a real (random, tiny) model: exact, repeatable, resumable."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from saccade.config.errors import InputError
from saccade.evaluation import compare
from saccade.evaluation.compare import compare_run, read_comparison
from saccade.evaluation.load import load_run, model_fingerprint, select_indices, weights_folder
from saccade.evaluation.records import read_predictions
from saccade.evaluation.run import (
    evaluate_run,
    evaluation_file,
    majority_accuracy,
    read_evaluation,
    rejudge,
)
from saccade.training.rundir import RunDir
from tests.scored_run import make_run, save_selector


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return make_run(tmp_path_factory.mktemp("scored"))


def test_an_evaluation_writes_every_answer_and_what_it_was_shown(run: RunDir) -> None:
    result = evaluate_run(run)
    predictions = read_predictions(run.predictions_file)
    assert len(predictions) == result["samples"] == 12
    assert result == read_evaluation(run)
    for one in predictions:
        assert one.kept == (max(1, round(0.25 * one.full[0])),)
        assert one.tokens > one.kept[0]
        assert one.answer_cells_kept is not None
        assert one.arm == "trained"
    tokens = result["tokens"]
    assert tokens["tokens_into_layer_0"] == tokens["kv_tokens_after_prefill"]


def test_batch_size_changes_no_answer(run: RunDir, tmp_path: Path) -> None:
    evaluate_run(run)
    four = read_predictions(run.predictions_file)
    other = make_run(tmp_path, "eval.batch_size=1")
    evaluate_run(other)
    assert read_predictions(other.predictions_file) == four


def test_rejudging_needs_no_model_and_follows_the_stored_answers(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    before = evaluate_run(run)
    rows = [json.loads(line) for line in run.predictions_file.read_text().splitlines()]
    for row in rows[:6]:
        row["prediction"] = row["answers"][0]
    run.predictions_file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run.path / "model" / "selector.safetensors").unlink()
    after = rejudge(run)
    assert after["accuracy"] >= 0.5 > before["accuracy"]
    assert after["model"] == before["model"]
    assert json.loads(evaluation_file(run).read_text()) == after


def test_rejudging_before_scoring_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="saccade eval"):
        rejudge(make_run(tmp_path))


def test_the_majority_baseline_is_counted_per_kind(run: RunDir) -> None:
    evaluate_run(run)
    predictions = read_predictions(run.predictions_file)
    kind = predictions[0].kind
    answer = predictions[0].answers[0]
    found = majority_accuracy(predictions, majority={kind: answer})
    of_kind = [p for p in predictions if p.kind == kind]
    assert found[kind] == sum(p.answers[0] == answer for p in of_kind) / len(of_kind)


def test_an_unknown_selector_is_the_users_mistake(run: RunDir) -> None:
    with pytest.raises(InputError, match="use one of"):
        evaluate_run(run, arm="telepathy")
    with pytest.raises(InputError, match="unknown selector 'telepathy'"):
        compare_run(run, arms=["telepathy"])


def test_a_run_without_weights_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    for file in (run.path / "model").iterdir():
        file.unlink()
    with pytest.raises(InputError, match="neither a finished model nor a checkpoint"):
        weights_folder(run)


def test_other_weights_have_another_fingerprint(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    before = model_fingerprint(run)
    assert model_fingerprint(run) == before
    save_selector(run, run.config(), seed=1)
    assert model_fingerprint(run) != before


def test_samples_are_spread_over_the_whole_source(run: RunDir) -> None:
    class Source:
        def __len__(self) -> int:
            return 400

        def groups(self) -> list[list[int]]:
            return [list(range(4 * i, 4 * i + 4)) for i in range(100)]

    picked = select_indices(Source(), limit=40)  # type: ignore[arg-type]
    assert len(picked) == len(set(picked)) == 40
    assert [i // 4 for i in picked[::4]] == list(range(0, 100, 10))
    assert select_indices(Source(), limit=None) == list(range(400))  # type: ignore[arg-type]


def test_a_comparison_scores_every_selector_and_the_second_call_loads_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path)
    seen: list[tuple[str, int, int]] = []
    first = compare_run(run, progress=lambda *event: seen.append(event))
    assert first == read_comparison(run)
    assert (run.figures / "comparison.png").is_file()
    arms = {(row["arm"], row["budget"], row["matched"]) for row in first["rows"]}
    assert len(arms) == 1 + 9 * 2 + 2
    assert seen[-1][1] == seen[-1][2]
    full = next(row for row in first["rows"] if row["arm"] == "full")
    assert full["visual_tokens_kept"] == full["visual_tokens_full"]
    for row in first["rows"]:
        if row["matched"] == "tokens" and row["arm"] != "full":
            assert row["visual_tokens_kept"] <= row["budget"] * row["visual_tokens_full"] + 1

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the model was loaded again")

    monkeypatch.setattr(compare, "load_run", refuse)
    assert compare_run(run) == first


def test_an_interrupted_comparison_continues(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    calls = 0

    def interrupt(what: str, done: int, total: int) -> None:
        nonlocal calls
        calls += what == "comparing"
        if calls == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare_run(run, progress=interrupt)
    stored = {p.name: p.read_text() for p in (run.path / "comparison").glob("*.jsonl")}
    assert stored
    result = compare_run(run)
    for name, before in stored.items():
        assert (run.path / "comparison" / name).read_text().startswith(before)
    assert result["samples"] == 8


def test_a_selector_trained_without_a_score_is_compared_without_it(tmp_path: Path) -> None:
    run = make_run(tmp_path, "selector.scores=[salience,participation]")
    result = compare_run(run, keep=[0.5], samples=4)
    assert "information" not in {row["arm"] for row in result["rows"]}


def test_text_only_samples_are_answered(tmp_path: Path) -> None:
    rows = [{"question": "what color is the star?", "answer": "red", "id": "a"}]
    file = tmp_path / "text.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = make_run(tmp_path)
    loaded = load_run(run)
    from saccade.config.schema import JsonlSource
    from saccade.data.sources import open_source

    source = open_source(JsonlSource(type="jsonl", path=file))
    batch, broken = loaded.batch([source[0]])
    assert not broken
    (answer,) = loaded.answer(batch, arm="trained", keep=0.5, seed=0)
    assert (answer.full, answer.kept) == ((), ())
    assert answer.tokens > 0

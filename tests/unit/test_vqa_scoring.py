"""Published VQA metrics: golden cases worked out by hand from the definitions."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saccade.data.samples import Sample
from saccade.evaluation.records import Prediction, make_prediction, rejudged
from saccade.scoring.answers import score_answer
from saccade.scoring.vqa import (
    CONTRACTIONS,
    METRICS,
    agreement,
    anls,
    edit_distance,
    exact_match,
    normalise_evalai,
    normalise_official,
    relaxed_accuracy,
    vqa_evalai,
    vqa_official,
)


@pytest.mark.parametrize(
    ("text", "official", "evalai"),
    [
        # what both agree on
        ("The Two Dogs", "2 dogs", "2 dogs"),
        ("none", "0", "0"),
        ("ten", "10", "10"),
        ("eleven", "eleven", "eleven"),
        ("dont", "don't", "don't"),
        ("couldntve", "couldntve", "couldntve"),  # two apostrophes short: not in the table
        ("couldnt've", "couldn't've", "couldn't've"),
        ("yes.", "yes", "yes"),
        ("2.5", "2.5", "2.5"),
        (".5", ".5", ".5"),
        ("5.", "5", "5"),
        ("1,000", "1000", "1000"),
        ("12:30", "12:30", "12:30"),
        ("a\nb", "b", "b"),
        ("", "", ""),
        ("the", "", ""),
        ("!?", "", ""),
        # where they differ: a comma between words, one beside a space, a thousands comma
        ("red,blue", "red blue", "redblue"),
        ("red, blue", "red blue", "red blue"),
        ("1,000-2,000", "10002000", "1000 2000"),
        ("yes/no, 1,000", "yesno 1000", "yes no 1000"),
        ("why?not", "why not", "whynot"),
        # possessives, and contractions that are spelled well
        ("cat's", "cat's", "cat 's"),
        ("what's up", "what's up", "what 's up"),
        ("whats up", "what's up", "what's up"),
    ],
)
def test_both_normalisers_give_their_published_forms(text: str, official: str, evalai: str) -> None:
    assert (normalise_official(text), normalise_evalai(text)) == (official, evalai)


def test_a_mark_beside_a_space_vanishes_and_one_inside_a_word_becomes_a_space() -> None:
    assert normalise_official("ice-cream") == "ice cream"
    assert normalise_official("ice -cream") == "ice cream"
    assert normalise_official("well- done ice-cream") == "well done icecream"


def test_the_contractions_are_those_with_one_apostrophe_missing() -> None:
    assert len(CONTRACTIONS) == 114
    assert CONTRACTIONS["y'alld've"] == CONTRACTIONS["yall'd've"] == "y'all'd've"
    assert CONTRACTIONS["somebody'd"] == "somebodyd"
    assert "shed" not in CONTRACTIONS
    assert "were" not in CONTRACTIONS


@pytest.mark.parametrize(
    ("agreeing", "of", "score"),
    [
        (0, 10, 0.0),
        (1, 10, 0.3),
        (2, 10, 0.6),
        (3, 10, 0.9),
        (4, 10, 1.0),
        (10, 10, 1.0),
        # fewer than ten people: the same mean over those left out
        (3, 3, 2 / 3),
        (4, 4, 1.0),
        (1, 3, (2 * 1 / 3) / 3),
        (2, 5, (3 * 2 / 3 + 2 * 1 / 3) / 5),
        (1, 1, 1.0),
        (0, 1, 0.0),
    ],
)
def test_soft_accuracy_leaves_one_person_out_at_a_time(
    agreeing: int, of: int, score: float
) -> None:
    assert agreement([True] * agreeing + [False] * (of - agreeing)) == pytest.approx(score)
    people = ["net"] * agreeing + ["mesh"] * (of - agreeing)
    differ = len(set(people)) > 1
    assert vqa_official("The net." if differ else "net", people) == pytest.approx(score)
    assert vqa_evalai("The net.", people) == pytest.approx(score)


def test_nobody_to_compare_with_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one"):
        vqa_official("net", [])


def test_the_official_script_touches_no_words_where_all_people_agree() -> None:
    agreed = ["two cats"] * 10
    assert vqa_official("two cats", agreed) == vqa_evalai("two cats", agreed) == 1.0
    assert vqa_official("2 cats", agreed) == 0.0  # as it stands, it is another text
    assert vqa_evalai("2 cats", agreed) == 1.0
    for said in ("Yes", "yes.", "the yes"):
        assert vqa_official(said, ["yes"] * 10) == 0.0
        assert vqa_evalai(said, ["yes"] * 10) == 1.0
    assert vqa_official(" yes\n", ["yes", "yes ", "\tyes"] * 3) == 1.0  # but for outer space
    assert vqa_official("no one", ["no\tone"] * 10) == 1.0


@pytest.mark.parametrize("said", ["2 cats", "Two cats.", "the two cats", "two, cats"])
def test_the_official_script_normalises_both_sides_where_people_differ(said: str) -> None:
    nearly = ["two cats"] * 4 + ["Two Cats."] * 5 + ["3 cats"]
    assert vqa_official(said, nearly) == vqa_evalai(said, nearly) == 1.0


@pytest.mark.parametrize(
    ("said", "people", "official", "evalai"),
    [
        # one comma between words: a space, or nothing at all
        ("red blue", ["red,blue"] * 9 + ["x"], 1.0, 0.0),
        ("redblue", ["red,blue"] * 9 + ["x"], 0.0, 1.0),
        # a thousands comma makes every mark of the official script vanish
        ("10002000", ["1,000-2,000"] * 9 + ["x"], 1.0, 0.0),
        ("1000 2000", ["1,000-2,000"] * 9 + ["x"], 0.0, 1.0),
        # a possessive is split off by one; both sides get the same, so equal texts still match
        ("cat's", ["cat's"] * 9 + ["x"], 1.0, 1.0),
        ("cat 's", ["cat's"] * 9 + ["x"], 0.0, 1.0),
        # the two people who wrote it differently count for one and not for the other
        ("red blue", ["red,blue"] * 2 + ["red blue"] * 2 + ["x"] * 6, 1.0, 0.6),
        ("why not", ["why?not"] * 2 + ["x"] * 8, 0.6, 0.0),
    ],
)
def test_the_two_normalisers_score_the_same_answers_differently(
    said: str, people: list[str], official: float, evalai: float
) -> None:
    assert vqa_official(said, people) == pytest.approx(official)
    assert vqa_evalai(said, people) == pytest.approx(evalai)


def test_an_empty_answer_matches_only_people_who_said_nothing() -> None:
    people = ["", "", "the", *["cat"] * 7]
    assert vqa_official("", people) == pytest.approx(0.9)  # "the" normalises to nothing, too
    assert vqa_evalai("", people) == pytest.approx(0.9)
    assert vqa_official("", ["cat"] * 10) == 0.0


@pytest.mark.parametrize(
    ("said", "answers", "score"),
    [
        ("Hello World", ["hello world"], 1.0),
        ("hello   world", ["Hello World"], 1.0),
        ("helo", ["hello"], 0.8),
        ("abcd", ["abxy"], 0.5),  # at the threshold
        ("abc", ["xyz"], 0.0),
        ("abcde", ["abxyz"], 0.0),  # 0.4, below it
        ("cat", ["dog", "cats"], 0.75),
        ("", [""], 1.0),
        ("", ["x"], 0.0),
    ],
)
def test_anls_is_the_best_similarity_or_nothing(
    said: str, answers: list[str], score: float
) -> None:
    assert anls(said, answers) == pytest.approx(score)


@pytest.mark.parametrize(
    ("said", "truth", "right"),
    [
        ("105", "100", True),
        ("105.1", "100", False),
        ("-95", "-100", True),
        ("12%", "0.12", True),
        ("12.5%", "12%", True),
        ("12", "12%", False),
        ("0.04", "0", False),
        ("0", "0", True),
        ("0.0", "0", False),  # zero has no relative error: text
        ("1,000", "1000", False),
        ("Yes", "yes", True),
        ("blue ", "Blue", True),
        ("two", "2", False),
        ("nan", "5", False),
    ],
)
def test_relaxed_accuracy_tolerates_five_percent_of_a_number(
    said: str, truth: str, right: bool
) -> None:
    assert relaxed_accuracy(said, [truth]) == float(right)


def test_exact_match_ignores_case_punctuation_and_spacing_only() -> None:
    assert exact_match(" Sailboats. ", ["sailboats"]) == 1.0
    assert exact_match("the sailboats", ["sailboats"]) == 0.0
    assert exact_match("2", ["two"]) == 0.0


@given(st.text(max_size=12), st.text(max_size=12))
def test_edit_distance_is_a_metric(left: str, right: str) -> None:
    distance = edit_distance(left, right)
    assert distance == edit_distance(right, left)
    assert (distance == 0) == (left == right)
    assert abs(len(left) - len(right)) <= distance <= max(len(left), len(right))


@given(st.text(max_size=20), st.lists(st.text(max_size=8), min_size=1, max_size=10))
def test_every_metric_stays_between_zero_and_one(said: str, answers: list[str]) -> None:
    for name in METRICS:
        assert 0.0 <= score_answer(said, answers, kind="x", metric=name, people=answers) <= 1.0


def test_a_prediction_is_scored_by_its_benchmarks_metric_and_can_be_rejudged() -> None:
    people = ("net",) * 2 + ("mesh",) * 8
    sample = Sample(
        "q", "what?", ("mesh", "net"), facts={"metric": "vqa_official", "human_answers": people}
    )
    made = make_prediction(sample, "net", selections=(), tokens=3, arm="full", keep=1.0)
    assert (made.metric, made.score, made.value, made.correct) == (
        "vqa_official", pytest.approx(0.6), pytest.approx(0.6), True,
    )  # fmt: skip
    stored = Prediction.from_json(json.loads(made.as_json()))
    assert rejudged(stored) == made == stored
    plain = rejudged(stored, metric="accuracy")
    assert (plain.score, plain.value) == (None, 1.0)


def test_predictions_stored_before_there_were_metrics_can_be_read() -> None:
    made = make_prediction(
        Sample("q", "what?", ("net",)), "net", selections=(), tokens=3, arm="full", keep=1.0
    )
    row = json.loads(made.as_json())
    for name in ("metric", "score", "people", "encoded", "late_tokens"):
        del row[name]
    assert Prediction.from_json(row).value == 1.0

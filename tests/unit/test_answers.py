"""Answers judged as one would by hand."""

from __future__ import annotations

import pytest

from saccade.data.samples import Sample
from saccade.scoring.answers import (
    is_correct,
    majority_answers,
    majority_baseline,
    normalise,
    vqa_soft_accuracy,
)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("Red", "red"),
        ("  The  red car. ", "red car"),
        ("an apple", "apple"),
        ("Two", "2"),
        ("none", "0"),
        ("twenty", "20"),
        ("don't", "dont"),
        ("don\u2019t", "dont"),
        ("1,000", "1000"),
        ("1,2", "1 2"),
        ("red, blue", "red blue"),
        ("3.5", "3.5"),
        ("3.", "3"),
        ("U.S.A.", "usa"),
        ("-5", "-5"),
        ("\u22125", "-5"),
        ("black-and-white", "black and white"),
        ("3-4", "3 4"),
        ("50%", "50%"),
        ("yes!", "yes"),
        ('"stop"', "stop"),
        ("a", "a"),
        ("The", "the"),
        ("?", "?"),
        ("", ""),
        ("line\none\ttab", "line 1 tab"),
        ("\uff32\uff25\uff24", "red"),
    ],
)
def test_normalising(text: str, plain: str) -> None:
    assert normalise(text) == plain


@pytest.mark.parametrize("text", ["The 3 cats, don't!", "-0.5", "a", "U.S.A."])
def test_normalising_twice_changes_nothing_more(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


@pytest.mark.parametrize(
    ("prediction", "answers", "kind", "right"),
    [
        ("Red.", ["red"], "color", True),
        ("dark red", ["red"], "color", False),
        ("", ["red"], "color", False),
        ("  ", [""], "color", False),
        ("red", [], "color", False),
        ("net", ["mesh", "net"], "question", True),
        ("three", ["3"], "count", True),
        ("3.0", ["3"], "count", True),
        ("03", ["3"], "digit", True),
        ("-3", ["3"], "count", False),
        ("many", ["3"], "count", False),
        ("3", ["30"], "count", False),
        ("The", ["the"], "word", True),
        ("one", ["1"], "word", False),
        ("STOP", ["stop"], "word", True),
        ("'stop.'", ["stop"], "word", True),
        ("stop it", ["stop"], "word", False),
        ("Yes, it is.", ["yes"], "yes/no", True),
        ("no", ["yes"], "yes/no", False),
        ("left", ["right"], "relation", False),
        ("3.0", ["3"], "a kind nobody listed", False),
    ],
)
def test_verdicts_follow_the_kind(
    prediction: str, answers: list[str], kind: str, right: bool
) -> None:
    assert is_correct(prediction, answers, kind=kind) is right


@pytest.mark.parametrize(
    ("agreeing", "of", "accuracy"),
    [
        (0, 10, 0.0),
        # one of ten: leaving that one out nobody agrees, else 1/3; (9 * 1/3 + 0) / 10
        (1, 10, 0.3),
        # two: (8 * 2/3 + 2 * 1/3) / 10
        (2, 10, 0.6),
        # three: (7 * 1 + 3 * 2/3) / 10
        (3, 10, 0.9),
        (4, 10, 1.0),
        (10, 10, 1.0),
        (1, 1, 1.0),
        (0, 1, 0.0),
        (2, 2, 1 / 3),
    ],
)
def test_vqa_accuracy_leaves_one_person_out_at_a_time(
    agreeing: int, of: int, accuracy: float
) -> None:
    people = ["The net!"] * agreeing + [f"other {n}" for n in range(of - agreeing)]
    assert vqa_soft_accuracy("net", people) == pytest.approx(accuracy)


def test_vqa_accuracy_of_an_empty_prediction_is_zero_and_needs_people() -> None:
    assert vqa_soft_accuracy("", [""] * 10) == 0.0
    with pytest.raises(ValueError, match="at least one"):
        vqa_soft_accuracy("x", [])


def sample(answer: str, *, kind: str) -> Sample:
    return Sample(id="x", question="?", answers=(answer,), kind=kind)


def test_the_majority_baseline_is_learned_on_one_set_and_scored_on_another() -> None:
    train = [sample(a, kind="color") for a in ("red", "red", "blue")]
    train += [sample(a, kind="count") for a in ("2", "3", "3", "2")]
    held_out = [sample(a, kind="color") for a in ("red", "blue", "blue", "blue")]
    held_out += [sample("two", kind="count"), sample("cat", kind="word")]
    assert majority_answers(train) == {"color": "red", "count": "2"}
    assert majority_baseline(train) == {"color": pytest.approx(2 / 3), "count": 0.5}
    assert majority_baseline(train, evaluation=held_out) == {"color": 0.25, "count": 1, "word": 0}
    assert majority_baseline([]) == {}


@pytest.mark.parametrize(
    ("said", "right"),
    [("[512, 388]", True), ("(505, 371)", True), ("[500, 380, 520, 396]", True),
     ("[499, 388]", False), ("[524, 388]", False), ("512", False), ("there", False)],
)  # fmt: skip
def test_a_place_is_right_inside_the_box_that_is_accepted(said: str, right: bool) -> None:
    answers = ("[512, 388]", "[500, 370, 524, 406]")
    assert is_correct(said, answers, kind="point") == right
    assert not is_correct("over there", ["here"], kind="point")

"""Caption metrics: the reference implementation's numbers, and cases worked out by hand."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saccade.data.samples import Sample
from saccade.evaluation.dataset_scores import dataset_scores, judged_together
from saccade.evaluation.records import Prediction, accuracy, make_prediction, rejudged
from saccade.scoring.caption_text import tokens
from saccade.scoring.captions import (
    CAPTION_METRICS,
    CaptionScores,
    bleu,
    caption_score,
    caption_scores,
    common_length,
    rouge_l,
)
from saccade.scoring.cider import cider_d, count_frequencies

BESIDE = Path(__file__).resolve().parents[2].parent / "shared" / "data"
# read at import: a fixture of conftest.py hides the variables of this name from each test
SHARED = Path(os.environ.get("SACCADE_SHARED_DATA", BESIDE))
NAMES = {
    "Bleu_1": "bleu1", "Bleu_2": "bleu2", "Bleu_3": "bleu3", "Bleu_4": "bleu4",
    "CIDEr": "cider", "ROUGE_L": "rouge_l",
}  # fmt: skip
CAT = "a cat sits on the red mat"
DOG = "two big dogs run along a beach"


def golden(name: str) -> dict[str, Any]:
    file = SHARED / "golden" / name
    if not file.is_file():
        pytest.skip(f"no golden scores at {file}; set SACCADE_SHARED_DATA to their folder")
    return json.loads(file.read_text(encoding="utf-8"))


def test_the_reference_scores_of_100_captions_are_met_in_all_and_one_by_one() -> None:
    known = golden("caption_metrics_dev.json")
    rows = known["samples"]
    found = caption_scores(
        [row["candidate"] for row in rows], references=[row["references"] for row in rows]
    )
    for theirs, ours in NAMES.items():
        assert found[ours].corpus == pytest.approx(known["corpus"][theirs], abs=1e-9)
        assert found[ours].samples == pytest.approx([row[theirs] for row in rows], abs=1e-9)


def test_the_published_scores_of_a_second_implementation_are_met() -> None:
    known = golden("nlg_eval_example.json")
    found = caption_scores(known["hypotheses"], references=known["references"])
    for theirs, ours in NAMES.items():
        assert found[ours].corpus == pytest.approx(known["expected"][theirs], abs=1e-6)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A cat, a dog.", "a cat a dog"),
        ("Jenny's 2 dogs don't run!", "jenny's 2 dogs don't run"),
        ("it\u2019s caf\u00e9-style\n(red)", "it's caf\u00e9 style red"),
        ("snake_case", "snake case"),
        ("?!", ""),
    ],
)
def test_tokens_are_lower_case_words_without_punctuation(text: str, words: str) -> None:
    assert " ".join(tokens(text)) == words


def test_bleu_clips_counts_and_takes_the_geometric_mean() -> None:
    # three of four words and one of three pairs are in the reference
    said, wanted = ["the cat the mat"], [["the cat is on a mat the"]]
    brevity = math.exp(1 - 7 / 4)
    assert bleu(said, references=wanted, order=1).corpus == pytest.approx(brevity, abs=1e-8)
    pair = math.sqrt(4 / 4 * 1 / 3) * brevity
    assert bleu(said, references=wanted, order=2).corpus == pytest.approx(pair, abs=1e-8)
    assert bleu(["the the the"], references=[["the cat"]], order=1).corpus == pytest.approx(1 / 3)


def test_bleu_takes_the_closest_reference_length_and_the_shorter_of_two_as_close() -> None:
    close = [["one two three four", "one two three four five six"]]
    assert bleu(["one two three four five"], references=close, order=1).corpus == pytest.approx(1)
    far = [["one two three four five six"]]
    assert bleu(["one two three"], references=far, order=1).corpus == pytest.approx(math.exp(-1))


def test_bleu_of_a_set_pools_counts_and_is_not_the_mean() -> None:
    found = bleu(["a b", "x x x x"], references=[["a b"], ["y y y y"]], order=1)
    assert found.samples == pytest.approx((1.0, 0.0), abs=1e-8)
    assert found.corpus == pytest.approx(2 / 6)


def test_rouge_takes_the_best_precision_and_the_best_recall_of_any_reference() -> None:
    # "a c" is common to both; precision 2/3, recall 2/2 of the second reference
    found = rouge_l(["a b c"], references=[["a x c y z", "a c"]])
    precision, recall = 2 / 3, 1.0
    expected = (1 + 1.44) * precision * recall / (recall + 1.44 * precision)
    assert found.corpus == pytest.approx(expected)
    assert rouge_l(["a"], references=[["b"]]).corpus == 0.0


def test_cider_of_perfect_captions_is_ten_and_of_strangers_zero() -> None:
    same = cider_d([CAT, DOG], references=[[CAT], [DOG]])
    assert same.samples == pytest.approx((10.0, 10.0))
    assert cider_d([DOG, CAT], references=[["x y z u"], ["v w"]]).corpus == 0.0


def test_cider_weighs_a_word_by_how_few_images_have_it() -> None:
    # of two images only the second has "b", so "a" weighs log 1 = 0 and "b" weighs log 2
    found = cider_d(["a", "b"], references=[["a"], ["a", "b"]])
    # unigrams alone count (1 of 4 orders); one of two references agrees, with equal lengths
    assert found.samples == pytest.approx((0.0, 10 * (1 / 4) * (1 / 2)))


def test_cider_punishes_a_wrong_length_and_gains_nothing_by_repeating() -> None:
    wanted = [["p q"], ["r s"]]
    once = cider_d(["p q", "x"], references=wanted).samples[0]
    again = cider_d(["p q p q", "x"], references=wanted).samples[0]
    # twice as long: both unigram counts clipped, cosine 1/2; pairs: 1 / sqrt(4 + 1); gap 2 words
    weight = math.exp(-(2**2) / (2 * 36))
    assert once == pytest.approx(5.0)  # a caption of two words has two of the four orders
    assert again == pytest.approx(10 / 4 * weight * (1 / 2 + 1 / math.sqrt(5)))


def test_cider_with_frequencies_from_elsewhere_scores_one_caption_alone() -> None:
    elsewhere = count_frequencies([[tokens(CAT)], [tokens(DOG)], [tokens("a bird")]])
    alone = cider_d([CAT], references=[[CAT]], frequencies=elsewhere)
    assert alone.corpus == pytest.approx(10.0)
    assert caption_score("cider", CAT, references=[CAT]) == 0.0  # a set of one weighs nothing


def test_an_empty_caption_is_worth_nothing_and_breaks_nothing() -> None:
    for name, found in caption_scores(["", CAT], references=[[CAT], [CAT, "..."]]).items():
        assert found.samples[0] == pytest.approx(0.0), name


@pytest.mark.parametrize("references", [[], [[]], [["a"], ["b"]], ["a"]])
def test_a_caption_without_references_is_an_error(references: list[Any]) -> None:
    with pytest.raises(ValueError, match="references"):
        caption_scores(["a"], references=references)


words = st.lists(st.sampled_from(["a", "b", "c", "d", "e"]), min_size=1, max_size=7).map(" ".join)
pairs = st.lists(st.tuples(words, st.lists(words, min_size=1, max_size=3)), min_size=2, max_size=4)


@given(pairs)
def test_scores_stay_in_range_and_ignore_the_order_of_references(
    rows: list[tuple[str, list[str]]],
) -> None:
    said, wanted = [row[0] for row in rows], [row[1] for row in rows]
    for name, metric in CAPTION_METRICS.items():
        found: CaptionScores = metric(said, references=wanted)
        turned: CaptionScores = metric(said, references=[one[::-1] for one in wanted])
        assert turned.samples == pytest.approx(found.samples)
        top = 10.0 if name == "cider" else 1.0
        assert all(-1e-9 <= score <= top + 1e-9 for score in [found.corpus, *found.samples])


@given(words, words)
def test_the_common_subsequence_is_symmetric_and_no_longer_than_either(a: str, b: str) -> None:
    left, right = tokens(a), tokens(b)
    assert common_length(left, right) == common_length(right, left) <= min(len(left), len(right))
    assert common_length(left, left) == len(left)


def caption(name: str, said: str, *wanted: str) -> Prediction:
    facts = {"human_answers": wanted} if len(wanted) > 1 else {}
    sample = Sample(name, "describe it", tuple(dict.fromkeys(wanted)), kind="caption", facts=facts)
    return make_prediction(
        sample, said, selections=(), tokens=3, arm="full", keep=1.0, metric="cider"
    )


def test_stored_captions_are_scored_together_with_repeated_references_counted() -> None:
    made = [caption("1", CAT, CAT, CAT, DOG), caption("2", "a beach", DOG)]
    judged = judged_together(made)
    expected = cider_d([CAT, "a beach"], references=[[CAT, CAT, DOG], [DOG]])
    assert [one.score for one in judged] == pytest.approx(list(expected.samples))
    assert [one.score for one in made] == [0.0, 0.0]
    stored = [Prediction.from_json(json.loads(one.as_json())) for one in judged]
    assert judged_together([rejudged(one) for one in stored]) == judged
    mean = accuracy(judged)
    assert mean["accuracy"] == pytest.approx(expected.corpus)
    assert mean["low"] <= mean["accuracy"] <= mean["high"]
    assert dataset_scores(judged, vocabulary="coco")["cider"] == pytest.approx(expected.corpus)


def test_a_perfect_cider_of_ten_has_an_interval_too() -> None:
    judged = judged_together([caption("1", CAT, CAT), caption("2", DOG, DOG)])
    found = accuracy(judged)
    assert [found[name] for name in ("accuracy", "low", "high")] == pytest.approx([10.0] * 3)

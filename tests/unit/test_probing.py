"""Yes/no probing: questions whose truth is known, and scores worked out by hand."""

from __future__ import annotations

import pytest

from saccade.config.schema import ProbingSource, ScenesSource
from saccade.data.generate.probing import absent_objects, present_objects, probe
from saccade.data.generate.scenes import make_scene
from saccade.data.samples import Sample
from saccade.data.sources import open_source
from saccade.evaluation.dataset_scores import dataset_scores
from saccade.evaluation.records import make_prediction
from saccade.scoring.answers import is_correct
from saccade.scoring.yes_no import yes_no_scores, yes_or_no

SMALL = {"min_cells": 30, "max_cells": 60, "min_objects": 3, "max_objects": 5, "clutter": 0.0}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("yes", True),
        ("Yes, there is a red star.", True),
        ("No.", False),
        ("There is not.", False),
        ("there isn\u2019t one", False),
        ("Yes. No other star is red.", True),  # the first sentence decides
        ("no, yes", False),
        ("a star", None),
        ("", None),
        ("nothing noted", None),
    ],
)
def test_the_first_sentence_says_yes_no_or_neither(text: str, said: bool | None) -> None:
    assert yes_or_no(text) is said


def test_scores_are_those_of_the_confusion_table() -> None:
    # truth    yes    yes   yes   no     no    no      no
    said = ["yes", "yes", "no", "yes", "no", "no", "a star"]
    found = yes_no_scores(said, answers=["yes"] * 3 + ["no"] * 4)
    assert found.accuracy == pytest.approx(4 / 7)
    assert found.precision == pytest.approx(2 / 3)
    assert found.recall == pytest.approx(2 / 3)
    assert found.f1 == pytest.approx(2 / 3)
    assert found.yes_rate == pytest.approx(3 / 7)
    assert found.unclear_rate == pytest.approx(1 / 7)


def test_always_yes_has_full_recall_and_never_yes_has_nothing() -> None:
    answers = ["yes", "no"] * 5
    always = yes_no_scores(["Yes"] * 10, answers=answers)
    assert (always.accuracy, always.precision, always.recall, always.yes_rate) == (0.5, 0.5, 1, 1)
    assert always.f1 == pytest.approx(2 / 3)
    never = yes_no_scores(["no"] * 10, answers=answers)
    assert (never.accuracy, never.precision, never.recall, never.f1) == (0.5, 0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="questions"):
        yes_no_scores([], answers=[])


@pytest.mark.parametrize("negatives", ["random", "adversarial"])
def test_half_of_the_questions_are_true_and_all_answers_are_right(negatives: str) -> None:
    settings = {"split": "test", "scenes": 15, "questions": 6, "negatives": negatives}
    source = open_source(ProbingSource.model_validate(settings))
    samples = [source[i] for i in range(len(source))]
    assert len(samples) == 90
    assert sum(one.answer == "yes" for one in samples) == 45
    for one in samples:
        shown = {f"{t.color} {t.shape}" for t in one.facts["scene"].shapes}
        asked = one.question.removesuffix("?").split(maxsplit=3)[-1]
        assert (asked in shown) == (one.answer == "yes"), one.question
        assert bool(one.facts.get("answer_cells")) == (one.answer == "yes")
    assert len({(one.image_key, one.question) for one in samples}) == 90


def test_adversarial_questions_mix_a_colour_and_a_shape_that_are_both_there() -> None:
    scene = make_scene(ScenesSource(), index=3)
    here = present_objects(scene)
    likely = absent_objects(scene, adversarial=True)
    colors, shapes = {c for c, _ in here}, {s for _, s in here}
    assert likely
    assert all(c in colors and s in shapes and (c, s) not in here for c, s in likely)
    assert len(here) + len(absent_objects(scene, adversarial=False)) == 64


def test_a_scene_with_few_things_is_asked_more_about_what_is_not_there() -> None:
    scene = make_scene(ScenesSource(**SMALL), index=0)  # type: ignore[arg-type]
    things = len(present_objects(scene))
    probes = probe(scene, count=20, adversarial=True, seed=0)
    assert len({one.text for one in probes}) == 20
    assert [one.answer for one in probes].count("yes") == things < 10


def test_probing_is_reproducible_and_other_scenes_differ() -> None:
    settings = ProbingSource(scenes=2, questions=4)
    first, again = open_source(settings), open_source(settings)
    assert [first[i].question for i in range(8)] == [again[i].question for i in range(8)]
    assert first.fingerprint() == again.fingerprint()
    other = open_source(settings.model_copy(update={"negatives": "random"}))
    assert other.fingerprint() != first.fingerprint()
    assert first.groups() == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_answers_to_probes_are_judged_as_they_are_counted() -> None:
    assert is_correct("There is no red star.", ["no"], kind="presence")
    assert not is_correct("a star", ["no"], kind="presence")
    texts = {"1": ("Yes!", "yes"), "2": ("there is not", "no"), "3": ("star", "no")}
    made = [
        make_prediction(
            Sample(name, "is there?", (truth,), kind="presence"),
            said, selections=(), tokens=1, arm="full", keep=1.0,
        )
        for name, (said, truth) in texts.items()
    ]  # fmt: skip
    scores = dataset_scores(made, vocabulary="coco")
    assert [one.correct for one in made] == [True, True, False]
    assert scores["yes_no_accuracy"] == pytest.approx(2 / 3)
    assert "cider" not in scores

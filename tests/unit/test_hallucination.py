"""Object hallucination: what counts as a mention, and rates worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from saccade.config.errors import InputError
from saccade.scoring.hallucination import CaptionObjects, chair, mentions
from saccade.scoring.vocabularies import SCENES, VOCABULARIES, read_vocabulary

COCO = VOCABULARIES["coco"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("A dog and two puppies.", ["dog", "dog"]),
        ("a hot dog on a dining table", ["hot dog", "dining table"]),
        ("hot, a dog", ["dog"]),
        ("the women hold wine glasses", ["person", "wine glass"]),
        ("knives, buses and sheep", ["knife", "bus", "sheep"]),
        ("a dog's bowl", ["dog", "bowl"]),
        ("stop signs by a traffic light", ["stop sign", "traffic light"]),
        ("a baseball and a baseball bat", ["sports ball", "baseball bat"]),
        ("an orange cat", ["orange", "cat"]),  # words alone decide: a colour counts as the fruit
        ("a lamp under the sky", []),
        ("", []),
    ],
)
def test_mentions_are_the_longest_names_in_order(text: str, found: list[str]) -> None:
    assert list(mentions(text, vocabulary=COCO)) == found


def test_the_built_in_vocabularies_are_whole() -> None:
    assert len(COCO) == 80
    assert mentions("discs, crosses and rhombuses", vocabulary=SCENES) == (
        "circle", "cross", "diamond",
    )  # fmt: skip
    for name, vocabulary in VOCABULARIES.items():
        assert all(mentions(one, vocabulary=vocabulary) == (one,) for one in vocabulary), name


def test_chair_counts_mentions_captions_and_what_was_left_out() -> None:
    found = chair(
        ["a star and a heart", "a moon, a moon and a star", "nothing much"],
        truths=[["star"], ["crescent", "square"], ["circle"]],
        vocabulary=SCENES,
    )
    # mentions: star heart | moon moon star; absent: heart | star
    assert found.mentions == 5
    assert found.chair_i == pytest.approx(2 / 5)
    assert found.chair_s == pytest.approx(2 / 3)
    assert found.object_recall == pytest.approx(2 / 4)
    assert found.samples[1] == CaptionObjects(("moon", "moon", "star"), ("star",))


def test_objects_may_be_given_as_whole_reference_captions() -> None:
    found = chair(["a puppy on a couch"], truths=[["A dog sleeps on the sofa."]], vocabulary=COCO)
    assert (found.chair_i, found.chair_s, found.object_recall) == (0.0, 0.0, 1.0)


def test_a_share_of_nothing_is_zero_and_no_captions_are_an_error() -> None:
    found = chair(["nothing"], truths=[[]], vocabulary=SCENES)
    assert (found.chair_i, found.object_recall, found.mentions) == (0.0, 0.0, 0)
    with pytest.raises(ValueError, match="captions"):
        chair([], truths=[], vocabulary=SCENES)


def test_a_vocabulary_of_ones_own_is_a_json_file(tmp_path: Path) -> None:
    file = tmp_path / "words.json"
    file.write_text(json.dumps({"button": ["knob"], "slider": []}))
    own = read_vocabulary(str(file))
    assert mentions("two knobs, a slider and a dog", vocabulary=own) == ("button", "slider")
    for content, told in (('["button"]', "not a vocabulary"), ("{", "Expecting")):
        file.write_text(content)
        with pytest.raises(InputError, match=told):
            read_vocabulary(str(file))
    with pytest.raises(InputError, match="no such file\n  fix: use one of scenes, coco"):
        read_vocabulary(str(tmp_path / "lost.json"))

"""Captions of generated scenes: true, deterministic, and wrong exactly where they say so."""

from __future__ import annotations

import re

import pytest

from saccade.config.schema import CaptionsSource
from saccade.data.generate.captions import PHRASINGS, PROMPTS, caption, mentioned
from saccade.data.generate.scenes import make_scene
from saccade.data.sources import open_source

SMALL = {"scenes": 40, "min_cells": 36, "max_cells": 64, "min_objects": 2, "max_objects": 4}


def source(**settings: object) -> CaptionsSource:
    return CaptionsSource.model_validate(SMALL | settings)


def test_a_caption_names_colour_shape_digit_and_word_of_what_is_there() -> None:
    for index in range(20):
        things = mentioned(make_scene(source(), index=index), most=5)
        for phrasing in range(PHRASINGS):
            text = caption(things, phrasing=phrasing)
            words = re.findall(r"[a-z]+|\d", text)
            for thing in things:
                assert thing.color in words
                assert (thing.word or thing.shape) in words
                assert thing.digit < 0 or str(thing.digit) in words
            assert len({caption(things, phrasing=p) for p in range(PHRASINGS)}) == PHRASINGS


def test_things_are_named_in_reading_order_and_no_more_than_asked_for() -> None:
    scene = make_scene(source(min_objects=6, max_objects=6, min_cells=120, max_cells=140), index=1)
    every, some = mentioned(scene, most=99), mentioned(scene, most=3)
    rows = [thing.center[1] // scene.cell_px for thing in every]
    assert rows == sorted(rows)
    assert len(some) == 3 and [t for t in every if t in some] == list(some)
    assert caption((), phrasing=0) == "nothing with a name"


def test_the_same_position_gives_the_same_sample_and_every_phrasing_is_a_reference() -> None:
    one, other = open_source(source()), open_source(source())
    for position in range(len(one)):
        left, right = one[position], other[position]
        assert (left.question, left.answers, left.id) == (right.question, right.answers, right.id)
        assert left.question in PROMPTS and len(left.answers) == PHRASINGS
    assert len({one[i].answer.split()[0] for i in range(len(one))}) > 2  # openings differ
    assert one.fingerprint() != open_source(source(noise=0.5)).fingerprint()


def test_noise_makes_captions_wrong_by_what_their_quality_says() -> None:
    clean, noisy = open_source(source(scenes=60)), open_source(source(scenes=60, noise=0.5))
    qualities = [noisy[i].facts["quality"] for i in range(60)]
    assert 0.3 < sum(q < 1 for q in qualities) / 60 < 0.7
    for position, quality in enumerate(qualities):
        assert (noisy[position].answer == clean[position].answer) is (quality == 1)
        assert noisy[position].facts["objects"] == clean[position].facts["objects"]
    assert list(noisy.qualities()) == qualities  # pyright: ignore[reportAttributeAccessIssue]
    assert set(clean.qualities()) == {1.0}  # pyright: ignore[reportAttributeAccessIssue]


def test_positions_outside_raise() -> None:
    with pytest.raises(IndexError):
        open_source(source())[40]

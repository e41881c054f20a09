"""The key table, the nearest-name search, flat names, and the committed schema."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saccade.config.keys import all_keys, distance, find_key, key_names, nearest, nearest_key
from saccade.config.schema import Config
from saccade.config.training_file import FLAT_NAMES, read_environment

LETTERS = "abcdefghijklmnopqrstuvwxyz_"


@st.composite
def typos(draw: st.DrawFn, words: list[str]) -> tuple[str, str]:
    """A word and the same word with one slip: a letter lost, added, changed or swapped."""
    word = draw(st.sampled_from(words))
    at = draw(st.integers(0, len(word) - 1))
    letter = draw(st.sampled_from(LETTERS))
    slip = draw(st.sampled_from(["drop", "add", "change", "swap"]))
    other = {
        "drop": word[:at] + word[at + 1 :],
        "add": word[:at] + letter + word[at:],
        "change": word[:at] + letter + word[at + 1 :],
        "swap": word[:at] + word[at + 1 : at + 2] + word[at : at + 1] + word[at + 2 :],
    }[slip]
    return word, other


TRAINING_KEYS = [key.leaf for key in all_keys() if key.section == "training"]


@given(typos(TRAINING_KEYS))
def test_one_slip_in_a_key_is_refused_and_leads_back_to_a_key_one_slip_away(
    pair: tuple[str, str],
) -> None:
    _, typed = pair
    if f"training.{typed}" in key_names() or not typed:
        return
    near = nearest_key(f"training.{typed}")
    assert near is not None
    section, _, leaf = near.rpartition(".")
    assert section == "training"
    assert distance(leaf, typed) == 1


@pytest.mark.parametrize("key", key_names())
def test_every_key_is_found_again_when_its_last_two_letters_are_swapped(key: str) -> None:
    typed = key[:-2] + key[-1] + key[-2]
    if typed not in key_names():
        near = nearest_key(typed)
        assert near is not None
        assert distance(near, typed) <= 1


@given(typos(list(FLAT_NAMES)))
def test_one_slip_in_a_flat_name_is_refused_with_a_name_one_slip_away(
    pair: tuple[str, str],
) -> None:
    _, typed = pair
    if typed.upper() in FLAT_NAMES:
        return
    (problem,) = read_environment({f"SACCADE_{typed}": "1"}).problems
    hinted = problem.message.partition("did you mean SACCADE_")[2].rstrip("?")
    assert distance(hinted.lower(), typed.lower()) == 1


def test_the_right_leaf_in_a_missing_or_wrong_section_is_found() -> None:
    assert nearest_key("learning_rate") == "training.learning_rate"
    assert nearest_key("model.learning_rate") == "training.learning_rate"
    assert nearest_key("trainig.lerning_rate") == "training.learning_rate"
    assert nearest_key("trainig") == "training"


def test_a_word_that_resembles_nothing_gets_no_suggestion() -> None:
    assert nearest("xyzzy", ["relevance", "tiny-base"]) is None
    assert nearest_key("training.qqqqqqq") is None


@given(st.text(alphabet=LETTERS, max_size=8), st.text(alphabet=LETTERS, max_size=8))
def test_distance_is_symmetric_and_zero_only_for_equal_words(left: str, right: str) -> None:
    assert distance(left, right) == distance(right, left)
    assert (distance(left, right) == 0) == (left == right)


def test_every_key_has_a_sentence_and_a_readable_type() -> None:
    for key in all_keys():
        assert key.sentence, key.name
        assert "<class" not in key.type and "Annotated" not in key.type, key.type


def test_every_flat_name_points_at_a_key_and_no_two_at_the_same() -> None:
    assert all(find_key(dotted) for dotted in FLAT_NAMES.values())
    assert len(set(FLAT_NAMES.values())) == len(FLAT_NAMES)


def test_the_flat_names_that_training_scripts_know_are_there() -> None:
    known = (
        "LEARNING_RATE NUM_VISUAL_TOKENS BATCH_SIZE GRADIENT_ACCUMULATION_STEPS MAX_STEPS"
        " BASE_MODEL SEED OUTPUT_DIR WANDB_PROJECT WANDB_ENTITY WEIGHT_DECAY WARMUP_RATIO"
        " SAVE_STEPS EVAL_STEPS MAX_GRAD_NORM NUM_WORKERS RUN_NAME MIN_PIXELS MAX_PIXELS"
    )
    assert set(known.split()) <= set(FLAT_NAMES)


def test_the_committed_schema_is_the_schema() -> None:
    committed = Path(__file__).parents[2] / "docs/reference/config.schema.json"
    assert json.loads(committed.read_text()) == Config.model_json_schema(), "run `make docs`"

"""The published metrics of VQA benchmarks, each by the name it is reported under.

In go a model's text and the answers people gave, out comes a score in [0, 1]. Two normalisers
exist for VQA accuracy and give different numbers for the same answers, so each is a metric of its
own: `vqa_official` is the VQA challenge's VQAEval script, `vqa_evalai` the EvalAI processor that
TextVQA and lmms-eval use. Both are reproduced with their quirks (named beside the code), because
numbers in papers come from them. Beside them ANLS (DocVQA), relaxed accuracy (ChartQA) and exact
match (GQA). Left out: saccade's own verdict per question kind (`answers.py`).
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Sequence

ARTICLES = ("a", "an", "the")
NUMBER_WORDS = {"none": "0"} | {
    word: str(value)
    for value, word in enumerate(
        ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    )
}  # fmt: skip
PUNCTUATION = tuple(';/[]"{}()=+\\_-><@`,?!')
"""Marks both normalisers treat; the apostrophe, colon and other marks stay as they are."""

_SPOKEN = """
    ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd
    how'll how's isn't it'd it'll ma'am might've mightn't must've mustn't needn't not've o'clock
    oughtn't shan't should've shouldn't somebody'll somebody's someone'd someone'll someone's
    something'd something'll that's there'd there're there's they'd they'll they're they've 'twas
    wasn't we've weren't what'll what're what's what've when's where'd where's where've who'd
    who'll who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're
    you've
    couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've somebody'd've
    someone'd've something'd've there'd've they'd've we'd've who'd've wouldn't've you'd've
    y'all'll y'all'd've 'ow's'at
"""


def _repairs() -> dict[str, str]:
    """Spellings that lack exactly one apostrophe, mapped to the full form."""
    found = {"somebody'd": "somebodyd"}  # the published table has this one the wrong way round
    for full in _SPOKEN.split():
        for place, letter in enumerate(full):
            if letter == "'":
                found[full[:place] + full[place + 1 :]] = full
    return found


CONTRACTIONS = _repairs()

# the published pattern says `(?!<=\d)`, a lookbehind that was mistyped and never holds anything
# back: a period stays only before a digit
_PERIOD = re.compile(r"\.(?!\d)")
_MOST_PERIODS = 32
"""A flag was passed in the place of a count, so only this many periods are removed."""
_DIGIT_COMMA = {
    "vqa_official": re.compile(r"\d,\d"),
    "vqa_evalai": re.compile(r"\d,+\d"),
}


def normalise_official(text: str) -> str:
    """What VQAEval makes of an answer, a model's or a person's, where people differ."""
    return _words(_strip_marks(_one_line(text).strip(), comma=_DIGIT_COMMA["vqa_official"]))


def normalise_evalai(text: str) -> str:
    """What the EvalAI processor makes of any answer, a model's or a person's.

    Differs from VQAEval: commas and question marks vanish without leaving a space ("red, blue" and
    "1,000" are safe, "red,blue" becomes one word), and a possessive is split off ("cat 's").
    """
    plain = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return _words(_strip_marks(_one_line(plain).strip(), comma=_DIGIT_COMMA["vqa_evalai"]))


def vqa_official(prediction: str, people: Sequence[str]) -> float:
    """VQA accuracy as the challenge's script computes it (github.com/GT-Vision-Lab/VQA).

    Where people differ, the prediction and all their answers are normalised. Where all of them
    agree nobody's words are touched, so there "Yes." is no match for ten times "yes"; the authors
    confirm that it is meant (issue 14 of that repository: text read off an image). This is the
    script's present form. Its first, which several tools still carry, normalised every prediction
    but of people's answers only the punctuation.
    """
    said = _one_line(prediction).strip()
    given = [_one_line(one).strip() for one in people]
    if len(set(given)) > 1:
        said, given = normalise_official(said), [normalise_official(one) for one in given]
    return agreement([one == said for one in given])


def vqa_evalai(prediction: str, people: Sequence[str]) -> float:
    """VQA accuracy with the EvalAI normaliser on both sides (TextVQA, lmms-eval)."""
    wanted = normalise_evalai(prediction)
    return agreement([normalise_evalai(one) == wanted for one in people])


def agreement(agrees: Sequence[bool]) -> float:
    """Soft accuracy: mean over people left out of min(1, others who agree / 3).

    With ten people: 0, .3, .6, .9 and then 1 for four or more. Fewer people are averaged the same
    way, so three who agree give 2/3; a single one leaves nobody to compare with, and counts as
    plain equality. Raises ValueError without anybody.
    """
    if not agrees:
        raise ValueError("VQA accuracy needs at least one human answer")
    if len(agrees) == 1:
        return float(agrees[0])
    total = sum(agrees)
    return sum(min((total - one) / 3, 1.0) for one in agrees) / len(agrees)


def anls(prediction: str, answers: Sequence[str], *, threshold: float = 0.5) -> float:
    """Average normalised Levenshtein similarity of one answer: the best over accepted answers.

    Case and runs of spaces do not count. A similarity below `threshold` is 0. At the threshold
    itself the ST-VQA paper says 0 and every evaluation script gives the similarity; so do we.
    """
    said = " ".join(prediction.lower().split())
    best = 0.0
    for answer in answers:
        wanted = " ".join(answer.lower().split())
        longest = max(len(said), len(wanted))
        distance = edit_distance(said, wanted) / longest if longest else 0.0
        best = max(best, 1.0 - distance)
    return best if best >= threshold else 0.0


def relaxed_accuracy(prediction: str, answers: Sequence[str], *, tolerance: float = 0.05) -> float:
    """ChartQA's rule: numbers within 5 % of the truth, anything else equal but for letter case.

    "12%" is read as 0.12. A truth of zero has no relative error and is compared as text.
    """
    return float(any(_relaxed(prediction, one, tolerance=tolerance) for one in answers))


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """Equal but for letter case, ASCII punctuation and spacing (GQA as lmms-eval scores it)."""
    return float(_bare(prediction) in {_bare(answer) for answer in answers})


METRICS: dict[str, Callable[[str, Sequence[str]], float]] = {
    "vqa_official": vqa_official,
    "vqa_evalai": vqa_evalai,
    "anls": anls,
    "relaxed_accuracy": relaxed_accuracy,
    "exact_match": exact_match,
}
"""Score of (prediction, answers) by name; the VQA ones want every person's answer."""


def edit_distance(left: str, right: str) -> int:
    """Levenshtein distance: insertions, deletions and substitutions cost 1 each."""
    if len(left) < len(right):
        left, right = right, left
    previous = list(range(len(right) + 1))
    for row, a in enumerate(left, start=1):
        current = [row]
        for column, b in enumerate(right, start=1):
            step = previous[column - 1] + (a != b)
            current.append(min(step, previous[column] + 1, current[-1] + 1))
        previous = current
    return previous[-1]


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ")


def _strip_marks(text: str, *, comma: re.Pattern[str]) -> str:
    """Remove punctuation: without a trace beside a space or a thousands comma, else as a space.

    The test looks at the whole original text, so one "1,000" makes every mark vanish.
    """
    has_number = comma.search(text) is not None
    out = text
    for mark in PUNCTUATION:
        vanishes = has_number or f"{mark} " in text or f" {mark}" in text
        out = out.replace(mark, "" if vanishes else " ")
    return _PERIOD.sub("", out, count=_MOST_PERIODS)


def _words(text: str) -> str:
    """Lower case, digits for number words up to ten, no articles, apostrophes repaired."""
    words = [NUMBER_WORDS.get(word, word) for word in text.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def _relaxed(prediction: str, answer: str, *, tolerance: float) -> bool:
    said, truth = _number(prediction), _number(answer)
    if said is not None and truth:
        return abs(said - truth) / abs(truth) <= tolerance
    return prediction.strip().lower() == answer.strip().lower()


def _number(text: str) -> float | None:
    plain = text.strip()
    try:
        return float(plain.rstrip("%")) / 100 if plain.endswith("%") else float(plain)
    except ValueError:
        return None


def _bare(text: str) -> str:
    return " ".join(text.lower().translate(str.maketrans("", "", string.punctuation)).split())

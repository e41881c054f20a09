"""Scores that belong to a whole set of answers: captions, hallucination, yes/no probing.

In go judged predictions; out come the predictions with what only the set can tell (CIDEr-D weighs
words by all references), and a flat table {name: value} for `evaluation.json`, gates and the
terminal. Left out: judging one answer (`records.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rich.table import Table

from saccade.data.generate.probing import KIND as PROBING
from saccade.evaluation.records import Prediction
from saccade.scoring.captions import CAPTION_METRICS, UNBOUNDED, caption_scores
from saccade.scoring.hallucination import Hallucination, chair
from saccade.scoring.vocabularies import read_vocabulary
from saccade.scoring.yes_no import yes_no_scores

MEANINGS = {
    "cider": "CIDEr-D of the set (0 to 10; papers print it times 100)",
    "bleu1": "BLEU-1 of the set",
    "bleu2": "BLEU-2 of the set",
    "bleu3": "BLEU-3 of the set",
    "bleu4": "BLEU-4 of the set",
    "rouge_l": "ROUGE-L",
    "chair_i": "mentions of objects that are not there",
    "chair_s": "captions with such a mention",
    "object_recall": "objects there that are mentioned",
    "object_mentions": "mentions of objects found",
    "yes_no_accuracy": "yes/no questions answered right",
    "yes_no_precision": "yes that were right",
    "yes_no_recall": "true things affirmed",
    "yes_no_f1": "F1 of yes",
    "yes_no_yes_rate": "answers that say yes",
    "yes_no_unclear_rate": "answers that say neither",
}
"""What each score says, in the order they are shown."""


def judged_together(predictions: Sequence[Prediction]) -> list[Prediction]:
    """The same predictions; those under a metric that needs the whole set get their share of it."""
    out = list(predictions)
    for metric in UNBOUNDED:
        places = [i for i, one in enumerate(out) if one.metric == metric]
        if not places:
            continue
        scores = CAPTION_METRICS[metric](
            [out[i].prediction for i in places], references=[references(out[i]) for i in places]
        )
        for place, score in zip(places, scores.samples, strict=True):
            out[place] = replace(out[place], score=score, correct=score >= 0.5)
    return out


def references(prediction: Prediction) -> tuple[str, ...]:
    """Every reference caption, repeated ones included."""
    return prediction.people or prediction.answers


def is_caption(prediction: Prediction) -> bool:
    """Whether the answer is judged as a caption."""
    return prediction.metric in CAPTION_METRICS


def dataset_scores(predictions: Sequence[Prediction], *, vocabulary: str) -> dict[str, float]:
    """Scores of the set: all caption metrics and CHAIR for captions, POPE's for probing."""
    captions = [one for one in predictions if is_caption(one)]
    probes = [one for one in predictions if one.kind == PROBING]
    scores: dict[str, float] = {}
    if captions:
        texts = [one.prediction for one in captions]
        found = caption_scores(texts, references=[references(one) for one in captions])
        scores |= {name: score.corpus for name, score in found.items()}
        rates = hallucination(captions, vocabulary=vocabulary)
        scores |= {
            "chair_i": rates.chair_i, "chair_s": rates.chair_s,
            "object_recall": rates.object_recall, "object_mentions": float(rates.mentions),
        }  # fmt: skip
    if probes:
        rated = yes_no_scores(
            [one.prediction for one in probes], answers=[one.answers[0] for one in probes]
        )
        scores |= {f"yes_no_{name}": value for name, value in rated.as_dict().items()}
    return scores


def hallucination(captions: Sequence[Prediction], *, vocabulary: str) -> Hallucination:
    """CHAIR against the objects a sample is known to show and those its references name."""
    return chair(
        [one.prediction for one in captions],
        truths=[(*one.objects, *references(one)) for one in captions],
        vocabulary=read_vocabulary(vocabulary),
    )


def scores_table(result: Mapping[str, Any]) -> Table:
    """The scores of a set with what each says."""
    table = Table(title_justify="left")
    table.add_column("score")
    table.add_column("value", justify="right")
    table.add_column("meaning")
    for name, meaning in MEANINGS.items():
        if name in result["scores"]:
            value = result["scores"][name]
            shown = f"{value:.0f}" if name == "object_mentions" else f"{value:.4f}"
            table.add_row(name, shown, meaning)
    if "vocabulary" in result:
        table.caption = f"objects of the vocabulary {result['vocabulary']!r}"
        table.caption_justify = "left"
    return table

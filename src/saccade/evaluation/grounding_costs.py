"""What an episode costs: visual tokens, all tokens that the language model reads, operations.

A finished episode and its dialogue flow in; three numbers flow out, kept in its row beside the
pixels. Every token is read once, because what was read stays in the cache; the vocabulary is
computed for every token written. Operations are those of `models/flops.py`: the tower's on all
cells (on the chosen ones, where a selector chooses before it), the selector's own, and the language
model's. Left out: time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from saccade.config.schema import Config
from saccade.evaluation.load import fingerprint
from saccade.models import flops

if TYPE_CHECKING:
    from saccade.grounding.dialogue import Dialogue
    from saccade.grounding.episodes import Episode

COSTS = ("tokens_visual", "tokens_read", "flops")


def cost_of(episode: Episode, *, dialogue: Dialogue) -> dict[str, float]:
    """`tokens_visual`, `tokens_read` (these and all others) and `flops` of one episode."""
    config, merge = dialogue.base.config, dialogue.merge
    pictures = dialogue.pictures(episode)
    visual = [one.count(merge) for one in pictures]
    read = len(dialogue.prompt(episode.task).ids) + len(episode.ids)
    early = dialogue.pruner is not None and dialogue.pruner.early
    cells = visual if early else [one.cells(merge) for one in pictures]
    spoken = max(1, int(episode.written.sum()))
    spent = flops.Flops(
        vision=flops.vision_flops(config, cells=cells),
        selector=sum(dialogue.choosing(one, task=episode.task) for one in pictures),
        language=flops.language_flops(config, tokens=[read], spoken=spoken),
    )
    return {"tokens_visual": sum(visual), "tokens_read": read, "flops": spent.total}


def mean_costs(rows: Sequence[Mapping[str, Any]]) -> dict[str, float] | None:
    """Means over stored episodes; None where some do not say what they cost."""
    if not rows or any(row.get(name) is None for row in rows for name in COSTS):
        return None
    return {name: sum(row[name] for row in rows) / len(rows) for name in COSTS}


def selector_key(config: Config) -> dict[str, Any] | None:
    """What a choice of tokens depends on beside the model: which selector, and its budget."""
    from saccade.grounding.pruning import is_untrained
    from saccade.models.relevance import storage

    name = config.grounding.selector
    if name is None:
        return None
    chosen = config.selector
    weights = ""
    if not is_untrained(name):
        weights = fingerprint(storage.find(name, root=config.run.root, key="grounding.selector"))
    return {
        "name": name, "weights": weights, "keep": chosen.keep, "min_tokens": chosen.min_tokens,
        "max_tokens": chosen.max_tokens,
    }  # fmt: skip

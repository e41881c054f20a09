"""From stored answers to the rows of a comparison: accuracy, tokens, operations, differences.

In go the answers of each cell, the selectors' descriptions, the model's configuration and the
measured costs; out comes the plain-data body of `comparison.json`. Pure functions of their
arguments: the same answers give the same rows. Left out: answering and timing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saccade.config.schema import Budget
from saccade.evaluation.cells import Cell, budget_label
from saccade.evaluation.records import (
    Prediction,
    accuracy_by_kind,
    token_counts,
    worth_interval,
    write_json,
)
from saccade.evaluation.statistics import mean_sd, paired_difference
from saccade.models import flops

Answers = Mapping[Cell, Sequence[Prediction]]


@dataclass(frozen=True)
class Measured:
    """Measured costs per sample of (selector, budget) pairs; see `timing.Cost.as_dict`."""

    costs: Mapping[tuple[str, Budget], Mapping[str, float]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path, *, key: dict[str, Any]) -> Measured:
        """What was measured before under the same key, or nothing."""
        try:
            stored = json.loads(path.read_text("utf-8"))
        except (FileNotFoundError, ValueError):
            return cls()
        if stored.get("key") != json.loads(json.dumps(key)):
            return cls()
        return cls({(row["arm"], row["keep"]): row["cost"] for row in stored["costs"]})

    def write(self, path: Path, *, key: dict[str, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [{"arm": a, "keep": k, "cost": dict(cost)} for (a, k), cost in self.costs.items()]
        write_json(path, {"key": key, "costs": rows})

    def of(self, cell: Cell) -> Mapping[str, float] | None:
        return self.costs.get((cell.arm, cell.keep))


def text_tokens(answer: Prediction) -> int:
    """Tokens of a sample that are not visual."""
    return late_tokens(answer) - sum(answer.kept)


def late_tokens(answer: Prediction) -> int:
    """Tokens that the last layers read: fewer than layer 0 where some are dropped in between."""
    return answer.tokens if answer.late_tokens is None else answer.late_tokens


def mean_layer_tokens(config: Any, answers: Sequence[Prediction]) -> float:
    """Tokens per layer, which are the tokens in the KV cache, as a mean over layers and samples."""
    return sum(
        flops.layer_tokens(config, tokens=a.tokens, late_tokens=late_tokens(a)) for a in answers
    ) / len(answers)


def flops_of(config: Any, answer: Prediction, *, selector: float) -> flops.Flops:
    """Operations of one sample, from what the vision tower really encoded for it."""
    encoded = answer.encoded or answer.full
    return flops.forward_flops(
        config, encoded_cells=encoded, tokens=[answer.tokens], late_tokens=[late_tokens(answer)],
        selector=selector,
    )  # fmt: skip


def full_flops(config: Any, answer: Prediction) -> flops.Flops:
    """What the same sample costs with every visual token."""
    tokens = text_tokens(answer) + sum(answer.full)
    return flops.forward_flops(config, encoded_cells=answer.full, tokens=[tokens])


def resize_share(config: Any, ours: Sequence[Prediction], *, selector_flops: float) -> float:
    """Share of cells that resizing may keep at the mean cost of our answers."""
    count = len(ours)
    spent = sum(flops_of(config, a, selector=selector_flops).total for a in ours)
    share = flops.matched_resize_share(
        config,
        cells=max(1, round(sum(sum(a.full) for a in ours) / count)),
        text_tokens=round(sum(text_tokens(a) for a in ours) / count),
        budget_flops=spent / count,
    )
    return round(share, 4)


def comparison_rows(
    grouped: Sequence[Sequence[Cell]],
    answers: Answers,
    *,
    arms: Mapping[str, Any],
    config: Any,
    costs: Measured,
) -> dict[str, Any]:
    """Rows of the table (one per selector, budget and kind of matching) and what they share."""
    groups = {a.id: a.group for cell in answers for a in answers[cell]}
    trained = {
        cell.budget: _scores([answers[cell]]) for cell in answers if cell.arm == "trained"
    }  # fmt: skip
    rows = []
    for cells in grouped:
        repeats = [answers[cell] for cell in cells]
        if not repeats[0]:
            continue
        row = _row(cells[0], repeats, info=arms[cells[0].arm], config=config, costs=costs)
        row["difference"] = _difference(cells[0], _scores(repeats), trained=trained, groups=groups)
        rows.append(row)
    first = next(answers[cell] for cell in answers if answers[cell])
    return {
        "rows": rows,
        "kinds": sorted({a.kind for a in first}),
        "kv_bytes_per_token": flops.kv_bytes_per_token(config),
        "ceiling": _ceiling(config, first),
    }


def _scores(repeats: Sequence[Sequence[Prediction]]) -> dict[str, float]:
    """Mean worth of each sample's answer over the repetitions."""
    totals: dict[str, list[float]] = {}
    for answers in repeats:
        for answer in answers:
            totals.setdefault(answer.id, []).append(answer.value)
    return {sample: sum(hits) / len(hits) for sample, hits in totals.items()}


def _row(
    cell: Cell,
    repeats: Sequence[Sequence[Prediction]],
    *,
    info: Any,
    config: Any,
    costs: Measured,
) -> dict[str, Any]:
    per_seed = [sum(a.value for a in one) / len(one) for one in repeats]
    mean, sd = mean_sd(per_seed)
    pooled = [answer for one in repeats for answer in one]
    low, high = worth_interval(mean, of=repeats[0])
    kinds = [accuracy_by_kind(one) for one in repeats]
    cost = costs.of(cell)
    spent, full = _mean_flops(config, pooled, cell=cell, cost=cost)
    tokens = token_counts(pooled)
    tokens["kv_tokens_after_prefill"] = mean_layer_tokens(config, pooled)
    reference = costs.costs.get(("full", 1.0))
    faster = reference["total_ms"] / cost["total_ms"] if cost and reference else None
    return {
        "arm": cell.arm,
        "title": info.title + (" (equal FLOPs)" if cell.matched == "flops" else ""),
        "budget": cell.budget,
        "budget_label": "all" if cell.arm == "full" else budget_label(cell.budget),
        "keep": cell.keep,
        "matched": cell.matched,
        "query_aware": info.query_aware,
        "trained": info.trained,
        "samples": len(repeats[0]),
        "seeds": len(repeats),
        "accuracy": mean,
        "accuracy_sd": sd,
        "low": low,
        "high": high,
        "kinds": {
            kind: mean_sd([one[kind]["accuracy"] for one in kinds])[0] for kind in kinds[0]
        },
        **tokens,
        "kv_bytes": (tokens["kv_tokens_after_prefill"] or 0) * flops.kv_bytes_per_token(config),
        "flops": spent.as_dict(),
        "flops_speedup": full.total / spent.total,
        "milliseconds": dict(cost) if cost else None,
        "measured_speedup": faster,
    }  # fmt: skip


def _mean_flops(
    config: Any, answers: Sequence[Prediction], *, cell: Cell, cost: Mapping[str, float] | None
) -> tuple[flops.Flops, flops.Flops]:
    selector = cost["selector_flops"] if cost else 0.0
    spent, full = flops.Flops(), flops.Flops()
    for answer in answers:
        spent += flops_of(config, answer, selector=selector)
        full += full_flops(config, answer)
    return spent.scaled(1 / len(answers)), full.scaled(1 / len(answers))


def _difference(
    cell: Cell,
    theirs: Mapping[str, float],
    *,
    trained: Mapping[Budget, Mapping[str, float]],
    groups: Mapping[str, str],
) -> dict[str, Any] | None:
    """Trained minus this row on the same samples (None where there is nothing to compare)."""
    ours = trained.get(cell.budget)
    if ours is None or cell.arm == "trained":
        return None
    found = paired_difference(ours, theirs, groups=groups)
    return {"mean": found.mean, "low": found.low, "high": found.high, "clear": found.clear}


def _ceiling(config: Any, answers: Sequence[Prediction]) -> float:
    """Largest speed-up in operations that dropping after the encoder can reach on these samples."""
    full = sum(full_flops(config, a).total for a in answers)
    bare = sum(
        flops.forward_flops(config, encoded_cells=a.full, tokens=[text_tokens(a)]).total
        for a in answers
    )
    return full / bare

"""Ways to read a look, compared at equal compute: whole, pruned by selectors, or simply smaller.

In goes a run of recipe `grounding` with a selector in front of it (`grounding.selector`,
`selector.keep`); out comes `selectors.json`. One policy answers the same held-out targets greedily
and free to look again, reading every look whole, reading what the selector keeps, what untrained
selectors keep at the same budget (those of `eval.arms` that only drop tokens), and (`resize`) looks
made so much smaller that they have about as many tokens, or cost no more operations. Each row says
what it really cost in visual tokens, in tokens that the language model reads, and in operations.
Episodes are kept under `comparison/`, so an interrupted comparison continues. Left out: whether to
look again (`grounding_compare.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from saccade.config.schema import Config
from saccade.data.samples import DataError
from saccade.evaluation.cells import KeyedLines, budget_label
from saccade.evaluation.grounding import answer, batches, usual_look
from saccade.evaluation.grounding_compare import Rollouts, episodes_key, small_side
from saccade.evaluation.grounding_costs import mean_costs
from saccade.evaluation.grounding_rows import Scored, scored, share
from saccade.evaluation.load import Progress, weights_folder
from saccade.evaluation.records import write_json
from saccade.evaluation.statistics import paired_difference
from saccade.models.flops import matched_resize_share
from saccade.training.rundir import RunDir

if TYPE_CHECKING:
    from saccade.grounding.dialogue import Dialogue

FILE = "selectors.json"
SMALLER = "resize"
"""The arm of `eval.arms` that stands for smaller looks."""


@dataclass(frozen=True)
class Reading:
    """One way to read looks: a name fit for a file, a title, and the configuration that does it."""

    name: str
    title: str
    config: Config


def compare_selectors(run: RunDir, *, progress: Progress) -> dict[str, Any]:
    """Answer what is missing, write `selectors.json`; returns its content.

    Raises InputError for a selector that is not there, does not fit, or replaces tokens.
    """
    config = run.config()
    rollouts = Rollouts(run, progress=progress)
    readings = readings_of(config)
    broken: list[DataError] = []
    found = {one.name: _answered(one, rollouts, broken=broken) for one in readings}
    for one in _as_costly(config, found, ours=readings[1].name, rollouts=rollouts):
        readings.append(one)
        found[one.name] = _answered(one, rollouts, broken=broken)
    ids = [
        name for name, row in found["whole"].items()
        if scored(row).hit is not None and all(name in rows for rows in found.values())
    ]  # fmt: skip
    judged = {name: [scored(rows[one]) for one in ids] for name, rows in found.items()}
    first = judged["whole"][0] if ids else None
    below = small_side(config, first) if first is not None else 0.0
    small = {one.id for one in judged["whole"] if one.side is not None and one.side < below}
    ours = readings[1].name
    result = {
        "v": 1, "run": str(run.path), "recipe": config.recipe, "model": rollouts.model,
        "data": rollouts.sources["test"].fingerprint(), "samples": len(ids),
        "selector": config.grounding.selector, "keep": config.selector.keep,
        "small_below": below, "small_samples": len(small),
        "skipped": sorted(set(map(str, broken))), "settings": rollouts.settings(),
        "readings": [
            _row(one, judged[one.name], rows=[found[one.name][i] for i in ids], small=small,
                 ours=judged[ours], seed=config.run.seed) | {"ours": one.name == ours}
            for one in readings
        ],
    }  # fmt: skip
    write_json(run.path / FILE, result)
    return result


def readings_of(config: Config) -> list[Reading]:
    """Whole looks, the selector asked for, and what stands beside it at the same budget."""
    from saccade.grounding.pruning import only_drops

    name, keep = config.grounding.selector, config.selector.keep
    assert name is not None
    others = [
        one for one in config.eval.arms if one not in (name, "full") and only_drops(one)
    ]  # fmt: skip
    label = budget_label(keep)
    made = [Reading("whole", "whole looks", _reads(config, None))]
    for one in (name, *others):
        title = f"{_short(one)}, {label} of each look"
        made.append(Reading(_short(one), title, _reads(config, one)))
    if SMALLER in config.eval.arms and isinstance(keep, float):
        made.append(Reading("smaller", f"looks of {label} of the pixels", _smaller(config, keep)))
    return made


def _as_costly(
    config: Config,
    found: Mapping[str, Mapping[str, Mapping[str, Any]]],
    *,
    ours: str,
    rollouts: Rollouts,
) -> list[Reading]:
    """Looks so much smaller that an episode costs no more operations than ours; none where even
    whole looks do not. A small grid of whole cells may have to give up more than that."""
    known = list(found["whole"].values())
    whole, spent = mean_costs(known), mean_costs(list(found[ours].values()))
    if SMALLER not in config.eval.arms or whole is None or spent is None:
        return []
    looks = [[view["pixels"] for view in row["views"]] for row in known]
    cell = sum(map(sum, looks)) / sum(row["tokens_visual"] for row in known)
    # one target in so many looks a second time: the mean cells of a first and of a later look
    cells = [
        round(sum(one[k] for one in looks if len(one) > k) / len(looks) / cell)
        for k in range(max(map(len, looks)))
    ]
    kept = matched_resize_share(
        _base_config(rollouts), cells=[one for one in cells if one],
        text_tokens=round(whole["tokens_read"] - whole["tokens_visual"]),
        budget_flops=spent["flops"],
    )  # fmt: skip
    if kept >= 1.0:
        return []
    kept = round(kept, 3)
    title = f"looks of {budget_label(kept)} of the pixels: no more operations"
    return [Reading("as-costly", title, _smaller(config, kept))]


def _base_config(rollouts: Rollouts) -> Any:
    from transformers import AutoConfig

    folder = weights_folder(rollouts.run)
    finished = (folder / "config.json").is_file()
    return AutoConfig.from_pretrained(folder) if finished else rollouts.dialogue.base.config


def _short(selector: str) -> str:
    """The name of a selector's run."""
    parts = [part for part in selector.replace("\\", "/").split("/") if part]
    return parts[-2] if parts[-1] == "model" and len(parts) > 1 else parts[-1]


def _reads(config: Config, selector: str | None) -> Config:
    settings = config.grounding.model_copy(update={"selector": selector})
    return config.model_copy(update={"grounding": settings})


def _smaller(config: Config, keep: float) -> Config:
    """Whole looks with `keep` of the pixels, in which everything is that much smaller."""
    whole, model = _reads(config, None), config.model
    least, most = model.min_pixels, model.max_pixels
    limits = {
        "max_pixels": most and round(most * keep), "min_pixels": least and round(least * keep)
    }  # fmt: skip
    zoom = config.grounding.zoom.model_copy(
        update={"pixels": max(1, round(config.grounding.zoom.pixels * keep))}
    )
    settings = whole.grounding.model_copy(update={"zoom": zoom})
    return whole.model_copy(
        update={"model": model.model_copy(update=limits), "grounding": settings}
    )


def _answered(
    reading: Reading, rollouts: Rollouts, *, broken: list[DataError]
) -> dict[str, dict[str, Any]]:
    """The stored episode of every test target under one reading; what is missing is rolled out."""
    config, source = reading.config, rollouts.sources["test"]
    key = episodes_key(config, model=rollouts.model, data=source.fingerprint())
    label = budget_label(config.selector.keep).replace("%", "pc").replace(" ", "-")
    file = KeyedLines(
        rollouts.run.path / "comparison" / f"reads-{reading.name}-{label}.jsonl", key=key
    )
    known = {row["id"]: row for row in file.read()}
    indices, done = rollouts.indices("test"), 0
    dialogue: Dialogue | None = None
    for samples in batches(source, indices, config=config, broken=broken):
        rollouts.progress(f"answering ({reading.title})", done, len(indices))
        done += config.eval.batch_size
        missing = [one for one in samples if one.id not in known]
        if not missing:
            continue
        dialogue = dialogue or _dialogue(config, rollouts.dialogue)
        rows = answer(
            dialogue, missing, run=rollouts.run, look=usual_look(config), broken=broken,
            split="test",
        )  # fmt: skip
        file.append(rows)
        known |= {row["id"]: row for row in rows}
    return known


def _dialogue(config: Config, loaded: Dialogue) -> Dialogue:
    """The same policy, reading otherwise."""
    from saccade.grounding.dialogue import Dialogue

    return Dialogue(loaded.base, loaded.processor, config=config)


def _row(
    reading: Reading,
    judged: Sequence[Scored],
    *,
    rows: Sequence[Mapping[str, Any]],
    small: set[str],
    ours: Sequence[Scored],
    seed: int,
) -> dict[str, Any]:
    among = [one for one in judged if one.id in small]
    gap = paired_difference(
        {one.id: float(one.right) for one in ours}, {one.id: float(one.right) for one in judged},
        groups={one.id: one.screen for one in ours}, seed=seed,
    )  # fmt: skip
    found = share([one.right for one in judged])
    return {
        "name": reading.name, "title": reading.title,
        "accuracy": found["share"], "low": found["low"], "high": found["high"],
        "accuracy_small": share([one.right for one in among])["share"] if among else None,
        "zoom_rate": share([one.zoomed for one in judged])["share"],
        "pixels": sum(one.pixels for one in judged) / max(1, len(judged)),
        "costs": mean_costs(rows), "difference": {**asdict(gap), "clear": gap.clear},
    }  # fmt: skip

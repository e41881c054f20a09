"""Where selectors look over a whole benchmark: averaged kept maps, per selector and kind.

In goes a run; out come `heatmaps.json` and `figures/heatmaps.png`: for each selector and kind the
probability that a place of the picture is kept, on one normalised grid whatever the pictures'
sizes, and a summary (share kept in the centre and at the border, entropy, recall of the cells that
carry the answer). Only choosing is computed, no answers. Selectors that pool, merge or resize
choose nothing and are left out, as is the map of a single picture (see `look`).

Shapes: H x W cells of one image, G x G the normalised grid.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from saccade.config.errors import InputError
from saccade.config.schema import Budget
from saccade.data.sources import open_source
from saccade.evaluation.cells import budget_label
from saccade.evaluation.load import (
    LoadedRun,
    Progress,
    load_run,
    model_fingerprint,
    no_progress,
    read_samples,
    select_indices,
)
from saccade.evaluation.plot import LIGHT, new_figure, save_png, styled
from saccade.evaluation.records import answer_cells_kept, write_json
from saccade.training.rundir import RunDir

log = logging.getLogger(__name__)
GRID = 24
"""Side of the normalised grid; a multiple of 8, so that both summaries are exact."""
COARSE = 8
"""Side of the grid whose entropy is stated: 6 bits when every place is kept equally often."""
MOST_KINDS = 7
"""Kinds that get a column in the figure, the most asked first; the JSON has all."""
ALL = "all"


@dataclass
class Average:
    """Running mean of kept maps and of recalls."""

    total_GG: np.ndarray = field(default_factory=lambda: np.zeros((GRID, GRID)))
    images: int = 0
    recalls: list[float] = field(default_factory=list)

    def add(self, map_GG: np.ndarray) -> None:
        self.total_GG += map_GG
        self.images += 1

    def summary(self) -> dict[str, Any]:
        """Shares, entropy and recall; the map itself, rounded."""
        map_GG = self.total_GG / max(1, self.images)
        middle = slice(GRID // 4, GRID - GRID // 4)
        centre = float(map_GG[middle, middle].mean())
        kept = float(map_GG.mean())
        return {
            "images": self.images,
            "kept": kept,
            "centre": centre,
            "border": (4 * kept - centre) / 3,  # the centre is a quarter of the area
            "entropy_bits": entropy_bits(map_GG),
            "recall": sum(self.recalls) / len(self.recalls) if self.recalls else None,
            "map": np.round(map_GG, 4).tolist(),
        }


def heat_maps(
    run: RunDir,
    *,
    arms: Sequence[str] | None = None,
    keep: Budget | None = None,
    limit: int | None = None,
    checkpoint: Path | None = None,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Average what each selector keeps over `data.eval`; write JSON and figure.

    `arms` default to those of `eval.arms` that choose cells. Raises InputError when none does.
    """
    config = run.config()
    loaded = load_run(run, checkpoint=checkpoint)
    names = choosing_arms(arms or config.eval.arms, loaded=loaded)
    budget = config.selector.keep if keep is None else keep
    source = open_source(config.data.eval)
    indices = select_indices(source, limit=limit or config.eval.samples)
    averages: dict[tuple[str, str], Average] = defaultdict(Average)
    size = config.eval.batch_size
    for start in range(0, len(indices), size):
        progress("averaging what is kept", start, len(indices))
        skip = config.data.on_error == "skip"
        samples, broken = read_samples(source, indices[start : start + size], skip_broken=skip)
        for error in broken:
            log.warning("skipped: %s", error)
        _add_batch(loaded, samples, averages, arms=names, keep=budget, skip=skip)
    progress("averaging what is kept", len(indices), len(indices))
    result = {
        "model": model_fingerprint(run, checkpoint=checkpoint),
        "data": source.fingerprint(),
        "keep": budget,
        "grid": GRID,
        "samples": len(indices),
        "rows": [
            {"arm": arm, "kind": kind, **average.summary()}
            for (arm, kind), average in sorted(averages.items(), key=lambda one: _place(one, names))
        ],
    }
    write_json(run.path / "heatmaps.json", result)
    save_heat_maps(result, path=run.figures / "heatmaps.png")
    return result


def choosing_arms(names: Sequence[str], *, loaded: LoadedRun) -> list[str]:
    """The selectors among `names` that this run has and that choose cells."""
    from saccade.models.relevance.baselines import find_arm

    known = {name: find_arm(name) for name in names}
    found = [
        name for name, arm in known.items()
        if arm.plain in loaded.arms and arm.how in ("trained", "rank")
    ]  # fmt: skip
    if not found:
        raise InputError(
            f"none of {', '.join(names)} chooses cells\n  fix: use trained, saliency, random, ..."
        )
    return found


def normalised_map(keep_HW: np.ndarray, *, side: int = GRID) -> np.ndarray:
    """Area-resample a map of cells to side x side; the mean stays exactly the same."""
    rows_GH = _overlaps(keep_HW.shape[0], side=side)
    columns_GW = _overlaps(keep_HW.shape[1], side=side)
    return rows_GH @ keep_HW.astype(float) @ columns_GW.T


def entropy_bits(map_GG: np.ndarray) -> float:
    """Entropy of the map, summed to 8 x 8 places and read as a distribution; at most 6 bits."""
    coarse = normalised_map(map_GG, side=COARSE)
    share = (coarse / coarse.sum()).ravel() if coarse.sum() else np.zeros(COARSE**2)
    share = share[share > 0]
    return float(-(share * np.log2(share)).sum()) + 0.0


def heat_map_table(result: Mapping[str, Any]) -> Table:
    """One line per selector and kind."""
    title = f"What is kept at {budget_label(result['keep'])}, {result['samples']} questions"
    table = Table(title=title, title_justify="left")
    table.add_column("selector")
    table.add_column("kind")
    for name in ("images", "kept", "in the centre", "at the border", "entropy", "answer cells"):
        table.add_column(name, justify="right")
    before = None
    for row in result["rows"]:
        if before not in (None, row["arm"]):
            table.add_section()
        before = row["arm"]
        recall = "" if row["recall"] is None else f"{100 * row['recall']:.0f}%"
        table.add_row(
            row["arm"], row["kind"], str(row["images"]), f"{100 * row['kept']:.1f}%",
            f"{100 * row['centre']:.1f}%", f"{100 * row['border']:.1f}%",
            f"{row['entropy_bits']:.2f}", recall,
            style="bold" if row["kind"] == ALL else "",
        )  # fmt: skip
    table.caption = (
        "centre: the middle half of each side; entropy of the mean map on 8 x 8 places in bits, "
        "6.00 = everywhere alike"
    )
    return table


def save_heat_maps(result: Mapping[str, Any], *, path: Path) -> Path:
    """Draw selectors as rows and kinds as columns, all on one colour scale."""
    rows = result["rows"]
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    asked = {r["kind"]: r["images"] for r in rows if r["arm"] == arms[0] and r["kind"] != ALL}
    kinds = [ALL, *sorted(asked, key=lambda kind: -asked[kind])[:MOST_KINDS]]
    found = {(row["arm"], row["kind"]): row for row in rows}
    top = max(max(map(max, row["map"])) for row in rows)
    with styled(LIGHT):
        figure = new_figure(width=1.6 * len(kinds) + 1.4, height=1.75 * len(arms) + 0.7)
        grid = figure.subplots(len(arms), len(kinds), squeeze=False)
        picture = None
        for line, arm in zip(grid, arms, strict=True):
            for axes, kind in zip(line, kinds, strict=True):
                axes.set_xticks([])
                axes.set_yticks([])
                axes.grid(False)
                row = found.get((arm, kind))
                if row is not None:
                    picture = axes.imshow(row["map"], vmin=0, vmax=top or 1, cmap="magma")
                    axes.set_xlabel(f"entropy {row['entropy_bits']:.2f}", fontsize=7)
                if arm == arms[0]:
                    axes.set_title(kind, fontsize=9)
                if kind == ALL:
                    axes.set_ylabel(arm, fontsize=9)
        if picture is not None:
            bar = figure.colorbar(picture, ax=grid.ravel().tolist(), shrink=0.7, pad=0.02)
            bar.set_label("share of pictures in which the place is kept", fontsize=8)
        return save_png(figure, path)


def _add_batch(
    loaded: LoadedRun,
    samples: Sequence[Any],
    averages: dict[tuple[str, str], Average],
    *,
    arms: Sequence[str],
    keep: Budget,
    skip: bool,
) -> None:
    import torch

    batch, broken = loaded.batch(samples, skip_broken=skip)
    for error in broken:
        log.warning("skipped: %s", error)
    if not sum(batch.images_of):
        return
    features = loaded.features(batch)
    for arm in arms:
        with torch.inference_mode():
            reduced = loaded.model.reduce(batch.tensors, arm=arm, keep=keep, features=features)
        start = 0
        for sample, count in zip(batch.samples, batch.images_of, strict=True):
            chosen = reduced.images[start : start + count]
            start += count
            recall = answer_cells_kept(sample, chosen)
            for kind in (ALL, sample.kind):
                average = averages[arm, kind]
                for one in chosen:
                    if one.keep_HW is not None:
                        average.add(normalised_map(one.keep_HW.cpu().numpy()))
                if recall is not None:
                    average.recalls.append(recall)


def _overlaps(cells: int, *, side: int) -> np.ndarray:
    """[side, cells]: which share of each place comes from which cell; rows sum to 1."""
    places, edges = np.arange(side + 1) / side, np.arange(cells + 1) / cells
    low = np.maximum(places[:-1, None], edges[None, :-1])
    high = np.minimum(places[1:, None], edges[None, 1:])
    return np.clip(high - low, 0, None) * side


def _place(entry: tuple[tuple[str, str], Average], arms: Sequence[str]) -> tuple[int, bool, str]:
    (arm, kind), _ = entry
    return arms.index(arm), kind != ALL, kind

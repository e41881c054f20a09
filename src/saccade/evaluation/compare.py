"""Compare selectors at equal cost: the trained one and every baseline on the same samples.

In goes a run directory; out come `comparison.json` and `figures/comparison*.svg|png`. Every batch
is encoded once and all selectors and budgets answer from the same vision features. Selectors that
draw at random are repeated over seeds. Beside accuracy stand the tokens really kept, operations by
part, measured times, the share of answer-carrying cells kept, and the difference to the trained
selector paired by sample. Because resizing saves in the vision tower too, it gets a second row at
equal *operations*, where it may keep more tokens. Answers are stored as they come (`cells.py`).

Accuracy here is always that of hard selection at the stated budget; nothing soft is scored.
"""

from __future__ import annotations

import json
import logging
import platform
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from saccade.config.errors import InputError
from saccade.config.schema import Budget, Config
from saccade.data.sources import SampleSource, open_source
from saccade.evaluation.cells import Cell, CellStore, plan_cells
from saccade.evaluation.dataset_scores import judged_together
from saccade.evaluation.load import (
    LoadedRun,
    Progress,
    arms_of,
    base_config,
    describe_arm,
    load_run,
    model_fingerprint,
    no_progress,
    read_samples,
    select_indices,
)
from saccade.evaluation.records import write_json
from saccade.evaluation.summary import Measured, comparison_rows, resize_share
from saccade.training.rundir import RunDir

log = logging.getLogger(__name__)
TIMING_SAMPLES = 4
FULL = Cell("full", 1.0, 1.0)


def compare_run(
    run: RunDir,
    *,
    samples: int | None = None,
    keep: Sequence[Budget] | None = None,
    arms: Sequence[str] | None = None,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Score all selectors at all budgets on the run's held-out samples, write table and plot.

    Continues an interrupted comparison; a finished one is only summarised again. Raises
    InputError for an unknown selector. Of a run of recipe grounding ways to look again are
    compared, or, where a selector is put in front of it, ways to read a look.
    """
    if run.config().recipe == "grounding":
        return _compare_grounding(run, progress=progress)
    comparison = Comparison(run, samples=samples, keep=keep, arms=arms, progress=progress)
    comparison.answer(comparison.cells)
    costs = comparison.costs()
    extra = comparison.matched_cells(costs)
    comparison.answer(extra)
    result = comparison.result([*comparison.cells, *extra], costs)
    write_json(comparison_file(run), result)
    from saccade.evaluation.plot import save_comparison

    save_comparison(result, folder=run.figures)
    return result


def _compare_grounding(run: RunDir, *, progress: Progress) -> dict[str, Any]:
    selector = run.config().grounding.selector
    if selector not in (None, RunDir.open(run.path).config().grounding.selector):
        from saccade.evaluation.grounding_selectors import compare_selectors

        return compare_selectors(run, progress=progress)
    from saccade.evaluation.grounding_compare import compare_grounding

    return compare_grounding(run, progress=progress)


def comparison_file(run: RunDir) -> Path:
    return run.path / "comparison.json"


def read_comparison(run: RunDir) -> dict[str, Any] | None:
    """What `comparison.json` says, or None before the run was compared."""
    path = comparison_file(run)
    return json.loads(path.read_text("utf-8")) if path.is_file() else None


def check_arms(names: Sequence[str], *, available: Sequence[str]) -> list[str]:
    """The named selectors in the given order; known ones that this run lacks drop out."""
    from saccade.models.relevance.baselines import find_arm

    try:
        plain = {name: find_arm(name).plain for name in names}
    except InputError as error:
        raise InputError(f"eval.arms: {error}") from error
    lacking = [name for name in names if plain[name] not in available]
    if lacking:
        log.warning("not compared, this run has not trained them: %s", ", ".join(lacking))
    found = [name for name in names if plain[name] in available]
    if not found:
        raise InputError(
            f"eval.arms: this run has none of {', '.join(names)}"
            f"\n  fix: choose from {', '.join(available)}"
        )
    return found


class Comparison:
    """One comparison in progress: which cells, which samples, what is known already."""

    def __init__(
        self,
        run: RunDir,
        *,
        samples: int | None,
        keep: Sequence[Budget] | None,
        arms: Sequence[str] | None,
        progress: Progress,
    ) -> None:
        from saccade.models.relevance.baselines import find_arm

        self.run = run
        self.config: Config = run.config()
        self.progress = progress
        self.arms = check_arms(list(arms or self.config.eval.arms), available=arms_of(self.config))
        self.budgets = list(keep or self.config.eval.keep)
        self.cells = plan_cells(
            self.arms,
            self.budgets,
            random_arms=[name for name in self.arms if find_arm(name).random],
            seeds=self.config.eval.seeds,
        )
        self.source: SampleSource = open_source(self.config.data.eval)
        self.indices = select_indices(self.source, limit=samples or self.config.eval.samples)
        self.model_hash = model_fingerprint(run)
        self.store = CellStore(run.path / "comparison", key=self._key())
        self.ids: set[str] = set()
        self.skipped: list[str] = []
        self._loaded: LoadedRun | None = None

    def _key(self) -> dict[str, Any]:
        limits = (self.config.model.min_pixels, self.config.model.max_pixels)
        return {
            "model": self.model_hash,
            "data": self.source.fingerprint(),
            "pixels": limits,
            "selector": self.config.selector.model_dump(mode="json"),
            "max_new_tokens": self.config.eval.max_new_tokens,
            "metric": self.config.eval.metric,
        }

    @property
    def loaded(self) -> LoadedRun:
        """The model, loaded when something is missing and never before."""
        if self._loaded is None:
            self.progress("loading the model", 0, 1)
            self._loaded = load_run(self.run)
        return self._loaded

    def batches(self) -> list[list[int]]:
        size = self.config.eval.batch_size
        return [self.indices[i : i + size] for i in range(0, len(self.indices), size)]

    def answer(self, cells: Sequence[Cell]) -> None:
        """Fill in what is missing, batch by batch; every finished batch is on disk."""
        skip = self.config.data.on_error == "skip"
        cells = [cell for cell in cells if not self._is_full(cell)]
        for done, indices in enumerate(self.batches()):
            self.progress("comparing", done * self.config.eval.batch_size, len(self.indices))
            samples, broken = read_samples(self.source, indices, skip_broken=skip)
            self.ids |= {sample.id for sample in samples}
            missing = [
                cell for cell in cells
                if any(sample.id not in self.store.answers(cell) for sample in samples)
            ]  # fmt: skip
            self.skipped += [str(error) for error in broken]
            if missing:
                self._answer_batch(samples, missing, skip=skip)
        self.progress("comparing", len(self.indices), len(self.indices))

    def _is_full(self, cell: Cell) -> bool:
        """Resizing to the full size is reading everything: take those answers, compute nothing."""
        if cell.arm != "resize" or cell.keep < 1.0 or FULL not in self.cells:
            return False
        known, full = self.store.answers(cell), self.store.answers(FULL)
        missing = [replace(full[i], arm=cell.arm, keep=cell.keep) for i in full if i not in known]
        if missing:
            self.store.append(cell, missing)
        return True

    def _answer_batch(self, samples: list[Any], cells: Sequence[Cell], *, skip: bool) -> None:
        batch, broken = self.loaded.batch(samples, skip_broken=skip)
        self.skipped += [str(error) for error in broken]
        if not batch.samples:
            return
        features = self.loaded.features(batch)
        for cell in cells:
            answers = self.loaded.answer(
                batch, arm=cell.arm, keep=cell.keep, seed=cell.seed, features=features
            )
            known = self.store.answers(cell)
            self.store.append(cell, [one for one in answers if one.id not in known])

    def costs(self) -> Measured:
        """Measured times and selector operations, from disk when they are known."""
        path = self.store.folder / "costs.json"
        wanted = [(cell.arm, cell.keep) for cell in self.cells]
        key = {**self._key(), "machine": platform.processor() or platform.machine()}
        known = Measured.read(path, key=key)
        missing = [pair for pair in dict.fromkeys(wanted) if pair not in known.costs]
        if not missing:
            return known
        from saccade.evaluation.timing import measure_arms

        self.progress("timing", 0, 1)
        samples = [self.source[i] for i in self.indices[:TIMING_SAMPLES]]
        batch, _ = self.loaded.batch(samples, skip_broken=True)
        if not sum(batch.images_of):
            return known
        found = measure_arms(
            self.loaded.model, batch.tensors, cells=missing, device=self.loaded.device
        )
        measured = Measured({**known.costs, **{k: v.as_dict() for k, v in found.items()}})
        measured.write(path, key=key)
        self.progress("timing", 1, 1)
        return measured

    def matched_cells(self, costs: Measured) -> list[Cell]:
        """Cells of resize at the trained selector's operations instead of its tokens."""
        if not {"trained", "resize"} <= set(self.arms):
            return []
        config = base_config(self.run)
        cells = []
        for budget in self.budgets:
            ours = list(self.store.answers(Cell("trained", budget, budget)).values())
            flops = costs.costs.get(("trained", budget), {}).get("selector_flops", 0.0)
            if ours:
                share = resize_share(config, ours, selector_flops=flops)
                cells.append(Cell("resize", budget, share, matched="flops"))
        return cells

    def result(self, cells: Sequence[Cell], costs: Measured) -> dict[str, Any]:
        """Summarise the stored answers of this comparison's samples."""
        answers = {
            cell: judged_together([a for i, a in self.store.answers(cell).items() if i in self.ids])
            for cell in cells
        }
        if not any(answers.values()):
            raise InputError(
                f"{self.run.path}: no held-out sample could be scored"
                "\n  fix: check data.eval with `saccade data check`"
            )
        grouped: dict[tuple[str, Budget, str], list[Cell]] = defaultdict(list)
        for cell in cells:
            grouped[cell.arm, cell.budget, cell.matched].append(cell)
        return {
            "v": 1,
            "run": str(self.run.path),
            "recipe": self.config.recipe,
            "model": self.model_hash,
            "data": self.source.fingerprint(),
            "samples": len(next(iter(answers.values()))),
            "skipped": sorted(set(self.skipped)),
            "budgets": self.budgets,
            **comparison_rows(
                list(grouped.values()),
                answers,
                arms={name: describe_arm(name, self.config) for name in self.arms},
                config=base_config(self.run),
                costs=costs,
            ),
        }

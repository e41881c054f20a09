"""The cells of a comparison: which selector at which budget, and answers kept between calls.

A comparison is a grid of cells (selector x budget x repetition). Each cell's answers live in one
file of JSON lines under `runs/NAME/comparison/`, whose first line names everything the answers
depend on: weights, data, budget, image limits. A cell whose first line still fits is continued
where it stopped, any other is started afresh; so an interrupted comparison continues and a
finished one is read back without loading a model. Left out: computing answers.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from saccade.config.schema import Budget
from saccade.evaluation.records import Prediction

Matched = Literal["tokens", "flops"]


@dataclass(frozen=True)
class Cell:
    """One selector at one budget.

    `budget` is the budget the cell is compared at, `keep` what the selector is told: they differ
    for a resize that is matched to our cost instead of our tokens.
    """

    arm: str
    budget: Budget
    keep: Budget
    seed: int = 0
    matched: Matched = "tokens"

    @property
    def name(self) -> str:
        """Unique, and fit for a file name."""
        parts = [self.arm, budget_label(self.budget).replace("%", "pc").replace(" ", "-")]
        if self.matched == "flops":
            parts.append("matched-flops")
        return "_".join([*parts, f"s{self.seed}"])


def budget_label(budget: Budget | str) -> str:
    """A budget for people: `25%` for a share, `64 tokens` for a count; words stay as they are."""
    if isinstance(budget, str):
        return budget
    if isinstance(budget, int):
        return f"{budget} token{'s' if budget != 1 else ''}"
    return f"{budget:.1%}".replace(".0%", "%")


def plan_cells(
    arms: Sequence[str], budgets: Sequence[Budget], *, random_arms: Iterable[str], seeds: int
) -> list[Cell]:
    """All cells at matched tokens: `full` once, arms that draw at random once per seed."""
    drawn = set(random_arms)
    cells = [Cell("full", 1.0, 1.0)] if "full" in arms else []
    for budget in budgets:
        for arm in arms:
            if arm != "full":
                repeats = range(seeds if arm in drawn else 1)
                cells += [Cell(arm, budget, budget, seed) for seed in repeats]
    return cells


class KeyedLines:
    """JSON lines in a file whose first line names everything they depend on (`key`)."""

    def __init__(self, path: Path, *, key: dict[str, Any]) -> None:
        self.path = path
        self.header = json.dumps({"v": 1, **key}, sort_keys=True)
        self._fits = False

    def read(self) -> list[dict[str, Any]]:
        """The lines stored under this key; a torn last one is cut off, so appending is safe."""
        self._fits = False
        if not self.path.is_file():
            return []
        content = self.path.read_bytes()
        # a killed writer left half a line, perhaps half a character
        whole = content[: content.rfind(b"\n") + 1]
        header, *lines = whole.decode("utf-8").split("\n")
        if header != self.header:
            return []
        if len(whole) < len(content):
            os.truncate(self.path, len(whole))
        self._fits = True
        return [json.loads(line) for line in lines if line]

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """Add lines; they survive a kill right after this returns. `read` comes first: what is
        stored under another key is replaced."""
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        if not lines:
            return
        if not self._fits:
            lines = self.header + "\n" + lines
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a" if self._fits else "w", encoding="utf-8") as file:
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())
        self._fits = True


class CellStore:
    """Answers of all cells of one comparison, on disk; `key` names what they depend on."""

    def __init__(self, folder: Path, *, key: dict[str, Any]) -> None:
        self.folder = folder
        self.key = key
        self._files: dict[Cell, KeyedLines] = {}
        self._found: dict[Cell, dict[str, Prediction]] = {}

    def answers(self, cell: Cell) -> dict[str, Prediction]:
        """Stored answers of a cell by sample id (empty when there are none that fit the key)."""
        if cell not in self._found:
            key = {**self.key, "arm": cell.arm, "keep": cell.keep}
            self._files[cell] = KeyedLines(self.folder / f"{cell.name}.jsonl", key=key)
            rows = [Prediction.from_json(row) for row in self._files[cell].read()]
            self._found[cell] = {row.id: row for row in rows}
        return self._found[cell]

    def append(self, cell: Cell, predictions: Sequence[Prediction]) -> None:
        """Add answers to a cell; they survive a kill right after this returns."""
        known = self.answers(cell)
        self._files[cell].append(asdict(one) for one in predictions)
        known.update({one.id: one for one in predictions})

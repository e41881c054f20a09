"""Monitor: every run and every launch in one table, the living ones first.

The board flows in, rows flow out; nothing is asked over a network. `enter` opens a run, the other
keys act on the row under the cursor, each after a question that names it and what it costs. Left
out: one run in full (`run.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType

from saccade.tui import words
from saccade.tui.acts import Acting
from saccade.tui.widgets.grid import Column, Grid

COLUMNS = (
    Column("run", "run", 16, grow=2), Column("state", "state", 14, grow=1),
    Column("step", "step", 10), Column("curve", "loss", 10, rank=2, grow=1),
    Column("loss", "", 7, rank=5, right=True), Column("seen", "seen", 6, rank=1, right=True),
    Column("eta", "left", 7, rank=3, right=True), Column("rate", "speed", 9, rank=7, right=True),
    Column("attempt", "attempt", 8, rank=4), Column("cost", "cost > expected", 15, rank=6),
    Column("watch", "watched", 7, rank=8), Column("saved", "checkpoint", 12, rank=10),
    Column("bar", "", 8, rank=9), Column("where", "where", 18, rank=11, grow=2),
    Column("why", "why", 20, rank=12, grow=4),
)  # fmt: skip


class Monitor(Acting):
    """Runs and jobs."""

    NAME = "monitor"
    SOURCES = ("board",)
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "open", "detail", tooltip="everything about this run"),
        Binding("l", "open('log')", "logs", tooltip="what it wrote"),
        Binding("c", "cancel", "cancel", tooltip="stop it; the training saves itself"),
        Binding("r", "resubmit", "resubmit", tooltip="continue it from its checkpoint"),
        Binding("w", "watch", "watch", tooltip="let somebody watch over it"),
        Binding("h", "home", "bring home", show=False, tooltip="fetch the run from its store"),
        Binding("o", "browse", "open", tooltip="its report or its console in a browser"),
        Binding("z", "faults", "faults", show=False, tooltip="show only what needs a person"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.faults = False

    def body(self) -> ComposeResult:
        """One table."""
        yield Grid(COLUMNS, empty="no runs and no launches here yet: 2 starts one", id="board")

    def draw(self, *, now: float) -> None:
        """Draw the rows that pass the filter."""
        grid = self.query_one(Grid)
        curve = grid.width_of("curve")
        grid.show(
            [
                (row["key"], partial(words.row_cells, row, now=now, curve=curve))
                for row in self.rows()
            ]
        )

    def rows(self) -> list[Mapping[str, Any]]:
        """Rows to show."""
        value = self.entry("board").value or {"rows": []}
        return [
            row for row in value["rows"]
            if (not self.faults or words.STATES.get(row["state"], ("", "warn"))[1] in
                ("bad", "warn") or words.watched_text(row)[0] == "nobody")
            and self.matches(f"{row['run']} {row['state']} {row['where']} {row.get('launch')}")
        ]  # fmt: skip

    def row(self) -> Mapping[str, Any] | None:
        """The row under the cursor."""
        key = self.query_one(Grid).key
        return next((row for row in self.rows() if row["key"] == key), None)

    def hint(self) -> str:
        """Why the row under the cursor is in its state."""
        row = self.row()
        if row is None or not row["reason"]:
            return super().hint()
        return f"{row['run']}: {row['reason'].splitlines()[0]}"

    def on_grid_moved(self, event: Grid.Moved) -> None:
        """Say why at once."""
        self.say_status(now=self.host.now())

    def on_grid_opened(self, event: Grid.Opened) -> None:
        """Open the run."""
        self.host.open_run(event.key)

    def action_open(self, tab: str = "overview") -> None:
        row = self.row()
        if row is not None:
            self.host.open_run(row["key"], tab=tab)

    def action_faults(self) -> None:
        self.faults = not self.faults
        self.host.note("only what needs a person" if self.faults else "all runs")
        self.redraw()

    def copied(self) -> str:
        """The name of the launch or the folder of the run."""
        row = self.row()
        return "" if row is None else str(row.get("launch") or row["path"] or row["run"])

"""Home: everything at a glance, and the next sensible step.

The board, the last checks and the price table flow in; a sentence, a few lines and the runs that
matter flow out. Left out: checks that take long; Setup makes them.
"""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.widgets import Static

from saccade.tui import views, words
from saccade.tui.screens.base import Base
from saccade.tui.widgets.grid import Column, Grid

LEVELS = {"ok": ("\u2714", "good"), "warn": ("!", "warn"), "block": ("\u2718", "bad"),
          "unknown": ("?", "dim")}  # fmt: skip
"""Level of a finding -> symbol and role."""
GLANCE = (
    Column("level", "", 1), Column("what", "what", 11), Column("found", "found", 30, grow=3),
    Column("fix", "to do", 18, rank=1, grow=1),
)  # fmt: skip
RUNS = (
    Column("run", "run", 18, grow=1), Column("state", "state", 14), Column("step", "step", 10),
    Column("curve", "loss", 12, rank=2), Column("loss", "", 7, rank=4, right=True),
    Column("eta", "left", 8, rank=3, right=True), Column("cost", "cost", 14, rank=5),
    Column("seen", "seen", 6, rank=1, right=True),
)  # fmt: skip


class Home(Base):
    """The first screen."""

    NAME = "home"
    SOURCES = ("board", "cloud", "doctor", "prices")
    POLLS = ("board", "cloud", "prices")  # the doctor loads torch: Setup asks for it
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("n", "next", "next step", tooltip="go where the next step is"),
    ]

    def body(self) -> ComposeResult:
        """The next step, the glance, the runs."""
        yield Static("", id="next")
        yield Grid(GLANCE, id="glance")
        yield Static("runs", classes="title")
        yield Grid(RUNS, empty="no runs yet: 2 trains something", id="runs")

    def on_mount(self) -> None:
        """Begin at the runs."""
        super().on_mount()
        self.query_one("#runs", Grid).focus()

    def draw(self, *, now: float) -> None:
        """Draw everything; it is little."""
        values = self.values(now=now)
        step = values["next"]
        key = f"  (press {step['key']})" if step["key"] else ""
        self.query_one("#next", Static).update(
            Content.assemble(("next: ", "bold $primary"), step["text"], (key, "$text-muted"))
        )
        self.query_one("#glance", Grid).show(
            [
                (
                    one["what"],
                    {
                        "level": LEVELS[one["level"]], "what": (one["what"], "plain"),
                        "found": (one["found"], "plain"), "fix": (one["fix"], "dim"),
                    },
                )
                for one in values["glance"] if self.matches(str(one))
            ]
        )  # fmt: skip
        grid = self.query_one("#runs", Grid)
        curve = grid.width_of("curve")
        grid.show(
            [
                (row["key"], words.row_cells(row, now=now, curve=curve))
                for row in values["runs"] if self.matches(row["run"] + row["state"])
            ]
        )  # fmt: skip

    def values(self, *, now: float) -> dict:
        """The view model of this screen."""
        get = self.entry
        return views.home(
            get("board").value, get("doctor").value, get("cloud").value, get("prices").value,
            now=now,
        )  # fmt: skip

    def on_grid_opened(self, event: Grid.Opened) -> None:
        """Open a run; from a line of the glance go to its screen."""
        if event.grid.id == "runs":
            self.host.open_run(event.key)
            return
        places = {"runs": "monitor", "cost": "infra", "watching": "monitor", "prices": "launch"}
        self.host.action_go(places.get(event.key, "setup"))

    def action_next(self) -> None:
        step = self.values(now=self.host.now())["next"]
        for binding in self.host.number_keys():
            if step["key"] == binding[0]:
                self.host.action_go(binding[1])

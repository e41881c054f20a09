"""Pipelines: the stages of one as a graph with states, and what to do with it.

Names flow in; the rows of `saccade pipeline show`, read by that verb in a process of its own, flow
out for the one under the cursor, again while it is shown. Left out: running, which is a verb too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.content import Content
from textual.widgets import Static

from saccade.launch.messages import money
from saccade.training.progress import duration
from saccade.tui.screens.base import Base
from saccade.tui.widgets.grid import Column, Grid, Row

NAMES = (Column("name", "pipeline", 16, grow=1),)
STAGES = (
    Column("stage", "stage", 18, grow=2), Column("state", "state", 14),
    Column("uses", "uses", 12, rank=3), Column("time", "time", 7, rank=1, right=True),
    Column("cost", "cost", 8, rank=4, right=True), Column("target", "on", 8, rank=5),
    Column("metrics", "metrics", 24, rank=2, grow=2), Column("made", "made", 16, rank=6, grow=1),
)  # fmt: skip
STATES: Mapping[str, tuple[str, str]] = {
    "finished": ("\u2714", "good"), "running": ("\u25cf", "busy"), "failed": ("\u2718", "bad"),
    "gate closed": ("\u2718", "bad"), "damaged": ("\u203c", "bad"),
    "interrupted": ("\u25cc", "warn"), "changed": ("\u21bb", "warn"), "waits": ("\u2026", "dim"),
    "to do": ("\u25cb", "plain"),
}  # fmt: skip
AGAIN_S = 15.0


class Pipelines(Base):
    """A list, and the graph of one."""

    NAME = "pipelines"
    SOURCES = ("pipelines", "pipeline")
    POLLS = ("pipelines",)
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("x", "run", "run", tooltip="run or continue it; finished stages are skipped"),
        Binding("u", "again", "ask again", tooltip="read its states now"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._asked: tuple[str, float] = ("", 0.0)

    def body(self) -> ComposeResult:
        """The list beside the graph."""
        with Horizontal(classes="panes"):
            yield Grid(NAMES, empty="reading ...", id="names")
            yield Grid(STAGES, empty="reading its states, some seconds ...", id="stages")
        yield Static(id="whole", classes="detail")

    def on_mount(self) -> None:
        """A narrow list."""
        super().on_mount()
        self.query_one("#names").styles.width = "26%"

    def draw(self, *, now: float) -> None:
        """Draw the list and, of the one under the cursor, the graph."""
        names = [name for name in self.entry("pipelines").value or () if self.matches(name)]
        grid = self.query_one("#names", Grid)
        grid.show([(name, {"name": (name, "plain")}) for name in names])
        self._ask(now=now)
        known = self.entry("pipeline").value
        mine = known if known is not None and known["file"] == grid.key else None
        self.query_one("#stages", Grid).show(stage_rows(mine["stages"]) if mine else [])
        self._explain()

    def _ask(self, *, now: float) -> None:
        """Read the states of the one under the cursor, now and then."""
        name, known = self.query_one("#names", Grid).key, self.entry("pipeline")
        if name is None or not self.is_current:
            return
        due = self._asked[0] != name or (now - self._asked[1] > AGAIN_S and not known.busy)
        if due:
            self._asked = (name, now)
            read = self.host.sources
            self.host.work.start("pipeline", lambda: read.pipeline(name))

    def _explain(self) -> None:
        known = self.entry("pipeline").value
        if known is None:
            return
        key = self.query_one("#stages", Grid).key
        stage = next((one for one in known["stages"] if one["stage"] == key), None)
        text = known["problem"]
        if stage is not None:
            inputs = ", ".join(f"{name} = {one}" for name, one in stage["inputs"].items())
            text = f"{stage['stage']}: {stage['state']}; needs {', '.join(stage['needs']) or '-'}"
            text += f"; {inputs}" if inputs else ""
            text += f"\n{stage['folder'] or stage['where']}"
            text += f"\n{stage['problem']}" if stage["problem"] else ""
        age = self.host.age(self.entry("pipeline").at, now=self.host.now())
        self.query_one("#whole", Static).update(Content(f"{text}   (read {age} ago)"))

    def on_grid_moved(self, event: Grid.Moved) -> None:
        """Another pipeline, or another stage."""
        self.redraw() if event.grid.id == "names" else self._explain()

    def on_grid_opened(self, event: Grid.Opened) -> None:
        """Go into the graph."""
        if event.grid.id == "names":
            self.query_one("#stages").focus()

    def action_again(self) -> None:
        self._asked = ("", 0.0)
        self.redraw()

    def action_run(self) -> None:
        name = self.query_one("#names", Grid).key
        known: Mapping[str, Any] | None = self.entry("pipeline").value
        if name is None or known is None or known["file"] != name:
            return
        if known["problem"]:
            self.host.note(known["problem"], error=True)
            return
        left = [one["stage"] for one in known["stages"] if one["state"] != "finished"]
        self.ask(
            f"Run {name}?",
            f"{len(left)} of {len(known['stages'])} stages are to do: {', '.join(left)}.\n"
            "It runs in the background; finished stages are skipped.",
            then=lambda: self.host.start(["pipeline", "run", name], title=f"pipeline {name}"),
        )


def stage_rows(stages: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Stages in running order, each below the last that it needs."""
    depths: dict[str, int] = {}
    rows: list[Row] = []
    for stage in stages:
        depth = max((depths.get(name, 0) + 1 for name in stage["needs"]), default=0)
        depths[stage["stage"]] = depth
        symbol, role = STATES.get(stage["state"], ("?", "warn"))
        mark = "  " * (depth - 1) + "\u2514 " if depth else ""
        metrics = ", ".join(
            f"{key} {value:.4g}" for key, value in list(stage["metrics"].items())[:4]
        )
        cost = stage["cost_usd"]
        rows.append(
            (
                stage["stage"],
                {
                    "stage": (mark + stage["stage"], "strong"),
                    "state": (f"{symbol} {stage['state']}", role), "uses": (stage["uses"], "dim"),
                    "time": (duration(stage["seconds"]) if stage["seconds"] else "", "plain"),
                    "cost": ("" if cost is None else money(cost), "plain"),
                    "target": (stage["target"], "dim"), "metrics": (metrics, "plain"),
                    "made": (" ".join(stage["outputs"].values()), "dim"),
                },
            )
        )  # fmt: skip
    return rows

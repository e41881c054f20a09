"""Results: what every run has to show, its comparison and figures, and its report in a browser.

Rows made from DONE, `evaluation.json` and `comparison.json` flow in; tables and pictures flow out.
`b` writes the report and `v` compares, each as the verb in a process of its own. Left out: making
numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.widgets import Static, TabbedContent, TabPane

from saccade.tui import words
from saccade.tui.screens.base import Base
from saccade.tui.widgets.grid import Column, Grid, Row
from saccade.tui.widgets.pictures import Pictures

RUNS = (
    Column("run", "run", 18, grow=2), Column("accuracy", "accuracy", 9, right=True),
    Column("loss", "loss", 8, rank=1, right=True), Column("arms", "compared", 9, rank=3),
    Column("figures", "figures", 7, rank=4, right=True), Column("report", "report", 7, rank=2),
    Column("when", "ago", 6, rank=1, right=True), Column("why", "", 16, rank=5, grow=2),
)  # fmt: skip
COMPARED = (
    Column("budget", "kept", 6), Column("selector", "selector", 24, grow=2),
    Column("accuracy", "accuracy", 12, right=True),
    Column("by", "trained is better by", 22, rank=1, right=True),
    Column("tokens", "tokens", 7, rank=2, right=True),
    Column("flops", "x FLOPs", 8, rank=3, right=True), Column("ms", "ms", 7, rank=4, right=True),
)  # fmt: skip
LOOKS = (
    Column("who", "who looks again", 30, grow=2), Column("accuracy", "in box %", 9, right=True),
    Column("zooms", "looks again %", 13, right=True), Column("pixels", "kpixels", 8, right=True),
    Column("by", "learned is better by", 22, rank=1, right=True),
)  # fmt: skip
TABS = ("comparison", "metrics", "figures")


class Results(Base):
    """Runs above, what the chosen one has to show below."""

    NAME = "results"
    SOURCES = ("results", "figures", "picture")
    POLLS = ("results",)
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "open", "detail", show=False, tooltip="everything about this run"),
        Binding("o", "browse", "open", tooltip="the report, or the figure, in a browser"),
        Binding("b", "report", "report", tooltip="write report.html"),
        Binding("v", "compare", "compare", tooltip="measure it against every baseline"),
        Binding("right_square_bracket", "turn(1)", "tab", key_display="]", tooltip="the next tab"),
        Binding("left_square_bracket", "turn(-1)", "tab", key_display="[", show=False,
                tooltip="the tab before"),
    ]  # fmt: skip

    def body(self) -> ComposeResult:
        """A table and three tabs."""
        yield Grid(RUNS, empty="nothing has a result yet: 2 trains something", id="runs")
        with TabbedContent(classes="third"):
            with TabPane("comparison", id="comparison"):
                yield Grid(COMPARED, empty="not compared yet: v measures it", id="table")
                yield Grid(LOOKS, empty="", id="looks")
            with TabPane("metrics", id="metrics"), VerticalScroll():
                yield Static(id="numbers")
            with TabPane("figures", id="figures"):
                yield Pictures(id="pictures")

    def draw(self, *, now: float) -> None:
        """Draw the table and the tab that is shown."""
        rows = [row for row in self.entry("results").value or () if self.matches(row["run"])]
        self.query_one("#runs", Grid).show([(row["key"], _cells(row, now=now)) for row in rows])
        self._draw_tab()

    def row(self) -> Mapping[str, Any] | None:
        """The run under the cursor."""
        key = self.query_one("#runs", Grid).key
        rows = self.entry("results").value or ()
        return next((row for row in rows if row["key"] == key), None)

    def _draw_tab(self) -> None:
        row, tab = self.row(), self.query_one(TabbedContent).active
        if row is None:
            return
        if tab == "comparison":
            looks = (row["comparison"] or {}).get("recipe") == "grounding"
            for name, shown in (("#looks", looks), ("#table", not looks)):
                grid = self.query_one(name, Grid)
                grid.display = shown
                grid.show(_compared(row) if shown else [])
        elif tab == "metrics":
            lines = [f"{name:<32} {value:.4g}" for name, value in row["metrics"].items()]
            self.query_one("#numbers", Static).update(Content("\n".join(lines) or "no metrics"))
        else:
            self.query_one(Pictures).show(Path(row["path"]))

    def on_grid_moved(self, event: Grid.Moved) -> None:
        """Another run."""
        if event.grid.id == "runs":
            self._draw_tab()

    def on_tabbed_content_tab_activated(self) -> None:
        """Fill the tab at once."""
        self.redraw()

    def on_grid_opened(self, event: Grid.Opened) -> None:
        """Open the run."""
        if event.grid.id == "runs":
            self.action_open()

    def action_open(self) -> None:
        row = self.row()
        if row is not None:
            self.host.open_run(f"run:{row['run']}")

    def action_turn(self, by: int) -> None:
        tabs = self.query_one(TabbedContent)
        here = TABS.index(tabs.active)
        tabs.active = TABS[(here + by) % len(TABS)]

    def action_browse(self) -> None:
        row, tabs = self.row(), self.query_one(TabbedContent)
        if row is None:
            return
        file = self.query_one(Pictures).file if tabs.active == "figures" else None
        target = file or (Path(row["report"]) if row["report"] else None)
        if target is None:
            self.host.note(f"{row['run']}: no report yet; b writes it")
            return
        self.host.open_address(target.absolute().as_uri())

    def action_report(self) -> None:
        self._start("report", "Write the report of", "It looks at some samples: about a minute.")

    def action_compare(self) -> None:
        self._start("compare", "Compare", "Every selector at every budget: some minutes.")

    def _start(self, verb: str, question: str, body: str) -> None:
        row = self.row()
        if row is None:
            return
        self.ask(
            f"{question} {row['run']}?", body,
            then=lambda: self.host.start([verb, row["path"]], title=f"{verb} {row['run']}"),
        )  # fmt: skip

    def copied(self) -> str:
        """The report, or the folder."""
        row = self.row()
        return "" if row is None else str(row["report"] or row["path"])


def _compared(row: Mapping[str, Any]) -> list[Row]:
    """The comparison as `saccade compare` writes it."""
    found = row["comparison"]
    if found is None:
        return []
    try:
        return _looks(found) if found.get("recipe") == "grounding" else _selectors(found)
    except (KeyError, TypeError, ValueError) as error:
        said = f"of another version or damaged: {error!r}"
        return [("problem", {"selector": (said, "bad"), "who": (said, "bad")})]


def _selectors(found: Mapping[str, Any]) -> list[Row]:
    from saccade.evaluation.table import accuracy_text, difference_text, sorted_rows

    rows: list[Row] = []
    for one in sorted_rows(found):
        role = {"trained": "strong", "full": "dim"}.get(one["arm"], "plain")
        cells = {
            "budget": (one["budget_label"], "dim"), "selector": (one["title"], role),
            "accuracy": (accuracy_text(one), role), "by": (str(difference_text(one)), "plain"),
            "tokens": (f"{one['visual_tokens_kept']:.0f}", "plain"),
            "flops": (f"{one['flops_speedup']:.2f}", "dim"),
            "ms": (f"{(one['milliseconds'] or {}).get('total_ms', 0.0):.1f}", "dim"),
        }  # fmt: skip
        rows.append((f"{one['budget_label']} {one['arm']}", cells))
    return rows


def _looks(found: Mapping[str, Any]) -> list[Row]:
    from saccade.evaluation.grounding_table import percent, points

    rows: list[Row] = []
    for one in found["rows"]:
        learned = one["arm"] == "learned"
        role = "strong" if learned else "plain"
        cells = {
            "who": (one["title"], role), "accuracy": (percent(one["accuracy"]), role),
            "zooms": (percent(one["zoom_rate"]), role),
            "pixels": (f"{one['pixels'] / 1000:.1f}", role),
            "by": ("" if learned else points(one["difference"]), "plain"),
        }  # fmt: skip
        rows.append((one["title"], cells))
    return rows


def _cells(row: Mapping[str, Any], *, now: float) -> dict[str, tuple[str, str]]:
    accuracy, loss = row["accuracy"], row["metrics"].get("loss")
    compared = row["comparison"]
    arms = len({one.get("arm") for one in compared.get("rows", ())}) if compared else 0
    return {
        "run": (row["run"], "strong"),
        "accuracy": (f"{accuracy:.1%}" if isinstance(accuracy, float) else "", "plain"),
        "loss": ("" if loss is None else f"{loss:.3g}", "plain"),
        "arms": (f"{arms} arms" if arms else "", "dim"),
        "figures": (str(len(row["figures"]) or ""), "dim"),
        "report": ("yes" if row["report"] else "", "good"),
        "when": (words.age_of(row["time"], now=now), "dim"),
        "why": (row["problem"], "bad"),
    }  # fmt: skip

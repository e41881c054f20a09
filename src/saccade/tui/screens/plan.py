"""Before a launch: its plan, the prices of a machine, and whether it fits into memory.

The words of the form flow in; tables flow out, each made in a thread by the functions of the
command line; after a yes, the verb `launch` runs in a process of its own, which stays to watch.
Left out: the form (`launch.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.widgets import Static

from saccade.tui import launching
from saccade.tui.screens.base import Base
from saccade.tui.screens.home import LEVELS
from saccade.tui.views import WORST_FIRST
from saccade.tui.widgets.grid import Column, Grid, Row

PLAN = (Column("what", "what", 10), Column("value", "value", 40, grow=1))
MEMORY = (Column("what", "what", 36), Column("value", "value", 20, grow=1))
PLACES = (
    Column("0", "", 3), Column("1", "region", 16, grow=1), Column("2", "machine", 16, rank=2),
    Column("3", "rented", 11, rank=1), Column("4", "per hour", 9, right=True),
    Column("5", "quota", 8, rank=3, right=True), Column("6", "why", 16, rank=1, grow=3),
)  # fmt: skip
FOUND = (
    Column("level", "", 1), Column("name", "check", 14, grow=1),
    Column("message", "found", 30, grow=3), Column("fix", "to do", 16, rank=1, grow=2),
)  # fmt: skip
PRICES = (
    Column("strategy", "rented", 11), Column("region", "region", 18),
    Column("usd", "USD/h", 8, right=True), Column("total", "estimate", 10, rank=1, right=True),
    Column("age", "age", 6, rank=3, right=True), Column("why", "standing", 20, rank=2, grow=1),
)  # fmt: skip


class PlanScreen(Base):
    """Job, places, price and findings."""

    NAME = "launch: plan"
    SOURCES = ("plan",)
    POLLS = ()
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("x", "launch", "launch", tooltip="launch it, after a question"),
    ]

    def __init__(self, words: Sequence[str]) -> None:
        super().__init__()
        self.words = list(words)

    def body(self) -> ComposeResult:
        """Three tables."""
        yield Grid(FOUND, empty="planning ...", id="found")
        yield Grid(PLAN, id="plan")
        yield Grid(PLACES, empty="no places to choose from: it runs here", id="places")

    def on_mount(self) -> None:
        """Plan, in a thread."""
        super().on_mount()
        self.action_reread()

    def action_reread(self) -> None:
        words = self.words
        self.host.store.put("plan", None)
        self.host.work.start("plan", lambda: launching.plan_values(words))

    def draw(self, *, now: float) -> None:
        """Draw what is planned."""
        values: Mapping[str, Any] | None = self.entry("plan").value
        if values is None:
            return
        self.query_one("#plan", Grid).show(
            [(what, {"what": (what, "strong"), "value": (text, "plain")})
             for what, text in values["rows"]]
        )  # fmt: skip
        self.query_one("#places", Grid).show(
            [
                (f"{row[1]} {row[2]} {row[3]}",
                 {str(number): (text, "plain" if row[0] != "-" else "dim")
                  for number, text in enumerate(row)})
                for row in values["ranking"]
            ]
        )  # fmt: skip
        self.query_one("#found", Grid).show(finding_rows(values["findings"]))

    def hint(self) -> str:
        """What follows."""
        values = self.entry("plan").value
        if values is None:
            return "planning ..."
        if values["blocked"]:
            return f"blocked by {', '.join(values['blocked'])}   f5 plans again   q back"
        return f"x: {values['question']}   q back"

    def action_launch(self) -> None:
        values = self.entry("plan").value
        if values is None:
            self.host.note("still planning")
            return
        if values["blocked"]:
            self.host.note(f"blocked by {', '.join(values['blocked'])}", error=True)
            return
        if values["standing"] == "done":
            self.host.note(f"{values['launch']}: is done already")
            return
        rows = dict(values["rows"])
        body = "\n".join(
            f"{name}: {rows.get(name, '')}" for name in ("price", "estimate", "limits")
        )
        self.ask(values["question"], body, then=self._launch)

    def _launch(self) -> None:
        name = self.entry("plan").value["json"]["run"]
        self.host.start(["launch", *self.words, "--yes"], title=f"launch {name}")
        self.app.pop_screen()
        self.host.action_go("monitor")


class PricesScreen(Base):
    """What one machine costs, everywhere and in every way."""

    NAME = "launch: prices"
    SOURCES = ("machine prices",)
    POLLS = ()

    def __init__(self, machine: str, hours: float | None) -> None:
        super().__init__()
        self.machine, self.hours = machine, hours

    def body(self) -> ComposeResult:
        """One table and where its numbers are from."""
        yield Static(id="source", classes="title")
        yield Grid(PRICES, empty="reading prices ...", id="prices")

    def on_mount(self) -> None:
        """Read them, in a thread."""
        super().on_mount()
        read, machine, hours = self.host.sources, self.machine, self.hours
        self.host.store.put("machine prices", None)
        self.host.work.start("machine prices", lambda: read.prices(machine, hours))

    def draw(self, *, now: float) -> None:
        """Draw the places, cheapest first."""
        values = self.entry("machine prices").value
        if values is None:
            return
        self.query_one("#source", Static).update(
            Content(f"{self.machine}: {values['source']} of {values['fetched_at']},"
                    f" {values['age_days']} days old")
        )  # fmt: skip
        self.query_one(Grid).show(
            [
                (f"{one['strategy']} {one['region']}", _price_cells(one))
                for one in values["candidates"]
                if self.matches(f"{one['region']} {one['strategy']}")
            ]
        )  # fmt: skip


class MemoryScreen(Base):
    """Tokens, memory and the largest batch of a training."""

    NAME = "launch: memory"
    SOURCES = ("memory",)
    POLLS = ()

    def __init__(self, words: Sequence[str]) -> None:
        super().__init__()
        self.words = list(words)

    def body(self) -> ComposeResult:
        """Two columns."""
        yield Grid(MEMORY, empty="asking `saccade train --plan`, some seconds ...", id="memory")

    def on_mount(self) -> None:
        """Ask, in a process of its own."""
        super().on_mount()
        words = self.words
        self.host.store.put("memory", None)
        self.host.work.start("memory", lambda: launching.memory_values(words))

    def draw(self, *, now: float) -> None:
        """Draw the numbers."""
        values = self.entry("memory").value
        if values is not None:
            rows: list[Row] = [
                (name, {"what": (name, "strong"), "value": (text, "plain")})
                for name, text in spread(values)
            ]
            self.query_one(Grid).show(rows)


def finding_rows(found: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Findings as rows, what blocks first."""
    rows = sorted(enumerate(found), key=lambda one: WORST_FIRST.index(str(one[1]["level"])))
    return [
        (
            f"{number} {one['name']}",
            {
                "level": LEVELS[str(one["level"])], "name": (one["name"], "plain"),
                "message": (one["message"], "plain"), "fix": (one["fix"] or "", "accent"),
                "where": (one.get("where", ""), "dim"),
            },
        )
        for number, one in rows
    ]  # fmt: skip


def spread(values: Mapping[str, Any], *, before: str = "") -> list[tuple[str, str]]:
    """Nested values as lines of name and text."""
    lines: list[tuple[str, str]] = []
    for name, value in values.items():
        title = f"{before}{name}".replace("_", " ")
        if isinstance(value, Mapping):
            lines += spread(value, before=f"{title} ")
        else:
            lines.append((title, f"{value:,.4g}" if isinstance(value, float) else str(value)))
    return lines


def _price_cells(one: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    price, total = one["price"], one["estimate"]
    role = "plain" if one["usable"] else "dim"
    usd = one["usd_per_hour"]
    guess = "~" if price and price["confidence"] == "inferred" else ""
    return {
        "strategy": (one["strategy"], role), "region": (one["region"], role),
        "usd": ("-" if usd is None else f"{guess}{usd:.3f}", role),
        "total": ("" if total is None else f"{total['expected']['total']:.2f}", role),
        "age": ("" if price is None else f"{price['age_days']}d", "dim"),
        "why": (one["reason"] + (f"; {one['fix']}" if one["fix"] else ""), "dim"),
    }  # fmt: skip

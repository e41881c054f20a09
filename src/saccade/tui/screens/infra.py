"""Infra: every resource of the project with its state, quotas, and what it all costs.

The findings of `cloud status`, a scan for everything that carries saccade's labels, and the board's
sums flow in; tables with the age of each reading flow out. Left out: changing any of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.widgets import Static

from saccade.launch.messages import money
from saccade.tui import views
from saccade.tui.screens.base import Base
from saccade.tui.screens.plan import FOUND, finding_rows
from saccade.tui.widgets.grid import Column, Grid, Row

LEFT = (
    Column("id", "what", 30, grow=2), Column("size", "size", 20, grow=1),
    Column("cost", "per month", 10, right=True),
)  # fmt: skip
COSTS = (
    Column("run", "launch", 20, grow=1), Column("where", "where", 24, rank=1, grow=1),
    Column("held", "held", 9, rank=2, right=True), Column("price", "per hour", 9, right=True),
    Column("usd", "so far", 9, right=True),
)  # fmt: skip


class Infra(Base):
    """Resources, quotas, costs."""

    NAME = "infra"
    SOURCES = ("cloud", "costs", "board")
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("u", "reread", "ask again", tooltip="ask the cloud now"),
    ]

    def body(self) -> ComposeResult:
        """Three tables, each under a line with its age."""
        yield Static(id="asked", classes="title")
        yield Grid(FOUND, empty="no project is configured (3 sets one up)", id="resources")
        yield Static(id="scanned", classes="title")
        yield Grid(LEFT, empty="nothing of saccade's was found", id="left")
        yield Static(id="spent", classes="title")
        yield Grid(COSTS, empty="nothing was rented", id="costs")

    def draw(self, *, now: float) -> None:
        """Draw all three."""
        cloud, costs, board = self.entry("cloud"), self.entry("costs"), self.entry("board")
        found = [one for one in (cloud.value or {}).get("findings", ()) if self.matches(str(one))]
        self.query_one("#resources", Grid).show(finding_rows(found))
        project = (cloud.value or {}).get("project") or "no project"
        self._title("#asked", f"resources and quotas of {project}", cloud.at, now=now)
        if costs.value is not None:
            rows = left_rows(costs.value["leftovers"], costs.value["unreadable"])
            self.query_one("#left", Grid).show(rows)
            month = sum(one["usd_per_month"] or 0.0 for one in costs.value["leftovers"])
            self._title("#scanned", f"what is there: {money(month)} a month", costs.at, now=now)
        else:
            self._title("#scanned", "what is there", None, now=now)
        paid = [row for row in (board.value or {"rows": ()})["rows"] if row.get("attempts")]
        self.query_one("#costs", Grid).show([(row["key"], _cost_cells(row)) for row in paid])
        sums = views.totals(paid)
        said = f"launches: {money(sums['usd'])}, {money(sums['usd_per_hour'])}/h now"
        self._title("#spent", said, board.at, now=now)

    def _title(self, name: str, text: str, at: float | None, *, now: float) -> None:
        age = f"  ({self.host.age(at, now=now)} ago)" if at else "  (not asked yet)"
        self.query_one(name, Static).update(Content(text + age))

    def on_grid_opened(self, event: Grid.Opened) -> None:
        """Open the launch."""
        if event.grid.id == "costs":
            self.host.open_run(event.key)


def left_rows(
    left: Sequence[Mapping[str, Any]], unseen: Sequence[Mapping[str, Any]]
) -> list[Row]:  # fmt: skip
    """What is left, and what could not be looked at."""
    rows: list[Row] = [
        (
            one["name"],
            {"id": (f"cannot look: {one['name']}", "bad"), "size": (one["message"], "bad")},
        )
        for one in unseen
    ]
    for one in left:
        month = one["usd_per_month"]
        rows.append(
            (
                one["id"],
                {
                    "id": (one["id"], "plain"), "size": (one["message"], "dim"),
                    "cost": ("?" if month is None else money(month), "plain"),
                },
            )
        )  # fmt: skip
    return rows


def _cost_cells(row: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    held = sum(one["held_s"] or 0.0 for one in row["attempts"])
    price = row["usd_per_hour"]
    return {
        "run": (str(row["launch"]), "plain"), "where": (str(row["where"]), "dim"),
        "held": (f"{held:.0f} s", "plain"),
        "price": ("" if price is None else money(price), "dim"),
        "usd": (money(row["usd"]), "plain"),
    }  # fmt: skip

"""One run in full: facts and loss curve, live log of each attempt, events, money, figures.

The board's row, the run's own event log and the job's log flow in, read by two threads that end
with this screen; lines flow out in batches. `p` goes to the attempt before. What a launch wrote
elsewhere is asked for only while its tab is shown. Left out: judging the run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from pathlib import Path
from textwrap import wrap
from typing import Any, ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.content import Content
from textual.widgets import Log, Static, TabbedContent, TabPane

from saccade.launch.log import FOLDER
from saccade.launch.messages import money
from saccade.tui import words
from saccade.tui.acts import Acting
from saccade.tui.curve import plot
from saccade.tui.logs import LogReader, event_line
from saccade.tui.poll import Poller
from saccade.tui.runs import RunReader
from saccade.tui.tail import Tail
from saccade.tui.widgets.grid import Column, Grid, Row
from saccade.tui.widgets.pictures import Pictures

TABS = ("overview", "log", "events", "attempts", "figures")
FACT_NAME = 11
"""Cells of a fact's name."""
LINES_KEPT = 5000
LINES_PER_TICK = 500
WAITING_LINES = 20_000
ATTEMPTS = (
    Column("attempt", "attempt", 8), Column("where", "where", 24, grow=1),
    Column("held", "held", 10, right=True), Column("price", "per hour", 10, right=True),
    Column("usd", "cost", 10, right=True),
)  # fmt: skip


class RunScreen(Acting):
    """Detail of one row of the board."""

    NAME = "run"
    SOURCES = ("board", "detail", "log", "figures", "picture")
    POLLS = ("board",)
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("l", "tab('log')", "logs", tooltip="what it wrote"),
        Binding("v", "tab('events')", "events", show=False, tooltip="what happened"),
        Binding("m", "tab('attempts')", "money", show=False, tooltip="attempts and cost"),
        Binding("i", "tab('figures')", "figures", show=False, tooltip="figures of the run"),
        Binding("left_square_bracket", "turn(-1)", "tab", key_display="[", show=False,
                tooltip="the tab before"),
        Binding("right_square_bracket", "turn(1)", "tab", key_display="]", tooltip="the next tab"),
        Binding("p", "attempt(-1)", "previous", tooltip="log of the attempt before"),
        Binding("P", "attempt(1)", "next attempt", show=False, tooltip="log of the next attempt"),
        Binding("c", "cancel", "cancel", tooltip="stop it; the training saves itself"),
        Binding("r", "resubmit", "resubmit", tooltip="continue it from its checkpoint"),
        Binding("w", "watch", "watch", show=False, tooltip="let somebody watch over it"),
        Binding("h", "home", "bring home", show=False, tooltip="fetch the run from its store"),
        Binding("o", "browse", "open", tooltip="its report or its console in a browser"),
    ]  # fmt: skip

    def __init__(self, key: str, *, tab: str = "overview") -> None:
        super().__init__()
        self.key, self.first_tab = key, tab
        self.lines: deque[str] = deque(maxlen=WAITING_LINES)
        self.said: deque[str] = deque(maxlen=WAITING_LINES)
        self.reader: RunReader | None = None
        self.log_reader: LogReader | None = None
        self.launch_tail: Tail | None = None
        self.attempt_shown: int | None = None
        self.regions: dict[int, str] = {}
        self.pollers: list[Poller] = []

    def body(self) -> ComposeResult:
        """Five tabs."""
        with TabbedContent(initial=self.first_tab):
            with TabPane("overview", id="overview"), Horizontal(classes="panes"):
                yield Static(id="facts", classes="side")
                yield Static(id="plot", classes="main")
            with TabPane("log", id="log"):
                yield Log(max_lines=LINES_KEPT, id="lines")
            with TabPane("events", id="events"):
                yield Log(max_lines=LINES_KEPT, id="said")
            with TabPane("attempts", id="attempts"):
                yield Grid(ATTEMPTS, empty="nothing was rented for this run", id="money")
            with TabPane("figures", id="figures"):
                yield Pictures(id="pictures")

    def on_mount(self) -> None:
        """Begin to read."""
        super().on_mount()
        self.host.store.put("log", {"attempt": None})
        self.host.store.put("detail", None)
        self.pollers = [
            Poller("detail", self._read_run, 0.5, asleep=self.host.is_asleep),
            Poller("log", self._read_log, 0.3, wanted=self._log_is_shown,
                   asleep=self.host.is_asleep),
        ]  # fmt: skip
        for poller in self.pollers:
            poller.start(self.host.store)

    def on_unmount(self) -> None:
        """Read no more."""
        for poller in self.pollers:
            poller.stop()

    def row(self) -> Mapping[str, Any] | None:
        """This run's row of the board."""
        rows = (self.entry("board").value or {"rows": []})["rows"]
        return next((row for row in rows if row["key"] == self.key), None)

    def title_text(self) -> str:
        """The name of the run."""
        row = self.row()
        return self.NAME if row is None else f"run {row['run']}"

    def draw(self, *, now: float) -> None:
        """Draw the tab that is shown."""
        row = self.row()
        tab = self.query_one(TabbedContent).active
        if row is None:
            self.query_one("#facts", Static).update(Content("this run is not on the board"))
            return
        if tab == "overview":
            self._draw_facts(row, now=now)
        elif tab == "attempts":
            self.query_one("#money", Grid).show(_attempt_rows(row, self.regions))
        elif tab == "figures":
            self.query_one(Pictures).show(Path(row["path"]) if row["path"] else None)

    def _draw_facts(self, row: Mapping[str, Any], *, now: float) -> None:
        table, room = Text(), max(8, self.query_one("#facts", Static).size.width - FACT_NAME)
        for name, text in words.facts(row, now=now):
            if name == "folder" and len(text) > room:  # its end says more than its beginning
                text = "\u2026" + text[1 - room :]
            table.append(f"{name:<{FACT_NAME}}", style="bold")
            table.append(f"\n{'':<{FACT_NAME}}".join(wrap(text, room)) + "\n")
        for name, value in list(row["metrics"].items())[:12]:
            table.append(f"{name[:22]:<23}", style="bold")
            table.append(f"{value:.4g}\n")
        self.query_one("#facts", Static).update(table)
        box = self.query_one("#plot", Static)
        width, height = box.size.width - 2, box.size.height - 2
        lines = plot(row["curve"], width=width, height=max(3, min(height, 16)))
        head = f"loss, {row['steps'] or '?'} steps" if lines else "no loss yet"
        box.update(Content("\n".join([head, *lines])))

    def tick(self, *, now: float) -> None:
        """Lines come more often than facts."""
        super().tick(now=now)
        if self.is_mounted and self.query(TabbedContent):
            self._pour(self.query_one(TabbedContent).active)

    def _pour(self, tab: str) -> None:
        """Write waiting lines into the pane that is shown, a batch at a time."""
        for name, queue, pane in (("log", self.lines, "#lines"), ("events", self.said, "#said")):
            if tab == name and queue:
                batch = [queue.popleft() for _ in range(min(LINES_PER_TICK, len(queue)))]
                if len(queue) > LINES_KEPT:  # older than what is kept: never to be seen
                    for _ in range(len(queue) - LINES_KEPT):
                        queue.popleft()
                self.query_one(pane, Log).write_lines(batch)

    def _read_run(self) -> dict[str, Any] | None:
        row = self.row()
        if row is None:
            return None
        if row["path"]:
            self.reader = self.reader or RunReader(Path(row["path"]), news=2000)
            self.reader.look(now=self.host.now())
            while self.reader.news:
                self.said.append(event_line(self.reader.news.popleft()))
        if row.get("launch"):
            folder = self.host.sources.root / FOLDER / str(row["launch"])
            self.launch_tail = self.launch_tail or Tail(folder / "events.jsonl")
            for event in self.launch_tail.events():
                self.said.append(event_line(event))
                if event["type"] == "submitted":
                    self.regions[int(event["attempt"])] = str(event["handle"]["region"])
        return {"events": len(self.said)}

    def _log_is_shown(self) -> bool:
        return self.is_mounted and self.query_one(TabbedContent).active == "log"

    def _read_log(self) -> dict[str, Any]:
        row = self.row()
        if row is None:
            return {"attempt": None}
        if not row.get("launch"):
            if self.attempt_shown is None:
                self.attempt_shown = 0
                self.lines.append("started in a terminal: what it wrote is there; ] shows events")
            return {"attempt": None}
        folder = self.host.sources.root / FOLDER / str(row["launch"])
        self.log_reader = self.log_reader or LogReader(folder)
        attempt, lines = self.log_reader.read()
        if attempt != self.attempt_shown and attempt is not None:
            self.attempt_shown = attempt
            total = len(self.log_reader.attempts)
            self.lines.append(f"--- attempt {attempt} of {total} ---")
        self.lines.extend(lines)
        return {"attempt": attempt, "attempts": self.log_reader.attempts}

    def hint(self) -> str:
        """Which attempt is read."""
        known = self.entry("log").value or {}
        if known.get("attempt"):
            return f"attempt {known['attempt']} of {len(known.get('attempts', []))}   p previous"
        return "] next tab   l log   p previous attempt   q back"

    def action_tab(self, name: str) -> None:
        self.query_one(TabbedContent).active = name
        for poller in self.pollers:
            poller.kick.set()

    def action_turn(self, by: int) -> None:
        here = TABS.index(self.query_one(TabbedContent).active)
        self.action_tab(TABS[(here + by) % len(TABS)])

    def action_attempt(self, by: int) -> None:
        if self.log_reader is None:
            self.action_tab("log")
            return
        if self.log_reader.step(by) is None:
            self.host.note("no attempt before this one" if by < 0 else "this is the newest attempt")
            return
        self.lines.clear()
        self.query_one("#lines", Log).clear()
        self.action_tab("log")

    def on_tabbed_content_tab_activated(self) -> None:
        """Fill the tab at once."""
        self.redraw()

    def copied(self) -> str:
        """The folder of the run, or the launch."""
        row = self.row()
        return "" if row is None else str(row["path"] or row.get("launch"))


def _attempt_rows(row: Mapping[str, Any], regions: Mapping[int, str]) -> list[Row]:
    rows: list[Row] = []
    for one in row.get("attempts") or ():
        price = one["usd_per_hour"]
        cells = {
            "attempt": (str(one["attempt"]), "strong"),
            "where": (regions.get(one["attempt"], "?"), "plain"),
            "held": (f"{one['held_s']:.0f} s", "plain"),
            "price": ("?" if price is None else money(price), "plain"),
            "usd": (money(one["usd"]), "plain"),
        }
        rows.append((str(one["attempt"]), cells))
    return rows

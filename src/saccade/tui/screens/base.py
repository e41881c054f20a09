"""What all screens share: the lines around them, ticking, the filter, and asking before acting.

The app's store flows in on each tick; a screen draws only what changed. Left out: what a screen
shows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import Screen
from textual.widgets import Footer, Input

from saccade.tui.store import Entry
from saccade.tui.widgets.bars import Status, Top
from saccade.tui.widgets.grid import Grid

if TYPE_CHECKING:
    from saccade.tui.app import SaccadeApp


NOTE_S = 30.0
"""How long a note stands in the status line."""


class Base(Screen[None]):
    """A screen between the top line and the footer."""

    NAME: ClassVar[str] = ""
    SOURCES: ClassVar[tuple[str, ...]] = ()
    """Sources that are read while this screen is shown."""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("slash", "filter", "filter", key_display="/", tooltip="show only matching rows"),
        Binding("escape", "unfilter", "clear", show=False, tooltip="clear the filter"),
        Binding("f5", "reread", "refresh", show=False, tooltip="read everything on this screen"),
        Binding("y", "copy", "copy", show=False, tooltip="copy what the cursor is on"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._versions: dict[str, int] = {}
        self._drawn_at = 0.0
        self.needle = ""

    @property
    def host(self) -> SaccadeApp:
        """The app, by its own type."""
        from saccade.tui.app import SaccadeApp

        assert isinstance(self.app, SaccadeApp)
        return self.app

    def compose(self) -> ComposeResult:
        """Put the body between the lines that every screen has."""
        yield Top()
        yield from self.body()
        yield Input(placeholder="filter: words, all must be there", id="filter", compact=True)
        yield Status()
        yield Footer(compact=True, show_command_palette=False)

    def body(self) -> ComposeResult:
        """The widgets of this screen."""
        raise NotImplementedError

    def draw(self, *, now: float) -> None:
        """Draw what the store holds."""

    def on_mount(self) -> None:
        """Take the colours of the theme."""
        self.restyle()

    def on_screen_resume(self) -> None:
        """Draw at once what is known, and ask for more."""
        self._drawn_at = 0.0
        self.host.wake(self.SOURCES)
        self.tick(now=self.host.now())

    def tick(self, *, now: float) -> None:
        """Draw when a source changed, and once a second because ages grow."""
        if not self.is_mounted or not self.query(Status):
            return
        versions = {name: self.host.store.get(name).version for name in self.SOURCES}
        if versions == self._versions and now - self._drawn_at < 1.0:
            return
        self._versions, self._drawn_at = versions, now
        self.draw(now=now)
        self._lines(now=now)

    def _lines(self, *, now: float) -> None:
        self.query_one(Top).say(self.title_text(), self.host.top_parts(now=now))
        self.say_status(now=now)

    def title_text(self) -> str:
        """What stands first in the top line."""
        return self.NAME

    def say_status(self, *, now: float) -> None:
        """Write the status line: a failing source, the newest note, or a hint."""
        failed = [name for name in self.SOURCES if self.entry(name).error]
        if failed:
            known = self.entry(failed[0])
            since = self.host.age(known.error_at, now=now)
            self.query_one(Status).say(
                f"! {failed[0]}: {known.error.splitlines()[0]} ({since} ago; e shows all)",
                error=True,
            )
            return
        said = self.host.store.said[-1] if self.host.store.said else None
        if said is None or now - said.at > NOTE_S:
            self.query_one(Status).say(self.hint())
        else:
            mark = "! " if said.level == "error" else ""
            first = said.text.strip().splitlines()[0] if said.text.strip() else ""
            self.query_one(Status).say(f"{mark}{first}", error=said.level == "error")

    def hint(self) -> str:
        """What stands in the status line when nothing happened."""
        return "? keys   / filter   ctrl+p commands   ctrl+o jump"

    def entry(self, name: str) -> Entry:
        """What is known of a source."""
        return self.host.store.get(name)

    def redraw(self) -> None:
        """Draw now, whatever changed."""
        self._drawn_at = 0.0
        self.tick(now=self.host.now())

    def restyle(self) -> None:
        """Give every table the colours of the theme."""
        for grid in self.query(Grid):
            grid.restyle(self.host.role_styles)

    def matches(self, text: str) -> bool:
        """Whether a row passes the filter."""
        if not self.needle:
            return True
        lower = text.lower()
        return all(word in lower for word in self.needle.lower().split())

    def action_filter(self) -> None:
        box = self.query_one("#filter", Input)
        box.add_class("-on")
        box.focus()

    def action_unfilter(self) -> None:
        box = self.query_one("#filter", Input)
        if not box.has_class("-on"):
            return
        box.value = ""
        box.remove_class("-on")
        self.needle = ""
        self._focus_table()
        self.redraw()

    def on_input_changed(self, event: Input.Changed) -> None:
        """Filter while typing."""
        if event.input.id == "filter":
            self.needle = event.value
            self.redraw()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Keep the filter and go back to the table."""
        if event.input.id == "filter":
            event.input.set_class(bool(event.value), "-on")
            self._focus_table()

    def _focus_table(self) -> None:
        grids = list(self.query(Grid))
        if grids:
            grids[0].focus()

    def action_reread(self) -> None:
        self.host.wake(self.SOURCES)
        self.host.note(f"reading {', '.join(self.SOURCES)} again")

    def copied(self) -> str:
        """What `y` copies."""
        return ""

    def action_copy(self) -> None:
        text = self.copied()
        if text:
            self.app.copy_to_clipboard(text)
            self.host.note(f"copied: {text.splitlines()[0][:60]}")

    def ask(self, heading: str, body: str, *, then: Callable[[], None], typed: str = "") -> None:
        """Ask before something that changes the world; read-only asks nothing and does nothing."""
        from saccade.tui.screens.boxes import Ask

        if self.host.read_only:
            self.host.note("read-only: press R to allow changes", error=True)
            return

        def done(agreed: bool | None) -> None:
            if agreed:
                then()

        self.app.push_screen(Ask(heading, body, typed=typed), done)

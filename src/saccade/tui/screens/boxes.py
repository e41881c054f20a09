"""Boxes over a screen: a question (with a word to type where it matters), keys, errors, jumps.

Texts flow in; an answer, or nothing, flows out. The list of keys is made from the bindings that
are active, so it cannot be wrong. Left out: what follows an answer.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.events import Key, Resize
from textual.geometry import Offset
from textual.screen import ModalScreen
from textual.widget import Widget
from textual.widgets import Button, Input, Static

from saccade.tui.store import Said
from saccade.tui.widgets.grid import Column, Grid, Row

AROUND = 14
"""Lines of the screen that a question's text leaves to its box; two more with a word to type."""


class Ask(ModalScreen[bool]):
    """A question; with `typed` only that word, typed, is a yes."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "answer(False)", "no", tooltip="leave everything as it is"),
        Binding("n", "answer(False)", "no", show=False, tooltip="leave everything as it is"),
        Binding("y", "agree", "yes", tooltip="do it"),
        Binding("down,pagedown", "scroll(1)", "more", show=False, tooltip="the rest of the text"),
        Binding("up,pageup", "scroll(-1)", "less", show=False, tooltip="the text before"),
    ]

    def __init__(self, heading: str, body: str, *, typed: str = "") -> None:
        super().__init__(classes="box")
        self.heading, self.body, self.typed = heading, body, typed

    def compose(self) -> ComposeResult:
        """Heading, text, and either a word to type or two buttons."""
        with Vertical(classes="panel"):
            yield Static(Content(self.heading), classes="heading")
            with VerticalScroll(classes="body", can_focus=False):
                yield Static(Content(self.body))
            if self.typed:
                yield Input(placeholder=f"type {self.typed} to go on", id="word", compact=True)
            with Horizontal():
                yield Button("Yes (y)", id="yes", variant="primary", disabled=bool(self.typed))
                yield Button("No (esc)", id="no")

    def on_mount(self) -> None:
        """Let a word be typed at once; else `no` has the focus."""
        self.query_one("#word" if self.typed else "#no").focus()

    def on_resize(self, event: Resize) -> None:
        """Leave room for the question and its answer, however long the text is."""
        around = AROUND + 2 * bool(self.typed)
        self.query_one(".body").styles.max_height = max(3, event.size.height - around)

    def on_input_changed(self, event: Input.Changed) -> None:
        """Only the whole word opens the way."""
        self.query_one("#yes", Button).disabled = event.value.strip() != self.typed

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Enter after the word is a yes."""
        if event.value.strip() == self.typed:
            self.dismiss(True)

    def on_button_pressed(self, event: Button.Pressed) -> None:
        """A button is an answer."""
        self.dismiss(event.button.id == "yes")

    def action_agree(self) -> None:
        if not self.typed:
            self.dismiss(True)

    def action_scroll(self, by: int) -> None:
        body = self.query_one(".body")
        body.scroll_relative(y=by * max(1, body.size.height - 1), animate=False)

    def action_answer(self, answer: bool) -> None:
        self.dismiss(answer)


class Listing(ModalScreen[None]):
    """A box with a table."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,question_mark,e", "dismiss", "close", tooltip="close this box"),
        Binding("y", "copy", "copy", tooltip="copy the row"),
    ]
    COLUMNS: ClassVar[tuple[Column, ...]] = ()

    def __init__(self, heading: str, rows: Sequence[Row], *, empty: str = "") -> None:
        super().__init__(classes="box tall")
        self.heading, self.rows, self.empty = heading, rows, empty

    def compose(self) -> ComposeResult:
        """Heading and table; below it the whole of the row under the cursor."""
        with Vertical(classes="panel"):
            yield Static(Content(self.heading), classes="heading")
            yield Grid(self.COLUMNS, empty=self.empty)
            yield Static(classes="detail")

    def on_mount(self) -> None:
        """Fill the table."""
        from saccade.tui.app import SaccadeApp

        grid = self.query_one(Grid)
        if isinstance(self.app, SaccadeApp):
            grid.restyle(self.app.role_styles)
        grid.show(self.rows)
        grid.focus()

    def whole(self, key: str) -> str:
        """The full text of a row."""
        cells = dict(self.query_one(Grid).rows).get(key, {})
        return "\n".join(text for text, _ in cells.values() if text)

    def on_grid_moved(self, event: Grid.Moved) -> None:
        """Show the whole row."""
        self.query_one(".detail", Static).update(Content(self.whole(event.key)))

    def action_copy(self) -> None:
        key = self.query_one(Grid).key
        if key is not None:
            self.app.copy_to_clipboard(self.whole(key))


class Keys(Listing):
    """Every key that works here, made from the bindings."""

    COLUMNS: ClassVar[tuple[Column, ...]] = (
        Column("key", "key", 12), Column("what", "does", 16, grow=1),
        Column("where", "where", 10, rank=1),
    )  # fmt: skip


class Errors(Listing):
    """The last errors and notes, newest first."""

    COLUMNS: ClassVar[tuple[Column, ...]] = (
        Column("age", "ago", 8, right=True), Column("source", "source", 12, rank=1),
        Column("text", "what", 20, grow=1),
    )  # fmt: skip

    def __init__(self, said: Sequence[Said]) -> None:
        from saccade.tui.words import age_of

        self.texts = {str(number): one.text for number, one in enumerate(said)}
        now = time.time()
        rows: list[Row] = [
            (
                str(number),
                {
                    "age": (age_of(one.at, now=now), "dim"), "source": (one.source, "dim"),
                    "text": (one.text, "bad" if one.level == "error" else "plain"),
                },
            )
            for number, one in enumerate(said)
        ]  # fmt: skip
        super().__init__("errors and notes, newest first", rows[::-1], empty="nothing went wrong")

    def whole(self, key: str) -> str:
        """The whole message."""
        return self.texts.get(key, "")


class Jump(ModalScreen[Widget | None]):
    """Letters over everything that can have the focus; a letter goes there."""

    LETTERS = "asdfghjklqwertuiopzxcvbnm"
    DEFAULT_CSS = """
    Jump { background: transparent; }
    Jump > Static { position: absolute; width: 3; height: 1; background: $accent;
                    color: $background; text-style: bold; }
    """

    def __init__(self, targets: Sequence[Widget]) -> None:
        super().__init__()
        self.targets = dict(zip(self.LETTERS, targets, strict=False))

    def compose(self) -> ComposeResult:
        """A letter at the corner of each target."""
        for letter, widget in self.targets.items():
            label = Static(f" {letter} ")
            label.absolute_offset = Offset(widget.region.x, widget.region.y)
            yield label

    def on_key(self, event: Key) -> None:
        """Go there, or nowhere."""
        event.stop()
        self.dismiss(self.targets.get(event.character or ""))

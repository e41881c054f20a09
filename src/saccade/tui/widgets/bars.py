"""The lines around every screen: where one is (top), and what went wrong last (bottom).

Short facts flow in from the app, one line each flows out. Left out: the footer with keys, which
the library makes from the bindings.
"""

from __future__ import annotations

from textual.content import Content
from textual.widgets import Static


class Top(Static):
    """Where one is: screen, project, what runs, what it costs."""

    DEFAULT_CSS = """
    Top { height: 1; background: $panel; color: $foreground; padding: 0 1;
          text-overflow: ellipsis; text-wrap: nowrap; }
    """

    _said: Content | None = None

    def say(self, title: str, parts: list[tuple[str, str]]) -> None:
        """Show the title and the parts (text, theme variable of its colour)."""
        content = Content.assemble(("saccade ", "bold $primary"), (title, "bold"))
        for text, color in parts:
            content = content + Content.assemble(("  \u2502 ", "$text-muted"), (text, color))
        if content != self._said:
            self._said = content
            self.update(content)


class Status(Static):
    """The newest error or note, one line; `e` shows them all."""

    DEFAULT_CSS = """
    Status { height: 1; padding: 0 1; color: $text-muted;
             text-overflow: ellipsis; text-wrap: nowrap; }
    Status.-error { color: $error; text-style: bold; }
    """

    _said: str | None = None

    def say(self, text: str, *, error: bool = False) -> None:
        """Show one line."""
        self.set_class(error, "-error")
        text = text.replace("\n", " ")
        if text != self._said:
            self._said = text
            self.update(Content(text))

"""Figures of a run, drawn in the terminal: a list, and the one under the cursor.

A run directory flows in; names and a picture made of half blocks flow out, drawn in a thread. `o`
of the screen opens the file itself. Left out: drawing (`picture.py`).
"""

from __future__ import annotations

import time
from pathlib import Path

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.widgets import Static

from saccade.tui.widgets.grid import Column, Grid

AGAIN_S = 3.0
"""Seconds after which the folder is looked at again."""


class Pictures(Horizontal):
    """A list of picture files beside the chosen one."""

    DEFAULT_CSS = """
    Pictures > Grid { width: 30%; max-width: 40; }
    Pictures > Static { width: 1fr; height: 1fr; padding: 0 1; }
    """

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.files: list[Path] = []
        self._asked: tuple[Path | None, float] = (None, 0.0)
        self._drawing: tuple[Path, int, int] | None = None
        self._shown: tuple[Path, int, int] | None = None

    def compose(self) -> ComposeResult:
        """The list and the picture."""
        yield Grid((Column("name", "figure", 12, grow=1),), empty="no figures yet")
        yield Static(id="picture")

    def show(self, folder: Path | None) -> None:
        """List the pictures of a run; a thread looks, since folders can be slow."""
        from saccade.tui.app import SaccadeApp

        app = self.app
        assert isinstance(app, SaccadeApp)
        now = time.monotonic()
        if folder is not None and (folder != self._asked[0] or now - self._asked[1] > AGAIN_S):
            self._asked = (folder, now)
            app.work.start("figures", lambda: (folder, _files(folder)))
        known = app.store.get("figures").value
        self.fill(known[1] if known is not None and known[0] == folder else [])

    def fill(self, files: list[Path]) -> None:
        """Show these files."""
        self.files = files
        self.query_one(Grid).show(
            [(str(path), {"name": (path.stem, "plain")}) for path in files]
        )  # fmt: skip
        self._draw()

    def on_grid_moved(self, event: Grid.Moved) -> None:
        """Draw the one under the cursor."""
        event.stop()
        self._draw()

    @property
    def file(self) -> Path | None:
        """The file under the cursor."""
        key = self.query_one(Grid).key
        return None if key is None else Path(key)

    def _draw(self) -> None:
        from saccade.tui.app import SaccadeApp

        app, box, file = self.app, self.query_one("#picture", Static), self.file
        assert isinstance(app, SaccadeApp)
        width, height = box.size.width - 2, box.size.height - 1
        if file is None or width < 4 or height < 2:
            return
        wanted = (file, width, height)
        known = app.store.get("picture").value
        if known is not None and known[0] == wanted:
            if self._shown != wanted:
                self._shown = wanted
                box.update(known[1])
            return
        if self._drawing == wanted:
            return
        self._drawing = wanted
        plain = app.no_color
        app.work.start("picture", lambda: (wanted, _drawn(file, width, height, plain=plain)))


def _files(folder: Path) -> list[Path]:
    return sorted(
        path for path in (folder / "figures").rglob("*") if path.suffix in (".png", ".jpg")
    )[:200]


def _drawn(file: Path, width: int, height: int, *, plain: bool) -> Text:
    from saccade.tui.picture import half_blocks

    try:
        return half_blocks(file, width=width, height=height, plain=plain)
    except OSError as error:
        return Text(f"{file.name}: {error}")

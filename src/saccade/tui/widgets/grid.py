"""A table that changes all the time: rows by key, columns that fit the width, one line per row.

Columns (with an importance) and rows of (text, role) cells flow in; the cursor's row and what is
opened flow out as messages. Lines are drawn one by one and kept, so an update costs only the rows
that changed, whatever else is on the screen: a table of the library would draw all its cells again.
The cursor stays on its row when rows move. Left out: what cells mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.message import Message
from textual.reactive import reactive
from textual.scroll_view import ScrollView
from textual.strip import Strip

Cell = tuple[str, str]
Cells = Mapping[str, Cell]
Row = tuple[str, Cells | Callable[[], Cells]]
"""A key and its cells, or what makes them: that is called only for rows that are seen."""
GUTTER = 2
MARK = "\u25b8 "


@dataclass(frozen=True)
class Column:
    """A column: what it shows, how wide it is, and how soon it is left out (0: never)."""

    key: str
    title: str
    width: int
    rank: int = 0
    grow: int = 0
    right: bool = False


def fit(columns: Sequence[Column], *, width: int) -> list[tuple[Column, int]]:
    """Choose the most important columns that fit, and share what is left among those that grow."""
    room = width - GUTTER
    chosen: list[Column] = []
    for column in sorted(columns, key=lambda one: one.rank):
        if column.rank == 0 or room >= column.width + 1:
            chosen.append(column)
            room -= column.width + 1
    kept = [column for column in columns if column in chosen]
    total = sum(column.grow for column in kept)
    widths = []
    for column in kept:
        more = room * column.grow // total if total and room > 0 else 0
        widths.append((column, column.width + more))
    return widths


class Grid(ScrollView, can_focus=True):
    """Rows under a header that stays."""

    DEFAULT_CSS = """
    Grid { height: 1fr; overflow-x: hidden; scrollbar-size-vertical: 1; }
    Grid > .grid--header { text-style: bold; color: $text-muted; background: $panel; }
    Grid > .grid--cursor { background: $panel; text-style: bold; }
    Grid:focus > .grid--cursor { background: $primary 35%; text-style: bold; }
    Grid > .grid--empty { color: $text-muted; }
    """
    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "grid--header", "grid--cursor", "grid--empty",
    }  # fmt: skip
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", "up", show=False, tooltip="one row up"),
        Binding("down,j", "move(1)", "down", show=False, tooltip="one row down"),
        Binding("pageup", "page(-1)", "page up", show=False, tooltip="one page up"),
        Binding("pagedown", "page(1)", "page down", show=False, tooltip="one page down"),
        Binding("home,g", "edge(0)", "top", show=False, tooltip="first row"),
        Binding("end,G", "edge(-1)", "bottom", show=False, tooltip="last row"),
        Binding("enter", "open", "open", show=False, tooltip="open the row"),
    ]

    cursor: reactive[int] = reactive(0, repaint=False)

    class Moved(Message):
        """The cursor is on another row, or its row changed."""

        def __init__(self, grid: Grid, key: str) -> None:
            super().__init__()
            self.grid, self.key = grid, key

        @property
        def control(self) -> Grid:
            """The grid, for `on`."""
            return self.grid

    class Opened(Moved):
        """A row was chosen."""

    def __init__(
        self, columns: Sequence[Column], *, empty: str = "", id: str | None = None,
        follow: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(id=id)
        self.follow = follow
        """Whether the cursor in the first line goes with its row when others come before it."""
        self.columns = tuple(columns)
        self.empty = empty
        self.styles_of: Mapping[str, Style] = {}
        self._rows: list[Row] = []
        self._places: dict[str, int] = {}
        self._strips: dict[int, Strip] = {}
        self._cells: dict[int, Cells] = {}
        self._layout: list[tuple[Column, int]] = []

    @property
    def keys(self) -> list[str]:
        """Keys of all rows, in order."""
        return [key for key, _ in self._rows]

    @property
    def rows(self) -> list[tuple[str, Cells]]:
        """All rows, made now."""
        return [(key, self._cells_of(index)) for index, (key, _) in enumerate(self._rows)]

    @property
    def key(self) -> str | None:
        """The key under the cursor."""
        return self._rows[self.cursor][0] if 0 <= self.cursor < len(self._rows) else None

    def show(self, rows: Sequence[Row]) -> None:
        """Show these rows; only lines that differ are drawn again."""
        before, self._rows = self._rows, list(rows)
        if [key for key, _ in before] == [key for key, _ in self._rows]:
            self._compare()
            return
        key = before[self.cursor][0] if 0 <= self.cursor < len(before) else None
        self._places = {one: index for index, (one, _) in enumerate(self._rows)}
        self._strips.clear()
        self._cells.clear()
        self.virtual_size = Size(self.size.width, len(self._rows) + 1)
        if self.styles.height is not None and self.styles.height.is_auto:
            self.refresh(layout=True)
        if not self.follow and self.cursor == 0:
            key = None
        place = self._places.get(key, min(self.cursor, len(self._rows) - 1)) if key else self.cursor
        self.cursor = max(0, min(place, len(self._rows) - 1))
        self.refresh()
        if self.key is not None and self.key != key:
            self.post_message(self.Moved(self, self.key))

    def _compare(self) -> None:
        """Draw the rows that are seen and differ; the others are made when they are seen."""
        before, self._cells = self._cells, {}
        top = self.scroll_offset.y
        seen = range(top, min(len(self._rows), top + self.size.height))
        for index in list(self._strips):
            if index not in seen:
                del self._strips[index]
        for index in seen:
            if before.get(index) != self._cells_of(index):
                self._strips.pop(index, None)
                self._redraw(index)

    def _cells_of(self, index: int) -> Cells:
        cells = self._cells.get(index)
        if cells is None:
            made = self._rows[index][1]
            cells = self._cells[index] = made() if callable(made) else made
        return cells

    def width_of(self, key: str) -> int:
        """How wide a column is now; 0 when it is left out."""
        laid = self._layout or fit(self.columns, width=self.size.width)
        return next((width for column, width in laid if column.key == key), 0)

    def select(self, key: str) -> bool:
        """Put the cursor on a row."""
        if key not in self._places:
            return False
        self.cursor = self._places[key]
        return True

    def restyle(self, styles: Mapping[str, Style]) -> None:
        """Use these styles of roles from now on."""
        self.styles_of = styles
        self._strips.clear()
        self.refresh()

    def render_line(self, y: int) -> Strip:
        """Draw one line of the visible part."""
        width = self.size.width
        if not self._layout:
            self._layout = fit(self.columns, width=width)
        if y == 0:
            return self._header(width)
        index = self.scroll_offset.y + y - 1
        if index >= len(self._rows):
            return self._blank(width, first=not self._rows and y == 1)
        strip = self._strips.get(index)
        if strip is None:
            strip = self._strips[index] = self._line(index, width)
        return strip

    def _header(self, width: int) -> Strip:
        style = self.get_component_rich_style("grid--header")
        text = " " * GUTTER
        for column, size in self._layout:
            text += _sized(column.title, size, right=column.right) + " "
        return Strip([Segment(set_cell_size(text, width), style)], width)

    def _blank(self, width: int, *, first: bool) -> Strip:
        style = self.get_component_rich_style("grid--empty") if first else self.rich_style
        text = f"  {self.empty}" if first else ""
        return Strip([Segment(set_cell_size(text, width), style)], width)

    def _line(self, index: int, width: int) -> Strip:
        here = index == self.cursor
        base = self.rich_style
        over = self.get_component_rich_style("grid--cursor") if here else None
        cells = self._cells_of(index)
        segments = [Segment(MARK if here else " " * GUTTER, base)]
        for column, size in self._layout:
            text, role = cells.get(column.key, ("", "plain"))
            style = self.styles_of.get(role)
            text = _sized(text, size, right=column.right) + " "
            segments.append(Segment(text, base + style if style else base))
        if over is not None:
            segments = [
                Segment(one.text, (one.style or base) + Style(bgcolor=over.bgcolor, bold=over.bold))
                for one in segments
            ]
            base = base + Style(bgcolor=over.bgcolor)
        return Strip(segments).adjust_cell_length(width, base)

    def _redraw(self, index: int) -> None:
        y = index + 1 - self.scroll_offset.y
        if 1 <= y < self.size.height:
            self.refresh(Region(0, y, self.size.width, 1))

    def watch_cursor(self, before: int, now: int) -> None:
        for index in (before, now):
            self._strips.pop(index, None)
            self._redraw(index)
        top, height = self.scroll_offset.y, max(1, self.size.height - 1)
        if now < top:
            self.scroll_to(y=now, animate=False, force=True)
        elif now >= top + height:
            self.scroll_to(y=now - height + 1, animate=False, force=True)
        if self.key is not None:
            self.post_message(self.Moved(self, self.key))

    def _on_resize(self, event: events.Resize) -> None:
        self._layout = []
        self._strips.clear()
        self.virtual_size = Size(event.size.width, len(self._rows) + 1)

    def on_focus(self) -> None:
        self._strips.pop(self.cursor, None)
        self.refresh()

    def on_blur(self) -> None:
        self._strips.pop(self.cursor, None)
        self.refresh()

    def notify_style_update(self) -> None:
        """Forget lines drawn in other colours."""
        super().notify_style_update()
        self._strips.clear()

    def on_click(self, event: events.Click) -> None:
        """Put the cursor where the mouse is; a second click opens."""
        index = self.scroll_offset.y + event.y - 1
        if event.y < 1 or index >= len(self._rows):
            return
        self.cursor = index
        if event.chain == 2:
            self.action_open()

    def action_move(self, by: int) -> None:
        self.cursor = max(0, min(self.cursor + by, len(self._rows) - 1))

    def action_page(self, by: int) -> None:
        self.action_move(by * max(1, self.size.height - 2))

    def action_edge(self, place: int) -> None:
        self.cursor = 0 if place == 0 else max(0, len(self._rows) - 1)

    def action_open(self) -> None:
        if self.key is not None:
            self.post_message(self.Opened(self, self.key))


def _sized(text: str, size: int, *, right: bool = False) -> str:
    """Cut or pad to exactly this many cells; what is cut says so."""
    text = text.replace("\n", " ")
    length = len(text) if text.isascii() else cell_len(text)
    if length > size:
        return set_cell_size(text, max(0, size - 1)) + "\u2026" if size > 0 else ""
    pad = " " * (size - length)
    return pad + text if right else text + pad

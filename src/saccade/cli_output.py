"""What a person sees: tables and JSON on stdout, progress and errors on stderr.

Plain values flow in; text flows out. Output reads the same without colour, and colour follows
NO_COLOR and whether the stream is a terminal (both by Rich). Left out: figures and reports.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

WIDTH_OF_A_PIPE = 160
"""Columns of tables that go to a file or pipe, where nobody's window limits them."""


def stdout() -> Console:
    """Make the console for results."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else WIDTH_OF_A_PIPE
    return Console(width=width, highlight=False, markup=False)


def stderr() -> Console:
    """Make the console for progress and messages."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, markup=False)


def show_error(message: str) -> None:
    """Write one error message, unwrapped, so that paths and keys can be copied."""
    from rich.text import Text

    text = Text("error: ", style="bold red") + Text(message, style="default")
    stderr().print(text, soft_wrap=True)


def show_note(message: str) -> None:
    """Write a line about what happens, on stderr."""
    stderr().print(message, soft_wrap=True)


def write_json(value: Any) -> None:
    """Write a value as JSON on stdout; NaN and infinities, which JSON has not, become null."""
    sys.stdout.write(json.dumps(_plain(value), indent=2, ensure_ascii=False) + "\n")


def table(
    columns: Sequence[str], rows: Sequence[Sequence[Any]], *, right: Sequence[int] = ()
) -> None:
    """Write rows under column names; numbers in the columns `right` are aligned right."""
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for position, name in enumerate(columns):
        made.add_column(
            name, justify="right" if position in right else "left", overflow="fold", no_wrap=False
        )
    for row in rows:
        made.add_row(*(number(cell) for cell in row))
    stdout().print(made)


def render(renderable: RenderableType) -> None:
    """Write anything Rich can draw to stdout."""
    stdout().print(renderable)


def number(value: Any) -> str:
    """Write a value for a table: four digits of a float, lists without quotes."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(number(item) for item in value) + "]"
    return "null" if value is None else str(value)


def metrics_table(metrics: Mapping[str, Any]) -> None:
    """Write final metrics, one per row."""
    table(["metric", "value"], [[name, value] for name, value in metrics.items()], right=[1])


def samples_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Write samples, one per row; a broken one shows its problem instead."""
    cells = [
        [row["index"], "", "", row["problem"], "", ""]
        if "problem" in row
        else [row["index"], row["id"], row["kind"], row["question"], " / ".join(row["answers"]),
              ", ".join(row["images"])]
        for row in rows
    ]  # fmt: skip
    table(["index", "id", "kind", "question", "answers", "images"], cells, right=[0])


def look_table(result: Mapping[str, Any]) -> None:
    """Write what a look found, nested values spread; warnings and the picture's path after it."""
    hidden = ("warnings", "panel", "decay")  # a curve reads better in the app and as JSON
    shown = {name: value for name, value in result.items() if name not in hidden}
    table(["what", "found"], list(_spread(shown)))
    for warning in result.get("warnings", []):
        show_note(f"note: {warning}")
    show_note(f"drawn: {result['panel']}")


def _spread(values: Mapping[str, Any], *, before: str = "") -> Iterator[list[Any]]:
    for name, value in values.items():
        title = f"{before}{name}".replace("_", " ")
        if isinstance(value, Mapping):
            yield from _spread(value, before=title + " ")
        else:
            yield [title, value]


@contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int], None]]:
    """Show work as (what, done, total): a live bar on a terminal, rare plain lines elsewhere."""
    console = stderr()
    if not console.is_terminal:
        yield _plain_progress(console)
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("starting", total=None)

        def advance(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        yield advance


def _plain_progress(console: Console, *, every_s: float = 5.0) -> Callable[[str, int, int], None]:
    import time

    shown = {"what": "", "at": 0.0}

    def advance(what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if what != shown["what"] or now - float(shown["at"]) >= every_s:
            shown["what"], shown["at"] = what, now
            console.print(f"{what}: {done}/{total}", soft_wrap=True)

    return advance


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value
